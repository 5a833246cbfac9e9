"""Opening a session: hosts in order, names, time limits, TLS, and reasons that can be read."""

import socket
import ssl
import struct
from contextlib import suppress
from functools import partial

import pytest
import trio
import trustme
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nurseries.errors import DatabaseUnavailable
from nurseries.postgres.connecting import connect
from nurseries.postgres.connection import Connection
from nurseries.postgres.statement import Statement

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def refusal(message):
    fields = b"SFATAL\0VFATAL\0C28000\0M" + message.encode() + b"\0\0"
    return b"E" + struct.pack("!i", len(fields) + 4) + fields


async def refuse_over_tls(context, stream):
    """A server that speaks TLS, and then has only a refusal to say."""
    assert await stream.receive_some(8) == SSL_REQUEST
    await stream.send_all(b"S")
    encrypted = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    await encrypted.receive_some(10_000)
    await encrypted.send_all(refusal("said over TLS"))
    await encrypted.aclose()


@pytest.fixture
async def silent_port(nursery):
    """A server that takes connections and says nothing."""

    async def say_nothing(stream):
        await trio.sleep_forever()

    (listener,) = await nursery.start(partial(trio.serve_tcp, say_nothing, 0, host="127.0.0.1"))
    return listener.socket.getsockname()[1]


async def test_the_next_host_is_tried_when_one_refuses(notes):
    """Several hosts are tried in their order, and the first that answers is taken."""
    directory = conninfo_to_dict(notes.conninfo)["host"]
    conninfo = make_conninfo(notes.conninfo, host=f"127.0.0.1,{directory}", port=f"{closed_port()},5432")
    connection = await Connection.open(conninfo)
    assert connection.is_clean
    connection.close()


async def test_every_failure_is_named(notes):
    """When no host lets us in, the message has the reason of each."""
    conninfo = make_conninfo(
        notes.conninfo, host="127.0.0.1,host.invalid,/nowhere", port=f"{closed_port()},5432,5432"
    )
    with pytest.raises(DatabaseUnavailable) as refused:
        await connect(conninfo)
    for reason in ("Connection refused", "host.invalid", "/nowhere"):
        assert reason in str(refused.value)


async def test_names_are_resolved_by_trio():
    """A name is looked up without blocking the other tasks, and all its addresses are tried."""
    asked = []

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host, port, *_):
            asked.append((host, port))
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 1))
                for address in ("127.0.0.2", "127.0.0.3")
            ]

        async def getnameinfo(self, sockaddr, flags):
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())
    port = closed_port()
    with pytest.raises(DatabaseUnavailable) as refused:
        await connect(make_conninfo(host="db.example", port=port, dbname="x"))
    assert [host.decode() if isinstance(host, bytes) else host for host, _ in asked] == ["db.example"]
    assert "127.0.0.2" in str(refused.value)
    assert "127.0.0.3" in str(refused.value)


async def test_an_address_is_taken_as_it_is():
    """With hostaddr, or an address for a host, nothing is looked up."""
    port = closed_port()
    for conninfo in (f"host=db.invalid hostaddr=127.0.0.1 port={port}", f"host=127.0.0.1 port={port}"):
        with pytest.raises(DatabaseUnavailable, match="Connection refused"):
            await connect(conninfo)


async def test_a_host_that_says_nothing_is_given_up_in_time(silent_port, autojump_clock):
    """connect_timeout holds for each host, and then the next one is tried."""
    started = trio.current_time()
    with pytest.raises(DatabaseUnavailable, match="no answer within 7 s"):
        await connect(f"host=127.0.0.1,127.0.0.1 port={silent_port} connect_timeout=7")
    assert trio.current_time() - started == 14


async def test_connecting_can_be_cancelled(silent_port):
    """A cancellation leaves at once, and leaves no socket behind."""
    with trio.move_on_after(0.01) as scope:
        await connect(f"host=127.0.0.1 port={silent_port}")
    assert scope.cancelled_caught


async def test_tls_is_used_and_verified(nursery, tmp_path):
    """With sslmode=verify-full a server that our authority vouches for is believed, and another is not."""
    authority, stranger = trustme.CA(), trustme.CA()
    for name, ca in {"authority": authority, "stranger": stranger}.items():
        ca.cert_pem.write_to_path(tmp_path / name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(stream):
        with suppress(trio.BrokenResourceError, ssl.SSLError):
            await refuse_over_tls(context, stream)

    (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    port = listener.socket.getsockname()[1]
    conninfo = f"host=127.0.0.1 port={port} user=x sslmode=verify-full"
    with pytest.raises(DatabaseUnavailable, match="said over TLS"):
        await connect(make_conninfo(conninfo, sslrootcert=str(tmp_path / "authority")))
    with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
        await connect(make_conninfo(conninfo, sslrootcert=str(tmp_path / "stranger")))


@pytest.mark.parametrize(
    "conninfo", ["nonsense", "host=/tmp port=none", "port=1,2 host=a,b,c", "connect_timeout=soon"]
)
async def test_a_wrong_connection_string_is_a_clear_refusal(conninfo):
    """What cannot be read is refused like what cannot be reached."""
    with pytest.raises(DatabaseUnavailable):
        await connect(conninfo)


async def test_a_role_that_is_refused_is_told_why(notes):
    """The server's own words are the message."""
    with pytest.raises(DatabaseUnavailable, match='role "nobody_here" does not exist'):
        await connect(make_conninfo(notes.conninfo, user="nobody_here"))


async def test_settings_of_the_connection_string_are_kept(notes):
    """Options of the operator are added to ours, and RESET returns to both."""
    connection = await Connection.open(make_conninfo(notes.conninfo, options="-c statement_timeout=4321"))
    sql = "SELECT current_setting('statement_timeout'), current_setting('TimeZone'), current_setting('client_encoding')"
    await connection.run([Statement("SET TimeZone = 'Asia/Tokyo'")], commits=True)
    await connection.run([Statement("RESET ALL")], commits=True)
    (result,) = await connection.run([Statement(sql)], commits=True)
    assert connection.rows(result) == [("4321ms", "UTC", "UTF8")]
    connection.close()
