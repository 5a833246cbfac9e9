"""The end of the process, where a thread does not end."""

import subprocess
import sys

BUSY = """
import duckdb, threading, trio
import app.cli

def endless(started):
    connection = duckdb.connect()
    trio.from_thread.run_sync(started.set)
    connection.execute("SELECT count(*) FROM range(1000000) a, range(1000000) b, range(1000000) c")

async def main():
    started = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio.to_thread.run_sync(endless, started, abandon_on_cancel=True))
        await started.wait()
        nursery.cancel_scope.cancel()
    print("served", flush=True)
    return 0

app.cli.app = lambda: trio.run(main)
app.cli.main()
"""


def test_a_thread_inside_a_library_does_not_change_the_status():
    """The process ends at once, with its own status, and without a word of the thread."""
    ended = subprocess.run(
        [sys.executable, "-c", BUSY], check=False, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "served\n", "")
