"""The fixtures of a whole server, for pytest, which loads this module in every run: it imports nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from app.testing.database import Database
    from app.testing.house import House
    from app.testing.server import RunningServer
    from nurseries.testing.cluster import Cluster


@pytest.fixture(scope="session")
def nurseries_template(nurseries_cluster: Cluster) -> str:
    """Name a database of `nurseries_cluster` that is migrated, has no rows, and to which nobody may be connected."""
    from app.testing.database import make_template  # noqa: PLC0415  # see the module's docstring

    return make_template(nurseries_cluster)


@pytest.fixture
def nurseries_database(nurseries_cluster: Cluster, nurseries_template: str) -> Iterator[Database]:
    """A migrated database of this test's own, with its login roles."""
    from app.testing.database import migrated_database  # noqa: PLC0415

    with migrated_database(nurseries_cluster, nurseries_template) as database:
        yield database


@pytest.fixture
def nurseries_settings() -> Mapping[str, Any]:
    """Settings of servers and houses, by their names in `app.settings.Settings`. Override it: `{"agents": "my_agents"}`."""
    return {}


@pytest.fixture
async def nurseries_server(
    nurseries_database: Database, nurseries_settings: Mapping[str, Any]
) -> AsyncIterator[RunningServer]:
    """A server in this process, on a free port and on this test's own database."""
    from app.testing.server import running  # noqa: PLC0415

    async with running(nurseries_database.owner, **nurseries_settings) as server:
        yield server


@pytest.fixture
def nurseries_house(
    nurseries_database: Database, nurseries_settings: Mapping[str, Any]
) -> Callable[..., AbstractAsyncContextManager[House]]:
    """What a server is below its sockets: `async with` what this returns, in any run of Trio, is a `House`."""
    from app.testing.house import open_house  # noqa: PLC0415

    def open_it(**settings: Any) -> AbstractAsyncContextManager[House]:
        return open_house(nurseries_database, **{**nurseries_settings, **settings})

    return open_it
