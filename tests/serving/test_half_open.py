"""A peer that is gone without a word: its system answers nothing any more, as behind a cable that was pulled.

No proxy stands between: TCP itself must find out, or the heartbeat. Seconds pass, since only the system's clock tells.
"""

import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving import http2_peer
from tests.serving.house import serving, taking_one
from tests.serving.peer import GET, UPGRADE, frame

LIMITS = ServingLimits(heartbeat_seconds=1, write_seconds=600, close_seconds=0.2)


@pytest.mark.parametrize("path", [b"/wait", b"/stream", b"/endless"])
async def test_handler_of_a_request_hears_of_it(path):
    """Whether it says nothing, little, or as much as it can."""
    async with serving(LIMITS) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", path + b" ") + b"\r\n")
        await house.wait_for(lambda: house.events)
        peer.vanish()
        await house.wait_for(lambda: house.events == ["began", "ended"])
        await house.wait_alone()


async def test_handlers_of_http2_hear_of_it(certificates):
    """All that share the connection."""
    async with http2_peer.quick(certificates, limits=LIMITS) as house, http2_peer.client(house) as made:
        await made.ask(1, "/wait")
        await made.ask(3, "/stream")
        await house.wait_for(lambda: house.events == ["began"] * 2)
        made.peer.vanish()
        await house.wait_for(lambda: house.events == ["began"] * 2 + ["ended"] * 2)
        await house.wait_alone()


async def test_who_takes_no_message_hears_of_it():
    """Though unread messages wait, and nobody sends a ping meanwhile."""
    ended = trio.Event()
    async with serving(LIMITS, websocket=taking_one(ended)) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/full") + b"\r\n" + frame(b"x") * 100)
        await peer.head()
        peer.vanish()
        await ended.wait()
        await house.wait_alone()


async def test_a_silent_peer_that_is_there_stays():
    """The probes of the system are answered by the peer's, however busy both ends are with nothing."""
    async with serving(LIMITS) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", b"/wait ") + b"\r\n")
        await house.wait_for(lambda: house.events)
        async with house.connect() as other:
            await other.send(GET.replace(b"/ ", b"/wait ") + b"\r\n")
            await house.wait_for(lambda: house.events == ["began"] * 2)
            other.vanish()
            await house.wait_for(lambda: house.statistics.connections == 2)
        assert house.events == ["began", "began", "ended"]
