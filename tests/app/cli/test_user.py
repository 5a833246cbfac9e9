"""`nurseries user` beside a running server, and without one."""

import os
import signal

import httpx

from tests.fixtures.house import PASSWORD, signed_up
from tests.fixtures.process import postgres_gone, postgres_of, run, served


async def test_beside_a_running_server(data_dir, tmp_path):
    """Users can be added, made administrators and disabled while the server runs; the last closes their socket."""
    place = ("--data-dir", str(data_dir))
    async with served(tmp_path / "log", *place) as server, signed_up(server.url) as ann:
        added = await run("user", "add", "bob@example.org", *place, stdin=f"{PASSWORD}\n")
        assert added.returncode == 0, added.stderr
        bob = {"email": "bob@example.org", "password": PASSWORD}
        me = await logged_in(server.url, bob)
        assert me["user_id"] == added.stdout.decode().strip()

        assert (await ann.http.get("/v1/admin/status")).status_code == 403
        promoted = await run("user", "role", ann.email, "admin", *place)
        assert (promoted.returncode, promoted.stdout.decode()) == (0, f"{ann.email}: admin\n")
        assert (await ann.http.get("/v1/admin/status")).status_code == 200

        async with ann.socket() as socket:
            disabled = await run("user", "disable", ann.email, *place)
            assert (disabled.returncode, disabled.stdout.decode()) == (0, f"{ann.email} is disabled\n")
            assert await socket.close_code() == 4401
        assert (await ann.http.get("/v1/me")).status_code == 401

        await refusals(place)
        trail = await audited(server.url, bob, place)
        assert [(kind, user == me["user_id"], details.get("roles")) for kind, user, details in trail] == [
            ("user_added", True, ""),
            ("roles_changed", False, "admin"),
            ("user_disabled", False, None),
            ("roles_changed", True, "admin"),
        ]
        assert all((each["by"], each["uid"]) == ("command line", os.getuid()) for _, _, each in trail)
        assert server.log()  # still JSON alone, so nothing broke in a way of its own


async def test_without_a_server(data_dir, tmp_path):
    """The same commands work on the data of a server that does not run, and leave no database behind."""
    place = ("--data-dir", str(data_dir))
    added = await run("user", "add", "bob@example.org", "--password", PASSWORD, "--role", "admin", *place)
    assert added.returncode == 0, added.stderr
    assert postgres_of(data_dir) == []
    await refusals(place)
    async with served(tmp_path / "log", *place) as server:
        me = await logged_in(server.url, {"email": "bob@example.org", "password": PASSWORD})
        assert (me["user_id"], me["roles"]) == (added.stdout.decode().strip(), ["admin"])
        # Both are killed, the server first being unable to start its database again: a dead socket is left.
        server.signal(signal.SIGSTOP)
        os.kill(
            int((data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL
        )
        server.process.kill()
        await postgres_gone(data_dir)
    disabled = await run("user", "disable", "bob@example.org", *place)
    assert disabled.returncode == 0, disabled.stderr
    assert postgres_of(data_dir) == []


async def test_external_database(database):
    """With an external database no server needs to be there at all."""
    variables = {"NURSERIES_DATABASE_URL": database.owner}
    added = await run("user", "add", "bob@example.org", stdin=f"{PASSWORD}\n", **variables)
    assert added.returncode == 0, added.stderr
    disabled = await run("user", "disable", "bob@example.org", **variables)
    assert disabled.returncode == 0, disabled.stderr


async def refusals(place: tuple[str, ...]) -> None:
    """What cannot be done is said in one line; bob@example.org exists already."""
    for arguments, reason in [
        (("add", "bob@example.org", "--password", PASSWORD), "this address has an account already"),
        (("disable", "nobody@example.org"), "no user 'nobody@example.org'"),
        (
            ("role", "bob@example.org", "Not A Role"),
            "roles: lower case letters, digits, '-' and '_', at most 32, not 'Not A Role'",
        ),
    ]:
        done = await run("user", *arguments, *place)
        assert (done.returncode, done.stdout) == (1, b""), done
        assert done.stderr.decode() == f"nurseries: {reason}\n"


async def audited(url: str, administrator: dict, place: tuple[str, ...]) -> list[tuple[str, str, dict]]:
    """Make somebody an administrator, and return what the trail says of the commands: kind, user and details."""
    promoted = await run("user", "role", administrator["email"], "admin", *place)
    assert promoted.returncode == 0, promoted.stderr
    async with httpx.AsyncClient(base_url=url) as http:
        pair = (await http.post("/v1/auth/login", json=administrator)).json()
        bearer = {"Authorization": f"Bearer {pair['access_token']}"}
        trail = (await http.get("/v1/admin/audit", headers=bearer)).json()["entries"]
    return [(each["kind"], each["user_id"], each["details"]) for each in trail if "by" in each["details"]]


async def logged_in(url: str, credentials: dict) -> dict:
    """Log in and return who that is."""
    async with httpx.AsyncClient(base_url=url) as http:
        pair = (await http.post("/v1/auth/login", json=credentials)).json()
        answer = await http.get("/v1/me", headers={"Authorization": f"Bearer {pair['access_token']}"})
        return answer.json()
