"""Many runs that wait for a slow model at once: whether any fails, and what a waiting run holds.

    python -m tests.bench.waiting_runs [--runs N] [--seconds S] [--limit KILOBYTES]

Starts a server of its own with a pool of 20 connections and no more, and the built-in assistant with an
OpenAI-compatible model. That model is a server in this process which answers nobody until all runs wait for it, and
then lets them wait so many seconds more. Printed are: how the runs ended, the most connections that were lent at
once, and the resident memory that each waiting run takes, its connection to the model included. Exits with 1 if a
run failed, if the pool was ever used up, or if a waiting run takes more than the limit.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from itertools import cycle
from pathlib import Path

import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families

PASSWORD = "correct horse battery staple"
POOL = 20
PER_USER = 8
"""Runs of one user that run at once, by default; so there are as many users as it takes."""

AT_ONCE = 8
"""How many messages are on their way at the same time: runs gather one after the other, as in life."""

ENVIRONMENT = {
    "NURSERIES_ACCOUNTS_HASH_COST_MEMORY_KIB": "8",
    "NURSERIES_ACCOUNTS_HASH_COST_PASSES": "1",
    "NURSERIES_SERVING_REQUESTS_PER_SECOND": "10000",
    "NURSERIES_SERVING_REQUEST_BURST": "10000",
    "NURSERIES_POOL_SIZE": str(POOL),
    "NURSERIES_POOL_OVERFLOW": "0",
}


def chunk(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "slow", "choices": [choice]}


CHUNKS = [chunk({"role": "assistant", "content": "Here I am."}), chunk({}, "stop")]
ANSWER = "".join(f"data: {json.dumps(each)}\n\n" for each in CHUNKS) + "data: [DONE]\n\n"


class SlowModel:
    """Speaks as much HTTP as it needs.

    Attributes:
        waiting: requests that have no answer yet.
        go_on: set when they may have one.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.go_on = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            while True:
                while b"\r\n\r\n" not in buffer:
                    if not (data := await stream.receive_some()):
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                length = int(re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)[1])
                while len(buffer) < length:
                    buffer += await stream.receive_some()
                buffer = buffer[length:]
                self.waiting += 1
                try:
                    await self.go_on.wait()
                finally:
                    self.waiting -= 1
                await stream.send_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(ANSWER), ANSWER.encode())
                )


async def metrics(http):
    text = (await http.get("/metrics")).text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


async def for_all(items, function):
    """Call a function with each item, some at a time; returns the results."""
    results = []
    pending = iter(items)

    async def work():
        for item in pending:
            results.extend([await function(item)])

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work)
    return results


async def sign_up(http, number):
    account = {"email": f"waiting-{number}@example.org", "password": PASSWORD}
    (await http.post("/v1/auth/register", json=account)).raise_for_status()
    token = (await http.post("/v1/auth/login", json=account)).raise_for_status().json()["access_token"]
    return {"Authorization": f"Bearer {token}"}


async def begin(http, user):
    """Start a run of a user in a thread of its own; returns the user and the path of the run."""
    thread = (await http.post("/v1/threads", json={}, headers=user)).raise_for_status().json()["thread_id"]
    path = f"/v1/threads/{thread}/runs"
    body = {"content": "Where are you?"}
    accepted = (await http.post(path, json=body, headers=user)).raise_for_status().json()
    return user, f"{path}/{accepted['run_id']}"


async def gathered(model, count):
    with trio.fail_after(120):
        while model.waiting < count:
            await trio.sleep(0.05)


async def ended(http):
    with trio.fail_after(120):
        while (now := await metrics(http))["nurseries_runs"]:
            await trio.sleep(0.05)
    return now


async def play(http, model, count, seconds):
    """Play one round; returns the metrics before, while all wait, and after, and how the runs ended."""
    users = await for_all(range(-(-count // PER_USER)), partial(sign_up, http))
    await ended(http)
    before = await metrics(http)
    turn = cycle(users)
    runs = await for_all([next(turn) for _ in range(count)], partial(begin, http))
    await gathered(model, count)
    waiting = await metrics(http)
    await trio.sleep(seconds)
    model.go_on.set()
    after = await ended(http)

    async def outcome(run):
        user, path = run
        return (await http.get(path, headers=user)).json()

    outcomes = await for_all(runs, outcome)
    return before, waiting, after, outcomes


async def main(count, seconds, limit):
    model = SlowModel()
    with tempfile.TemporaryDirectory(prefix="nurseries-bench-", dir="/tmp") as place:
        Path(place).chmod(0o711)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, model.serve, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            arguments = ["--model", "openai:slow", "--model-base-url", f"http://127.0.0.1:{port}/v1"]
            process = await trio.lowlevel.open_process(
                [
                    sys.executable,
                    "-m",
                    "app",
                    "serve",
                    "--port",
                    "0",
                    "--data-dir",
                    f"{place}/data",
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                env={**os.environ, **ENVIRONMENT},
            )
            try:
                printed = b""
                while not (found := re.search(rb"listening on (\S+)\n", printed)):
                    printed += await process.stdout.receive_some()
                async with httpx.AsyncClient(base_url=found[1].decode(), timeout=60) as http:
                    model.go_on.set()
                    user = await sign_up(http, "first")
                    await begin(http, user)  # what Python imports at the first run is nobody's
                    await ended(http)
                    model.go_on = trio.Event()
                    good = report(count, limit, *await play(http, model, count, seconds))
            finally:
                process.terminate()
                await process.wait()
            nursery.cancel_scope.cancel()
    sys.exit(0 if good else 1)


def report(count, limit, before, waiting, after, outcomes):
    each = (waiting["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]) / count / 1000
    peak = after["nurseries_pool_peak"]
    statuses = Counter(outcome["status"] for outcome in outcomes)
    right = sum(outcome.get("output") == "Here I am." for outcome in outcomes)
    print(f"{count} runs waited at once; ended: {dict(statuses)}, {right} with the model's answer")
    print(
        f"connections lent while all waited {waiting['nurseries_pool_checked_out']:.0f}, at most {peak:.0f} of {POOL}"
    )
    print(
        f"descriptors a waiting run         {(waiting['process_open_fds'] - before['process_open_fds']) / count:.2f}"
    )
    print(f"memory a waiting run              {each:.1f} KB")
    return right == count and peak < POOL and each < limit


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--limit", type=float, default=200.0)
    options = parser.parse_args()
    trio.run(main, options.runs, options.seconds, options.limit)
