import json
import os
import re
import signal
import subprocess

import pytest
import trio

from app.cli.chat import chat_command
from tests.app.cli.screen import COMMAND, at_terminal
from tests.app.cli.scripted_server import EMAIL, PASSWORD

ACCOUNT = {"email": EMAIL, "password": PASSWORD}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A home of its own, with the account in the variables."""
    for name, value in {
        "XDG_STATE_HOME": str(tmp_path),
        "NURSERIES_EMAIL": EMAIL,
        "NURSERIES_PASSWORD": PASSWORD,
        "TERM": "dumb",
        "PYTHONWARNINGS": "error",
    }.items():
        monkeypatch.setenv(name, value)


# -- at a terminal ---------------------------------------------------------------------------------------


async def test_a_conversation_at_a_terminal(server):
    """The prompt, the tools, the answer, the prompt again, and Ctrl-D leaves."""
    async with at_terminal(server.url) as screen:
        await screen.until("you> ")
        screen.type("hello\n")
        shown = await screen.until("you> ")
        assert "mirror → hello (1 ms)" in shown
        assert "you said hello" in shown
        screen.type("\x04")
        assert await screen.status() == 0


async def test_ctrl_c_cancels_the_run_and_not_the_client(server):
    """After a cancelled answer the next one comes."""
    server.hold = True
    async with at_terminal(server.url) as screen:
        await screen.until("you> ")
        screen.type("endless\n")
        await screen.until("you said endless")
        screen.type("\x03")
        await screen.until("cancelled: asked")
        await screen.until("you> ")
        server.hold = False
        screen.type("next\n")
        await screen.until("you said next")
        await screen.until("you> ")
        screen.type("/quit\n")
        assert await screen.status() == 0
    assert [frame["type"] for frame in server.received].count("cancel") == 1


async def test_a_second_ctrl_c_leaves(server):
    """Though the server does not answer the first one."""
    server.hold = True
    original = server.on_message

    async def no_cancel(socket, frame, nursery):
        if frame["type"] != "cancel":
            await original(socket, frame, nursery)

    server.on_message = no_cancel
    async with at_terminal(server.url) as screen:
        await screen.until("you> ")
        screen.type("endless\n")
        await screen.until("you said endless")
        screen.type("\x03")
        await screen.until("Ctrl-C again leaves")
        screen.type("\x03")
        assert await screen.status() == 130


async def test_ctrl_c_at_the_prompt_asks_once(server):
    """The first one says how to leave, the second one leaves."""
    async with at_terminal(server.url) as screen:
        await screen.until("you> ")
        screen.type("\x03")
        await screen.until("Ctrl-C again or Ctrl-D leaves")
        await screen.until("you> ")
        screen.type("\x03")
        assert await screen.status() == 130


async def test_a_lost_connection_is_said_and_mended(server):
    """In the middle of an answer, which is shown whole and once."""
    server.hold = True
    async with at_terminal(server.url) as screen:
        await screen.until("you> ")
        screen.type("one\n")
        await screen.until("you said one")
        await server.sockets[0].close(1012)
        await screen.until("trying again in")
        await screen.until("connected again")
        (thread_id,) = server.threads
        (run_id,) = server.runs.values()
        await server.emit(server.user_id, thread_id, run_id, "message_delta", message_id="m", text="and two")
        await screen.until("and two")
        assert "you said" not in screen.text
        screen.type("\x03")
        await screen.until("cancelled: asked")


async def test_whoever_is_unknown_is_asked(server, monkeypatch):
    """Email and password are asked for, and the password is not shown."""
    monkeypatch.delenv("NURSERIES_EMAIL")
    monkeypatch.delenv("NURSERIES_PASSWORD")
    async with at_terminal(server.url) as screen:
        await screen.until("email: ")
        screen.type(f"{EMAIL}\n")
        await screen.until("password of ada@example.com: ")
        screen.type(f"{PASSWORD}\n")
        assert PASSWORD not in await screen.until("you> ")
        screen.type("\x04")
        assert await screen.status() == 0


async def test_a_new_account_can_be_made_at_the_prompt(server, monkeypatch):
    """A login that is refused may be a new account: that is asked, not assumed."""
    monkeypatch.setenv("NURSERIES_EMAIL", "eve@example.com")
    monkeypatch.delenv("NURSERIES_PASSWORD")
    async with at_terminal(server.url) as screen:
        await screen.until("password of eve@example.com: ")
        screen.type("another long one\n")
        await screen.until(r"new account.*\[y/N\] ")
        screen.type("y\n")
        await screen.until("you> ")
    assert server.passwords["eve@example.com"] == "another long one"


async def test_conversations_can_be_listed_and_changed(server):
    """/new, /threads and /thread N."""
    async with at_terminal(server.url) as screen:
        await screen.until("you> ")
        screen.type("/new\n")
        await screen.until("conversation")
        await screen.until("you> ")
        first, second = server.threads
        screen.type("/threads\n")
        listed = await screen.until("you> ")
        assert re.search(rf"\*  1  {second}.*\n.*  2  {first}", listed)
        screen.type("/thread 2\n")
        await screen.until(first)
        await screen.until("you> ")
        screen.type("hello\n")
        await screen.until("you said hello")
        screen.type("/thread 77\n")
        await screen.until("/thread 77: ")
    assert server.threads[first]
    assert not server.threads[second]


# -- in a pipe -------------------------------------------------------------------------------------------


async def piped(server, text, *arguments, **options):
    with trio.fail_after(30):
        return await trio.run_process(
            [*COMMAND, "--url", server.url, *arguments],
            stdin=text,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            **options,
        )


async def test_every_line_of_a_pipe_is_answered(server):
    """Answers alone go to standard output; at the end of input the client leaves."""
    result = await piped(server, b"one\n\n/two\nthree")
    assert result.stdout.decode().splitlines() == ["you said one ", "you said /two ", "you said three "]
    assert result.returncode == 0


async def test_a_failed_run_of_a_pipe_is_told_by_the_status(server):
    """The other lines are answered all the same."""
    result = await piped(server, b"fail\nthree\n")
    assert (result.stdout, result.returncode) == (b"you said three \n", 1)


async def test_a_reader_that_leaves_is_no_error_of_ours(server):
    """As for any program in a pipe: no traceback, and the status of SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    with trio.fail_after(30):
        result = await trio.run_process(
            [*COMMAND, "--url", server.url, "--once", "hi"], stdout=writing, capture_stderr=True, check=False
        )
    os.close(writing)
    assert result.returncode == 141
    assert b"Traceback" not in result.stderr
    assert b"BrokenPipe" not in result.stderr


