"""A minute of everything at once against a server in a process of its own."""

import json
import os

import trio

from tests.fixtures.house import signed_up
from tests.fixtures.process import COMMAND, environment, served
from tests.fixtures.roles import promote

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
USERS = 30


async def test_a_minute_of_everything_leaves_everything_as_it_should_be(database, tmp_path):
    """No error, nothing misdelivered, lost or repeated, nothing shared, no orphan, nothing left."""
    variables = {
        "NURSERIES_DATABASE_URL": database.owner,
        "NURSERIES_JANITOR_SECONDS": "5",
        "NURSERIES_ISOLATION_EVERY_SECONDS": "10",
        "NURSERIES_ISOLATION_SECONDS": "300",  # on a slow machine, too, an audit is to get through
    }
    async with (
        served(tmp_path / "log", "--load-agent", variables=variables) as server,
        signed_up(server.url) as admin,
    ):
        promote(database, admin)
        arguments = [
            "--url",
            server.url,
            "--users",
            str(USERS),
            "--minutes",
            str(SECONDS / 60),
            "--pause",
            "1",
        ]
        with trio.fail_after(SECONDS + 300):
            soak = await trio.run_process(
                [*COMMAND, "soak", *arguments, "--json"],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment(NURSERIES_ADMIN_TOKEN=admin.access_token),
            )
        assert soak.stdout, soak.stderr.decode()
        report = json.loads(soak.stdout)
        errors = [line for line in server.log() if line["level"] in {"error", "critical"}]
    assert report["bad"] == [], json.dumps(report, indent=2)
    assert soak.returncode == 0
    assert errors == []
    assert report["users"] == USERS
    assert report["turns"] > USERS
    assert len(report["activities"]) == 17, report["activities"]
    assert report["memory"]["last"] < 400  # MB; whether it climbs is for the long soak to tell
    assert report["audits"] >= 2
    assert report["audited_objects"] > 1000
