"""The data directory that an operator names, as it is found."""

import os

import pytest

from app.database import open_store
from app.settings import Settings
from nurseries.errors import StartupFailed


@pytest.fixture
def closed(data_dir):
    """A directory of our own that nobody else may pass, as `mktemp -d` makes it."""
    data_dir.mkdir(mode=0o700)
    return data_dir


async def test_a_data_directory_may_be_new_and_closed(closed):
    """Also for root, who cannot run PostgreSQL: its account gets to the files. A second start finds them."""
    for _ in range(2):
        async with open_store(Settings(data_dir=closed)) as store:
            assert store.supervise is not None
        closed.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another account")
async def test_nobody_else_is_let_in(closed):
    """The account of PostgreSQL may pass the directory, not list it, whatever else lies there; others still may not."""
    (closed / "letters").touch()
    async with open_store(Settings(data_dir=closed)):
        pass
    assert closed.stat().st_mode & 0o777 == 0o710
    assert closed.stat().st_gid == (closed / "postgres" / "cluster").stat().st_gid
    assert closed.owner() == "root"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another account")
async def test_a_directory_that_is_shared_is_not_opened(closed):
    """Whom the operator lets in is not ours to change; the message names the directory, and how to open it."""
    closed.chmod(0o750)
    with pytest.raises(StartupFailed, match=f"cannot pass {closed}: .* chmod o[+]x {closed}"):
        async with open_store(Settings(data_dir=closed)):
            pass
    assert closed.stat().st_mode & 0o777 == 0o750
