"""Run Autobahn's WebSocket conformance suite against the real worker with an echo handler.

    python -m tests.serving.autobahn --wstest PATH [--cases 1.* 9.3.* ...]

`wstest` is the fuzzing client of `autobahntestsuite` 25.10.1, which runs under Python 2.7 only:

    python2.7 -m virtualenv suite && suite/bin/pip install autobahntestsuite==25.10.1

Exits with 0 when every case is OK, informational or non-strict, except the one of `EXPLAINED`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import trio

from nurseries.serving import Handshake, Listener, ServingLimits

GOOD = {"OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED"}
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


async def echo(handshake: Handshake) -> None:
    """Echo each message as what it is."""
    websocket = await handshake.accept()
    while True:
        message = await websocket.receive()
        if isinstance(message, str):
            await websocket.send([message.encode()])
        else:
            await websocket.send_binary([message])


async def no_http(scope: dict, receive: object, send: object) -> None:
    """Nothing but WebSockets is asked for."""
    raise NotImplementedError


async def run(wstest: Path, cases: list[str]) -> dict[str, str]:
    """Run the cases and return each one's behaviour, the worse of the message's and the close's."""
    with tempfile.TemporaryDirectory(prefix="autobahn-") as directory:
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(Listener(http=no_http, websocket=echo, port=0, limits=LIMITS).serve)
            spec = {
                "outdir": directory,
                "servers": [{"agent": "nurseries", "url": urls[0].replace("http", "ws", 1)}],
                "cases": cases,
                "exclude-cases": [],
            }
            spec_path = Path(directory, "spec.json")
            spec_path.write_text(json.dumps(spec))
            await trio.run_process(
                [wstest, "-m", "fuzzingclient", "-s", spec_path], stdout=subprocess.DEVNULL, cwd=directory
            )
            nursery.cancel_scope.cancel()
        report = json.loads(Path(directory, "index.json").read_text())["nurseries"]
    behaviours = {}
    for case, result in report.items():
        worst = [result[key] for key in ("behavior", "behaviorClose") if result[key] not in GOOD]
        behaviours[case] = worst[0] if worst else result["behavior"]
    return behaviours


def main() -> int:
    """Run the suite and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wstest", type=Path, required=True, help="the suite's program")
    parser.add_argument("--cases", nargs="*", default=["*"])
    options = parser.parse_args()
    behaviours = trio.run(run, options.wstest.resolve(), options.cases)
    print(dict(Counter(behaviours.values())), "of", len(behaviours))  # noqa: T201  # its output
    failed = {case: why for case, why in behaviours.items() if why not in GOOD}
    for case, why in failed.items():
        print(case, why, EXPLAINED.get(case, ""))  # noqa: T201  # its output
    return 1 if failed.keys() - EXPLAINED.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
