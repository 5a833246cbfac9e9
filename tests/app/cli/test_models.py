"""`nurseries serve` with language models: what it says of them, and what it never says."""

import pytest

from tests.fixtures.aimock import KEY
from tests.fixtures.house import PASSWORD
from tests.fixtures.process import run, served


async def test_a_model_by_flags_answers_in_the_terminal(database, aimock, tmp_path):
    """It is named in the log, and its key is nowhere."""
    await aimock.says("hello", "Hello from the model.")
    variables = {"NURSERIES_MODEL_API_KEY": KEY, "NURSERIES_DATABASE_URL": database.owner}
    flags = ("--model", "openai:gpt-test", "--model-base-url", f"{aimock.url}/v1", "--log-level", "debug")
    async with served(tmp_path / "log", *flags, variables=variables) as server:
        chat = ("chat", "--url", server.url, "--email", "ann@example.org", "--register", "--once", "hello")
        done = await run(*chat, NURSERIES_PASSWORD=PASSWORD, XDG_STATE_HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert b"Hello from the model." in done.stdout
        (line,) = [line for line in server.log() if line["event"] == "models"]
        assert line["asked_in_this_order"] == [f"gpt-test (openai:gpt-test at {aimock.url}/v1)"]
        assert KEY not in server.log_file.read_text()
    assert (await aimock.journal())[0]["headers"]["authorization"]


async def test_a_server_without_a_model_says_so(database, tmp_path):
    """Whoever wonders about its answers finds the reason in the log."""
    async with served(tmp_path / "log", variables={"NURSERIES_DATABASE_URL": database.owner}) as server:
        await run(
            "chat",
            "--url",
            server.url,
            "--email",
            "nobody@example.org",
            "--once",
            "x",
            NURSERIES_PASSWORD="x",
        )
        events = [line["event"] for line in server.log()]
    assert "no language model is configured: the assistant is offline" in events


@pytest.mark.parametrize(
    ("flags", "variables", "reason"),
    [
        (["--model", "gpt"], {}, "model = 'gpt', from the flag --model: must be like openai:"),
        (["--model", "openai:gpt"], {"OPENAI_API_KEY": ""}, "model gpt: no key: set OPENAI_API_KEY"),
        (
            ["--model", "openai:gpt"],
            {"NURSERIES_MODEL_API_KEY": f"{KEY} x"},
            "model gpt: api_key holds no key",
        ),
        (["--model-base-url", "http://x"], {}, "model_base_url is set, but model is not"),
    ],
)
async def test_mistakes_end_the_start(tmp_path, flags, variables, reason):
    """In a line, before anything listens or any database is touched, without the key."""
    done = await run("serve", "--data-dir", str(tmp_path / "data"), *flags, **variables)
    assert done.returncode == 1
    assert reason in done.stderr.decode()
    assert KEY not in done.stderr.decode()
    assert done.stdout == b""
    assert not (tmp_path / "data").exists()
