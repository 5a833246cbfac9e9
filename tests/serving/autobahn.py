"""Run Autobahn's WebSocket conformance suite against the real worker, the real session and its writer.

    python -m tests.serving.autobahn [--cases 1.* 9.3.* ...] [--report DIRECTORY]

That is all: the suite, `autobahntestsuite` 25.10.1, runs under Python 2.7 only, and is installed for it at the
first run, into `.autobahn/` of the repository. Where there is no Python 2.7 the command says so and exits with 2.
It exits with 0 when every case is OK, informational or non-strict, except the one of `EXPLAINED`, else with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import trio

from nurseries.events import Streams
from nurseries.isolation import Isolation
from nurseries.serving import Binary, Handshake, Listener, ServingLimits
from nurseries.session import Session

SUITE = "autobahntestsuite==25.10.1"
PLACE = Path(__file__).parents[2] / ".autobahn"
# `addsitedir` and not PYTHONPATH: the suite's namespace packages are found through .pth files.
WSTEST = "import site, sys; site.addsitedir(sys.argv.pop(1)); from autobahntestsuite.wstest import run; sys.exit(run())"
GOOD = {"OK", "INFORMATIONAL", "NON-STRICT"}
EXPLAINED = {
    "7.1.5": "closed with 1002: a close frame inside a fragmented message leaves a message that never ends"
}
LIMITS = ServingLimits(
    message_bytes=64 << 20,
    frames_per_minute=1e9,
    frame_burst=10**9,
    requests_per_second=1e6,
    request_burst=10**6,
    deflate=True,
)


async def answer(session: Session, frame: str | bytes) -> None:
    """Answer each message with itself, as what it is, through the session's outbox and writer."""
    await session.answer(frame.encode() if isinstance(frame, str) else Binary(frame))


class Echo:
    """Serves a session for each socket."""

    def __init__(self) -> None:
        self._streams = Streams()
        self._isolation = Isolation()

    async def __call__(self, handshake: Handshake) -> None:
        """Serve one socket."""
        with self._streams.listen(handshake.peer) as outbox:
            socket = await handshake.accept()
            session = Session(socket, outbox, session_id="echo", isolation=self._isolation)
            await session.run(answer)


async def no_http(scope: dict, receive: object, send: object) -> None:
    """Nothing but WebSockets is asked for."""
    raise NotImplementedError


def python2() -> Path | None:
    """Return a Python 2.7 of this machine that runs; what pyenv puts into the PATH may be an empty shell."""
    for candidate in (shutil.which("python2.7"), *Path.home().glob(".pyenv/versions/2.7*/bin/python2.7")):
        if (
            candidate
            and not subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode
        ):
            return Path(candidate)
    return None


def install(python: Path) -> None:
    """Install the suite, once; a half-made installation does not count."""
    if PLACE.exists():
        return
    with tempfile.TemporaryDirectory(prefix="autobahn-", dir=PLACE.parent) as directory:
        part = Path(directory, "suite")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--target", part, SUITE], check=True)
        part.rename(PLACE)


async def run(python: Path, cases: list[str], directory: Path) -> dict[str, str]:
    """Run the cases and return each one's behaviour, the worse of the message's and the close's."""
    async with trio.open_nursery() as nursery:
        listener = Listener(http=no_http, websocket=Echo(), port=0, limits=LIMITS)
        urls = await nursery.start(listener.serve)
        spec = {
            "outdir": str(directory),
            "servers": [{"agent": "nurseries", "url": urls[0].replace("http", "ws", 1)}],
            "cases": cases,
            "exclude-cases": [],
        }
        spec_path = directory / "spec.json"
        spec_path.write_text(json.dumps(spec))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [python, "-c", WSTEST, PLACE, "-m", "fuzzingclient", "-s", spec_path]
        await trio.run_process(command, stdout=subprocess.DEVNULL, cwd=directory, env=environment)
        crashed = listener.statistics().crashed
        nursery.cancel_scope.cancel()
    assert not crashed, f"{crashed} connections failed; the log says why"
    report = json.loads((directory / "index.json").read_text())["nurseries"]
    behaviours = {}
    for case, result in report.items():
        worst = [result[key] for key in ("behavior", "behaviorClose") if result[key] not in GOOD]
        behaviours[case] = worst[0] if worst else result["behavior"]
    return behaviours


def main() -> int:
    """Run the suite and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="*", default=["*"])
    parser.add_argument("--report", type=Path, help="where the suite's own pages go, one for each case")
    options = parser.parse_args()
    python = python2()
    if python is None:
        print("There is no python2.7 on this machine, and Autobahn's suite runs under no other.")  # noqa: T201
        return 2
    install(python)
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
    place = (
        tempfile.TemporaryDirectory(prefix="autobahn-")
        if options.report is None
        else nullcontext(options.report)
    )
    with place as directory:
        behaviours = trio.run(run, python, options.cases, Path(directory).resolve())
    print(dict(Counter(behaviours.values())), "of", len(behaviours))  # noqa: T201  # its output
    failed = {case: why for case, why in behaviours.items() if why not in GOOD}
    for case, why in failed.items():
        print(case, why, EXPLAINED.get(case, ""))  # noqa: T201  # its output
    return 1 if failed.keys() - EXPLAINED.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
