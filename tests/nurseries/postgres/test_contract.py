"""What we use of psycopg beyond its documentation. It is pinned in pyproject.toml; here is what to look at when it moves."""

import inspect
from importlib.metadata import requires, version

import psycopg
import pytest
from psycopg import _conninfo_utils, pq
from psycopg.adapt import AdaptersMap, Transformer

READ_THIS = "psycopg changed below nurseries/postgres: read docs/decisions/0001-psycopg-on-trio.md, then "


def test_the_installed_psycopg_is_the_one_that_was_examined():
    """Another version may wait, cancel or decode otherwise, so the pin and the installation agree exactly."""
    assert version("psycopg") == "3.3.9", READ_THIS + "examine this version and move the pin"
    pins = [line for line in requires("nurseries") if line.startswith("psycopg")]
    assert pins == ["psycopg[binary]==3.3.9"], READ_THIS + "keep the pin exact"


def test_the_compiled_implementation_is_in_use():
    """The pure Python implementation would work at a fraction of the speed."""
    assert pq.__impl__ in {"binary", "c"}, READ_THIS + "install psycopg[binary]"


def test_libpq_can_do_what_we_ask_of_it():
    """Encrypted cancellation and protocol-level Close came with libpq 17."""
    assert pq.version() >= 170000, READ_THIS + "use a psycopg that brings libpq 17"


@pytest.mark.parametrize(
    "name",
    [
        "backend_pid", "cancel_conn", "connect_poll", "connect_start", "consume_input", "enter_pipeline_mode",
        "exit_pipeline_mode", "finish", "flush", "get_error_message", "get_result", "is_busy", "nonblocking",
        "notice_handler", "notifies", "pipeline_status", "pipeline_sync", "send_close_prepared", "send_prepare",
        "send_query", "send_query_prepared", "socket", "status", "transaction_status",
    ],
)  # fmt: skip
def test_the_libpq_wrapper_has_what_the_driver_calls(name):
    """Each of these is called by connecting.py, exchange.py, connection.py or listen.py."""
    assert hasattr(pq.PGconn, name), READ_THIS + f"find what replaced PGconn.{name}"


def test_a_cancel_request_can_be_polled():
    """The request to cancel is driven by the same polling as a connection."""
    for name in ("start", "poll", "socket", "finish", "get_error_message"):
        assert hasattr(pq.PGcancelConn, name), READ_THIS + f"find what replaced PGcancelConn.{name}"


def test_a_transformer_works_without_a_connection():
    """Rows are loaded by psycopg's transformer, which we give adapters and no connection."""

    class Context:
        connection = None
        adapters = AdaptersMap(psycopg.adapters)

    transformer = Transformer(Context())
    assert callable(transformer.set_pgresult), READ_THIS + "load rows in another way"
    assert callable(transformer.load_rows), READ_THIS + "load rows in another way"


def test_the_helpers_for_connection_strings_are_where_they_were():
    """Several hosts are split, and the environment is asked, by functions of a private module."""
    expected = {"split_attempts": ["params"], "get_param": ["params", "name"], "is_ip_address": ["s"]}
    for name, parameters in expected.items():
        found = list(inspect.signature(getattr(_conninfo_utils, name)).parameters)
        assert found == parameters, READ_THIS + f"look at _conninfo_utils.{name}"
    several = {"host": "a,b", "port": "1"}
    assert [(a["host"], a["port"]) for a in _conninfo_utils.split_attempts(several)] == [
        ("a", "1"),
        ("b", "1"),
    ]
