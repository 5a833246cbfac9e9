"""The fixtures of the kernel, for pytest. This module is loaded in every run of pytest, so it imports nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from pathlib import Path

    import trio.testing

    from nurseries.testing.cluster import Cluster
    from nurseries.testing.ledger import LeaseLedger
    from nurseries.testing.schedules import Exploration
    from nurseries.testing.sweep import Sweep

PROPERTY = "nurseries"
"""The property of a test's report that holds a line for the summary; pytest-xdist carries it along."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a schedule that failed be replayed."""
    group = parser.getgroup("nurseries")
    group.addoption(
        "--schedule-seed", type=int, metavar="SEED", help="let `explore` run only the schedule of this seed"
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Fail a test that has a `lease_ledger` and leaves something out."""
    result = yield
    ledger: Any = pyfuncitem.funcargs.get("lease_ledger")
    if ledger is not None:
        ledger.check()
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many schedules and points were run, also where all is well: a number that shrinks is worth a look."""
    lines = [
        f"{report.nodeid}: {value}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if lines:
        terminalreporter.section("nurseries")
        for line in lines:
            terminalreporter.line(line)


# -- schedules, cancellations, time, leases --------------------------------------------------------------


@pytest.fixture
def explore(request: pytest.FixtureRequest) -> Callable[..., Exploration]:
    """`nurseries.testing.explore`, which obeys `--schedule-seed` and tells the summary."""
    from nurseries.testing.schedules import explore  # noqa: PLC0415  # see the module's docstring

    seed: int | None = request.config.getoption("--schedule-seed")

    def explore_and_tell(
        test: Callable[..., Awaitable[object]], *args: object, **options: Any
    ) -> Exploration:
        __tracebackhide__ = True
        exploration = explore(test, *args, **{"seed": seed, **options})
        request.node.user_properties.append((PROPERTY, str(exploration)))
        return exploration

    return explore_and_tell


@pytest.fixture
def cancel_everywhere(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Sweep]]:
    """`nurseries.testing.cancel_everywhere`, which tells the summary."""
    from nurseries.testing.sweep import cancel_everywhere  # noqa: PLC0415

    async def cancel_and_tell(*args: Callable[..., Awaitable[object]], **options: Any) -> Sweep:
        __tracebackhide__ = True
        sweep = await cancel_everywhere(*args, **options)
        request.node.user_properties.append((PROPERTY, str(sweep)))
        return sweep

    return cancel_and_tell


@pytest.fixture
def virtual_time() -> Iterator[trio.testing.MockClock]:
    """A clock on which a database call takes no time; the test that is to have it names it among its arguments."""
    from nurseries.testing.clock import virtual_time  # noqa: PLC0415

    with virtual_time() as clock:
        yield clock


@pytest.fixture
def lease_ledger() -> Iterator[LeaseLedger]:
    """Every lease and connection of the test, which fails if one is still out at its end."""
    from nurseries.testing.ledger import lease_ledger  # noqa: PLC0415

    with lease_ledger() as ledger:
        yield ledger


# -- the database --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def nurseries_cluster() -> Iterator[Cluster]:
    """One embedded PostgreSQL for the whole run, without durability."""
    from nurseries.testing.cluster import running_cluster  # noqa: PLC0415  # see the module's docstring

    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def nurseries_empty_database(nurseries_cluster: Cluster) -> Iterator[str]:
    """A database of this test's own with nothing in it: its owner's connection string."""
    with nurseries_cluster.database() as owner:
        yield owner


@pytest.fixture
def nurseries_data_dir() -> Iterator[Path]:
    """A place for a server's data. Unlike `tmp_path` it can be passed by every account, and its path is short."""
    import tempfile  # noqa: PLC0415  # see the module's docstring
    from pathlib import Path  # noqa: PLC0415

    from nurseries.testing.cluster import roomy_directory  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="nurseries-test-", dir=roomy_directory()) as place:
        Path(place).chmod(0o711)
        yield Path(place, "data")
