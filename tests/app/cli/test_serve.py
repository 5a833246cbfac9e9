"""`nurseries serve` as a process: how it starts, what it says, and how it fails to start."""

import json
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx
import psycopg
import pytest

from nurseries.postgres.embedded import running_conninfo
from tests.fixtures.house import PASSWORD, signed_up
from tests.fixtures.process import postgres_of, run, served

STORY = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]


def chat(url: str, tmp_path: Path, *arguments: str, **options):
    """Run the terminal client as a new user."""
    arguments = ("chat", "--url", url, "--email", "ann@example.org", *arguments)
    return run(*arguments, NURSERIES_PASSWORD=PASSWORD, XDG_STATE_HOME=str(tmp_path), **options)


async def status_of(url: str) -> int:
    """Ask anonymously."""
    async with httpx.AsyncClient() as http:
        return (await http.get(url)).status_code


async def test_first_start_to_second(data_dir, tmp_path):
    """A new server announces itself when it is ready and prints a sign-in link that works once, never again."""
    async with served(tmp_path / "log", "--data-dir", str(data_dir)) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            ready = await http.get("/health/ready")
            assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": []})
            line = await server.line()
            link = re.fullmatch(rf"sign in as the first user: {server.url}/#signin=(\S+)\n", line)
            assert link, line
            arguments = ("chat", "--url", server.url, "--once", "calculate 6*7")
            home = {"XDG_STATE_HOME": str(tmp_path)}
            first = await run(*arguments, "--signin", line.split()[-1], **home)
            assert first.returncode == 0, first.stderr
            assert b"42" in first.stdout
            again = await run(*arguments, "--signin", link[1], **home)
            assert again.returncode == 3
            assert b"used, expired or wrong" in again.stderr
            later = await run(*arguments, "--email", "admin@localhost", **home)
            assert later.returncode == 0, "the session that the link opened goes on"
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert server.process.stdout.read() == ""
    assert postgres_of(data_dir) == []

    async with served(tmp_path / "log", "--data-dir", str(data_dir), "--load-agent") as server:
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert server.process.stdout.read() == ""


async def test_console_script():
    """The installed `nurseries` is this command."""
    script = Path(sys.executable).with_name("nurseries")
    assert b"listen" in subprocess.run([script, "serve", "--help"], capture_output=True, check=True).stdout


async def test_chat(database, tmp_path):
    """The terminal client gets the five events in order, and finds its earlier messages again."""
    async with served(tmp_path / "log", "--database-url", database.owner) as server:
        once = await chat(server.url, tmp_path, "--register", "--once", "calculate 6*7", "--json")
        assert once.returncode == 0, once.stderr
        events = [json.loads(line) for line in once.stdout.splitlines()]
        assert [event["type"] for event in events if event["type"] in STORY] == STORY
        assert "42" in events[-1]["payload"]["output"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))

        piped = await chat(server.url, tmp_path, stdin="the plums are ripe\nsearch plums\n")
        assert piped.returncode == 0, piped.stderr
        assert b"the plums are ripe" in piped.stdout.splitlines()[-1]


async def test_external_database(database, tmp_path):
    """A server on an external database takes its accounts from there, and offers no sign-in link."""
    async with served(tmp_path / "log", variables={"NURSERIES_DATABASE_URL": database.owner}) as server:
        async with signed_up(server.url) as user:
            thread = await user.thread()
            assert (await user.run(thread, "calculate 6*7"))["status"] == "completed"
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert server.process.stdout.read() == ""


async def test_log_is_json_without_secrets(database, tmp_path):
    """Whatever is logged at the finest level is one JSON object a line, and no secret is in it."""
    arguments = ("--database-url", database.owner, "--log-level", "debug")
    async with served(tmp_path / "log", *arguments, variables={"NURSERIES_POOL_SZE": "3"}) as server:
        async with signed_up(server.url) as user:
            secrets = [PASSWORD, user.access_token, user.refresh_token]
            ticket = (await user.http.post("/v1/auth/ticket")).json()["ticket"]
            wrong = {"email": user.email, "password": "a wrong password, but whose?"}
            assert (await user.http.post("/v1/auth/login", json=wrong)).status_code == 401
            for name, value in {"access_token": user.access_token, "ticket": ticket}.items():
                assert await status_of(f"{server.url}/v1/me?{name}={value}") == 401
            for token in (user.refresh_token, user.refresh_token):
                again = await user.http.post("/v1/auth/refresh", json={"refresh_token": token})
            assert again.status_code == 400  # reuse, which is audited
            secrets += [ticket, wrong["password"]]
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        lines = server.log()
    text = server.log_file.read_text()
    assert not [secret for secret in secrets if secret in text]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert {"refresh_token_reused", "draining"} <= {line["event"] for line in lines} | {
        line.get("kind") for line in lines
    }
    assert [line["variable"] for line in lines if "variable" in line] == ["NURSERIES_POOL_SZE"]


