"""A server, and two users of it who never meet."""

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.house import User, running_server, signed_up


@pytest.fixture
async def server(database) -> AsyncIterator[str]:
    """The URL of a server on this test's own database."""
    async with running_server(database.owner) as url:
        yield url


@pytest.fixture
async def alice(server) -> AsyncIterator[User]:
    """Somebody."""
    async with signed_up(server) as user:
        yield user


@pytest.fixture
async def bob(server) -> AsyncIterator[User]:
    """Somebody else."""
    async with signed_up(server) as user:
        yield user