async def test_an_interrupted_pipe_cancels_its_run(server, nursery):
    """SIGINT cancels the run, and ends the client with the status of SIGINT."""
    server.hold = True
    process = await trio.lowlevel.open_process(
        [*COMMAND, "--url", server.url, "--once", "endless"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    async with process.stdout:
        with trio.fail_after(20):
            text = b""
            while b"endless" not in text:
                text += await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    assert "cancel" in [frame["type"] for frame in server.received]


# -- one message, in this process ------------------------------------------------------------------------


async def test_one_message_as_json(server, capfdbinary):
    """The envelopes are printed as they came, one a line."""
    assert await chat_command(**ACCOUNT, url=server.url, once="hi", json=True) == 0
    (log,) = server.threads.values()
    assert [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()] == log


async def test_a_message_that_cannot_be_taken_now_is_repeated(server, capsys, monkeypatch):
    """With the same client id, a few times, and then it is told."""
    monkeypatch.setattr("app.cli.conversation.RETRY_SECONDS", (0.001, 0.001))
    server.errors = ["pool_exhausted", "draining"]
    assert await chat_command(**ACCOUNT, url=server.url, once="hi") == 0
    assert "you said hi" in capsys.readouterr().out
    messages = [frame for frame in server.received if frame["type"] == "user_message"]
    assert len(messages) == 3
    assert len({frame["client_id"] for frame in messages}) == 1
    server.errors = ["rate_limited"] * 3
    assert await chat_command(**ACCOUNT, url=server.url, once="hi") == 1


async def test_a_message_that_is_refused_is_not_repeated(server, capsys):
    """What is wrong stays wrong."""
    server.errors = ["too_large"]
    assert await chat_command(**ACCOUNT, url=server.url, once="hi") == 1
    assert "(too_large)" in capsys.readouterr().err
    assert [frame["type"] for frame in server.received].count("user_message") == 1


async def test_an_answer_whose_events_are_gone_is_looked_up(server, capsys):
    """A run that ended while its log was out of reach is shown from its record."""
    server.hold = True
    dropped = []

    async def end_out_of_sight(socket, envelope):
        await socket.send(**envelope)
        if envelope["type"] == "message_delta" and not dropped:
            dropped.append(envelope)
            server.pruned[envelope["thread_id"]] = 100
            server.outputs[envelope["run_id"]] = "the whole answer"
            await trio.aclose_forcefully(socket.stream)

    server.on_event = end_out_of_sight
    assert await chat_command(**ACCOUNT, url=server.url, once="hi") == 0
    assert "the whole answer" in capsys.readouterr().out


async def test_who_cannot_log_in_is_told(server, capsys):
    """Status 3, and the account is named."""
    assert await chat_command(url=server.url, email=EMAIL, password="wrong password", once="hi") == 3
    assert EMAIL in capsys.readouterr().err


async def test_a_server_that_is_not_there_is_told(capsys):
    """Status 4, and the address is named."""
    assert await chat_command(url="http://127.0.0.1:1", **ACCOUNT, once="hi") == 4
    assert "http://127.0.0.1:1" in capsys.readouterr().err
