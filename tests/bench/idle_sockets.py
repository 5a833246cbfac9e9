"""What an idle socket costs the server, with its session, heartbeat and outbox, and what remains when all are closed.

    python -m tests.bench.idle_sockets [SOCKETS]

Starts a server of its own, opens the sockets, ten a user, and reads the server's own numbers: resident memory
from /metrics, tasks from /v1/admin/nurseries, descriptors from /metrics.
"""

import os
import re
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import trio

from tests.fixtures.handshake import upgraded

PASSWORD = "correct horse battery staple"
PER_USER = 10
ENVIRONMENT = {
    "NURSERIES_ACCOUNTS_HASH_COST_MEMORY_KIB": "8",
    "NURSERIES_SERVING_REQUESTS_PER_SECOND": "10000",
    "NURSERIES_SERVING_REQUEST_BURST": "10000",
    "NURSERIES_SERVING_CONNECTIONS_PER_ADDRESS": "20000",
}


async def tokens(http: httpx.AsyncClient, number: int) -> str:
    account = {"email": f"idle-{number}@example.org", "password": PASSWORD}
    (await http.post("/v1/auth/register", json=account)).raise_for_status()
    return (await http.post("/v1/auth/login", json=account)).raise_for_status().json()["access_token"]


async def open_idle(url: str, token: str, stack: AsyncExitStack) -> None:
    """Upgrade by hand and read the first frame: a client of a few hundred bytes."""
    host, _, port = url.removeprefix("http://").partition(":")
    stream = await stack.enter_async_context(await trio.open_tcp_stream(host, int(port)))
    await upgraded(stream, token)


async def measure(http: httpx.AsyncClient, admin: str) -> dict[str, float]:
    """Return resident bytes, descriptors, open sessions and tasks; two looks, since the first one itself allocates."""
    for _ in range(2):
        text = (await http.get("/metrics")).text
        tree = (await http.get("/v1/admin/nurseries", headers={"Authorization": f"Bearer {admin}"})).json()
    values = dict(re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE))
    return {
        "memory": float(values["process_resident_memory_bytes"]),
        "descriptors": float(values["process_open_fds"]),
        "sessions": float(values["nurseries_sessions"]),
        "tasks": float(tree["tasks"]),
    }


async def closed(http: httpx.AsyncClient, admin: str) -> dict[str, float]:
    """Measure once the server has seen all sockets go."""
    with trio.fail_after(60):
        while (now := await measure(http, admin))["sessions"]:
            await trio.sleep(0.1)
    return now


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="nurseries-bench-", dir="/tmp") as place:
        Path(place).chmod(0o711)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", f"{place}/data"],
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
        )
        try:
            await run(process, count)
        finally:
            process.terminate()
            await process.wait()


async def run(process: trio.Process, count: int) -> None:
    printed = b""
    while not (found := re.search(rb"listening on (\S+)\n.*#signin=(\S+)\n", printed, re.DOTALL)):
        printed += await process.stdout.receive_some()
    url, code = (text.decode() for text in found.groups())
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        admin = (await http.post("/v1/auth/signin", json={"code": code})).json()["access_token"]
        owned = [await tokens(http, number) for number in range(-(-count // PER_USER))]
        rounds = []
        for _ in range(3):  # the first round pays for what Python and the allocator keep for ever
            before = await closed(http, admin)
            async with AsyncExitStack() as stack:
                for number in range(count):
                    await open_idle(url, owned[number // PER_USER], stack)
                rounds.append((before, await measure(http, admin)))
        after = await closed(http, admin)
    first, last = rounds[0][0], rounds[-1]
    print(f"{count} idle sockets")
    print(
        f"memory a socket, first round   {(rounds[0][1]['memory'] - first['memory']) / count / 1024:6.1f} KiB"
    )
    print(f"tasks a socket                 {(last[1]['tasks'] - last[0]['tasks']) / count:6.2f}")
    print(f"descriptors a socket           {(last[1]['descriptors'] - last[0]['descriptors']) / count:6.2f}")
    print("after all were closed, against before the first:")
    print(
        f"  tasks {after['tasks'] - first['tasks']:+.0f}, descriptors {after['descriptors'] - first['descriptors']:+.0f}"
    )
    print(
        f"  memory {(after['memory'] - first['memory']) / 2**20:+.1f} MiB; between the last two rounds"
        f" {(last[0]['memory'] - rounds[-2][0]['memory']) / 2**20:+.1f} MiB"
    )


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
