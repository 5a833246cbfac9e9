"""HTTPS from the settings, and certificates that are renewed without a restart."""

import signal
import ssl
import subprocess
from pathlib import Path

import httpx
import trio
import trustme

from tests.fixtures.process import COMMAND, environment, run


def issue(authority: trustme.CA, certificate: Path, key: Path) -> ssl.SSLContext:
    """Write a certificate of `authority`, and return a client's context that trusts no other."""
    issued = authority.issue_cert("localhost")
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def answers(port: str, context: ssl.SSLContext) -> bool:
    """Whether the server shows a certificate that this client trusts."""
    try:
        async with httpx.AsyncClient(verify=context) as http:
            return (await http.get(f"https://localhost:{port}/health/live")).status_code == 200
    except httpx.ConnectError:
        return False


async def test_certificates_are_renewed_at_a_signal(database, tmp_path):
    """SIGHUP makes new connections use the new files; files that cannot be used change nothing."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    old = issue(trustme.CA(), certificate, key)
    log_path = tmp_path / "log"
    variables = environment(
        NURSERIES_TLS_CERTIFICATE=str(certificate),
        NURSERIES_TLS_KEY=str(key),
        NURSERIES_UNIX_PATH=str(tmp_path / "s"),
        NURSERIES_DATABASE_URL=database.owner,
    )
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--host", "localhost"],
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            text=True,
        ) as server,
    ):
        try:
            line = server.stdout.readline()
            assert line.startswith("listening on https://"), log_path.read_text()
            port = line.strip().rpartition(":")[2]
            assert await answers(port, old)

            key.write_text("not a key")
            server.send_signal(signal.SIGHUP)
            with trio.fail_after(30):
                while "the old one stays" not in log_path.read_text():
                    await trio.lowlevel.checkpoint()
            assert await answers(port, old)

            new = issue(trustme.CA(), certificate, key)
            assert not await answers(port, new)
            server.send_signal(signal.SIGHUP)
            with trio.fail_after(30):
                while not await answers(port, new):
                    pass
            assert not await answers(port, old)
            server.send_signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(server.wait) == 0
        finally:
            server.kill()
    assert not (tmp_path / "s").exists()


async def test_half_a_certificate_is_none(database):
    """Both files or none; and files that cannot be used end the start."""
    for variables in (
        {"NURSERIES_TLS_CERTIFICATE": "cert.pem"},
        {"NURSERIES_TLS_CERTIFICATE": "missing.pem", "NURSERIES_TLS_KEY": "missing.pem"},
    ):
        failed = await run("serve", "--port", "0", NURSERIES_DATABASE_URL=database.owner, **variables)
        assert failed.returncode == 1
        assert b"cert" in failed.stderr or b"missing.pem" in failed.stderr
        assert b"listening" not in failed.stdout
