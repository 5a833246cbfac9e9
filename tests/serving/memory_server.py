"""A server in a process of its own, so that its memory can be watched; prints its port."""

import sys
from pathlib import Path

import attrs
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


USUAL = ServingLimits()
LIMITED = attrs.evolve(LIMITS, frames_per_minute=USUAL.frames_per_minute, frame_burst=USUAL.frame_burst)


async def lazy(_scope, _receive, _send) -> None:
    """Be in no hurry to take a body, or to answer."""
    await trio.sleep_forever()


async def main(how: str, directory: str | None = None) -> None:
    """Serve until killed: with an `app`, with one that is `lazy`, or with the usual rate of frames, `limited`."""
    certificates = None
    if directory is not None:
        certificates = Certificates(Path(directory, "certificate.pem"), Path(directory, "key.pem"))
    listener = Listener(
        http=lazy if how == "lazy" else make_app([]),
        websocket=echo,
        port=0,
        limits=LIMITED if how == "limited" else LIMITS,
        certificates=certificates,
    )
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(listener.serve)
        print(urls[0].rpartition(":")[2], flush=True)  # noqa: T201  # how its port is learned


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
