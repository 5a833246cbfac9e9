"""A server in a process of its own, so that its memory can be watched; prints its port."""

import sys
from pathlib import Path

import trio

from nurseries.serving import Certificates, Listener, ServingLimits
from tests.serving.house import echo, make_app

LIMITS = ServingLimits(
    deflate=True,
    requests_per_second=1e6,
    request_burst=10**6,
    frames_per_minute=1e9,  # what bounds memory must not be the rate
    frame_burst=10**9,
    write_seconds=60,
    close_seconds=1,
)


async def main(directory: str | None) -> None:
    """Serve until killed."""
    certificates = None
    if directory is not None:
        certificates = Certificates(Path(directory, "certificate.pem"), Path(directory, "key.pem"))
    listener = Listener(http=make_app([]), websocket=echo, port=0, limits=LIMITS, certificates=certificates)
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(listener.serve)
        print(urls[0].rpartition(":")[2], flush=True)  # noqa: T201  # how its port is learned


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
