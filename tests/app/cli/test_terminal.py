import os

import pytest
import trio

from app.cli.frames import Frame
from app.cli.terminal import Lines, Terminal, clean


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "wb", buffering=0) as writer:
        yield reader, writer


async def test_lines_come_whole_however_they_are_written(pipe):
    """Half a line waits for its other half; several at once are taken one by one."""
    reader, writer = pipe
    lines = Lines(reader.fileno())
    writer.write(b"one\ntwo\r\nthr")
    assert [await lines.next(), await lines.next()] == ["one", "two"]
    writer.write("ée\n".encode())
    assert await lines.next() == "thrée"


async def test_input_may_end_without_a_line_feed(pipe):
    """The last line counts, and then there are no more."""
    reader, writer = pipe
    lines = Lines(reader.fileno())
    writer.write(b"last")
    writer.close()
    assert [await lines.next(), await lines.next(), await lines.next()] == ["last", None, None]


async def test_waiting_for_a_line_blocks_nobody_and_can_be_cancelled(pipe, autojump_clock):
    """The loop goes on while nobody types."""
    reader, _ = pipe
    with trio.move_on_after(1) as scope:
        await Lines(reader.fileno()).next()
    assert scope.cancelled_caught


async def test_a_file_can_be_read_too(tmp_path):
    """A regular file cannot be waited for, and is read all the same."""
    path = tmp_path / "lines"
    path.write_text("one\ntwo\n")
    with path.open("rb") as file:
        lines = Lines(file.fileno())
        assert [await lines.next(), await lines.next(), await lines.next()] == ["one", "two", None]


def test_nothing_from_a_server_drives_the_terminal():
    """Escape sequences lose their escape; text, line feeds and tabs stay."""
    assert clean("a\x1b[2J\x1b]0;title\x07b\n\tc\x9b31m\x7f\r") == "a[2J]0;titleb\n\tc31m"


def _event(type_, **payload):
    return Frame(type=type_, seq=1, payload=payload)


def test_an_answer_is_shown_once(capsys):
    """What was streamed is not repeated at the end; what was not streamed is added."""
    terminal = Terminal(interactive=False, as_json=False)
    terminal.event(_event("message_delta", message_id="m", text="forty-"), b"", mine=True)
    terminal.event(_event("agent_completed", depth=0, message_id="m", output="forty-two"), b"", mine=True)
    terminal.event(_event("agent_completed", depth=0, message_id="n", output="again"), b"", mine=True)
    assert capsys.readouterr().out == "forty-two\nagain\n"


def test_an_answer_that_was_streamed_otherwise_stays_as_it_was(capsys):
    """An output that does not begin with what was shown adds nothing to it."""
    terminal = Terminal(interactive=False, as_json=False)
    terminal.event(_event("message_delta", message_id="m", text="forty"), b"", mine=True)
    terminal.event(_event("agent_completed", depth=0, message_id="m", output="twelve is it"), b"", mine=True)
    assert capsys.readouterr().out == "forty\n"


def _inner(type_, **payload):
    return Frame(type=type_, seq=1, run_id="r_clerk_1", payload={"agent": "clerk", "depth": 1, **payload})


def test_what_a_sub_agent_says_is_no_answer(capsys):
    """It is told beside the answer, in short, when it is complete."""
    terminal = Terminal(interactive=False, as_json=False)
    for event in (
        _event("message_delta", message_id="m", text="forty-"),
        _inner("agent_started"),
        _inner("message_delta", message_id="n", text="a long story"),
        _inner("run_resumed", message_id="n", output="a long story"),
        _inner("agent_completed", message_id="n", output="a long story"),
        _inner("agent_failed", code="internal", message="broken"),
        _event("agent_completed", depth=0, message_id="m", output="forty-two"),
    ):
        terminal.event(event, b"", mine=True)
    written = capsys.readouterr()
    assert written.out == "forty-\ntwo\n"
    assert written.err == "  clerk begins\n  clerk → a long story\n  clerk failed: broken (internal)\n"


def test_everything_but_answers_goes_to_standard_error(capsys):
    """A pipe gets the answers alone."""
    terminal = Terminal(interactive=False, as_json=False)
    terminal.event(_event("agent_thinking", agent="a", text="hm"), b"", mine=True)
    terminal.event(_event("tool_executing", tool="clock", arguments={"zone": "UTC"}), b"", mine=True)
    terminal.event(
        _event("tool_completed", tool="clock", ok=True, result="now", milliseconds=3), b"", mine=True
    )
    terminal.event(_event("run_failed", code="model", message="gone"), b"", mine=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "  hm",
        '  clock {"zone":"UTC"}',
        "  clock → now (3 ms)",
        "failed: gone (model)",
    ]


def test_json_shows_the_events_as_they_came(capfdbinary):
    """One envelope a line, byte for byte."""
    terminal = Terminal(interactive=False, as_json=True)
    terminal.event(_event("message_delta", message_id="m", text="x"), b'{"raw":1}', mine=True)
    assert capfdbinary.readouterr().out == b'{"raw":1}\n'


@pytest.mark.parametrize(
    ("stands", "shown"),
    [
        ("", "half a sen\ntence"),  # void altogether: what comes is the answer
        ("half ", "half a sen\nhalf tence"),  # shown again from where it stands
        ("half a sen", "half a sen\ntence"),  # all of it stands: nothing again
    ],
)
def test_an_answer_that_goes_on_after_a_restart(capsys, stands, shown):
    """What is void cannot be taken back at a terminal; what stands is shown again, and each word after it once."""
    terminal = Terminal(interactive=False, as_json=False)
    terminal.event(_event("message_delta", message_id="m", text="half a sen"), b"", mine=True)
    terminal.event(_event("run_suspended", reason="shutdown"), b"", mine=True)
    terminal.event(_event("run_resumed", step=1, output=stands, message_id="m"), b"", mine=True)
    terminal.event(_event("message_delta", message_id="m", text="tence"), b"", mine=True)
    terminal.event(
        _event("agent_completed", depth=0, message_id="m", output=f"{stands}tence"), b"", mine=True
    )
    out, err = capsys.readouterr()
    assert out == f"{shown}\n"
    assert "goes on by itself" in err
    assert "after a restart" in err
