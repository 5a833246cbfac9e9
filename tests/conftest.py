"""The fixtures that our tests share are those of the installed plugin; here they have shorter names."""

import pytest
from hypothesis import HealthCheck, settings

from app.logs import configure_logging

configure_logging("debug")  # as the server logs: structlog's own default renders tracebacks for a second each

# How long an example takes says something of the machine alone, and what fails today is to fail tomorrow, too.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def cluster(nurseries_cluster):
    """One PostgreSQL for the whole run."""
    return nurseries_cluster


@pytest.fixture
def database(nurseries_database):
    """A migrated database of this test's own."""
    return nurseries_database


@pytest.fixture
def empty_database(nurseries_empty_database):
    """A database of this test's own without any migration; its owner's connection string."""
    return nurseries_empty_database


@pytest.fixture
def data_dir(nurseries_data_dir):
    """A place for a server's data."""
    return nurseries_data_dir