# -- failed starts -----------------------------------------------------------------------------------


async def refused(*arguments: str, **options) -> str:
    """Start a server that must fail; returns what it says of it, which is no traceback."""
    done = await run("serve", *arguments, **options)
    assert (done.returncode, done.stdout) == (1, b""), done
    said = done.stderr.decode()
    assert said.startswith("nurseries: "), said
    assert "Traceback" not in said
    return said


async def test_port_in_use(database):
    """A port that is taken is named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = await refused("--port", port, "--database-url", database.owner)
    assert said == f"nurseries: cannot listen on 127.0.0.1:{port}: Address already in use\n"


async def test_a_unix_socket_that_cannot_be_made(database, tmp_path):
    """It is named, and not the port beside it."""
    path = tmp_path / "nowhere" / "socket"
    said = await refused("--port", "0", "--database-url", database.owner, NURSERIES_UNIX_PATH=str(path))
    assert said == f"nurseries: cannot listen on {path}: No such file or directory\n"


async def test_the_version():
    """It is that of the distribution."""
    done = await run("--version")
    assert (done.returncode, done.stdout.decode().strip()) == (0, version("nurseries"))


async def test_data_dir_in_use(data_dir, tmp_path):
    """Of two servers on one data directory the second says who has it."""
    async with served(tmp_path / "log", "--data-dir", str(data_dir)) as server:
        said = await refused("--port", "0", "--data-dir", str(data_dir))
        assert f"in use by another server, process {server.process.pid}" in said
        assert await status_of(f"{server.url}/health/ready") == 200


async def test_unreachable_database():
    """A database that cannot be reached is said to be so, and the password in its URL is not said at all."""
    said = await refused("--port", "0", NURSERIES_DATABASE_URL="postgresql://ann:hunter2@127.0.0.1:1/chat")
    assert said.startswith("nurseries: the database cannot be used: ")
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (["--port", "99999"], {}, "port = 99999, from the flag --port: must be <= 65535"),
        (
            [],
            {"NURSERIES_POOL_SIZE": "many"},
            "pool.size = 'many', from the variable NURSERIES_POOL_SIZE: must be",
        ),
        (["--config", "wrong.toml"], {}, "drain_seconds = -1, from the file wrong.toml: must be >= 0"),
        ([], {"NURSERIES_CONFIG": "unknown.toml"}, "there is no setting prt; did you mean port?"),
        (["--agents", "no_such_module"], {}, "agents module no_such_module cannot be imported"),
    ],
    ids=["flag", "variable", "file", "unknown key", "agents"],
)
async def test_wrong_settings(tmp_path, arguments, variables, expected):
    """A wrong setting ends the start, whatever it comes from."""
    (tmp_path / "wrong.toml").write_text("[nurseries]\ndrain_seconds = -1\n")
    (tmp_path / "unknown.toml").write_text("[nurseries]\nprt = 1\n")
    assert expected in await refused(*arguments, cwd=tmp_path, **variables)


async def test_unreadable_command_line():
    """What is no command line at all ends with 2, as everywhere, and nothing on standard output."""
    done = await run("serve", "--port", "abc")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--port" in done.stderr
    assert b"abc" in done.stderr


async def test_large_pool(data_dir, tmp_path):
    """The embedded database takes as many connections as the pool may have."""
    variables = {"NURSERIES_POOL_SIZE": "150"}
    async with served(tmp_path / "log", "--data-dir", str(data_dir), variables=variables):
        with psycopg.connect(running_conninfo(data_dir / "postgres")) as connection:
            [(most,)] = connection.execute("SHOW max_connections").fetchall()
    assert int(most) >= 150 + 30
