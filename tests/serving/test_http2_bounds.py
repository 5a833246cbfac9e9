"""HTTP/2: what a peer within the protocol could have the server keep or do without end, and does not."""

import h2.settings
import pytest
from h2.errors import ErrorCodes

from nurseries.serving import ServingLimits
from tests.serving.http2_peer import SETTINGS, client, h2frame, quick

UNLIMITED = ServingLimits(requests_per_second=1e6, request_burst=10**6, http2_control_frames=50)


async def test_peer_that_remembers_all_headers(certificates):
    """However much it offers to remember: what it is given to remember, and is searched each time, stays small."""
    async with quick(certificates, limits=UNLIMITED) as house, client(house) as made:
        made.connection.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 2**24})
        for index in range(200):
            await made.ask(2 * index + 1, f"/big?bytes={index}")
            await made.until(2 * index + 1)
        assert made.connection.decoder.header_table_size == 4_096
        assert len(made.connection.decoder.header_table.dynamic_entries) <= 4_096 // 32


async def test_updates_that_answer_data_are_free(certificates):
    """A client that gives back each piece at once, twice, is no flood, however long its download."""
    size = 3_000_000
    async with quick(certificates, limits=UNLIMITED) as house, client(house) as made:
        await made.ask(1, f"/big?bytes={size}")
        taken = updates = 0
        while 1 not in made.ended:
            assert await made.read(acknowledge=False)
            assert made.terminated is None
            new = len(made.bodies.get(1, b"")) - taken
            if new:
                taken += new
                made.connection.increment_flow_control_window(new)
                updates += 1
                if 1 not in made.ended:
                    made.connection.increment_flow_control_window(new, 1)
                    updates += 1
                await made.flush()
        assert taken == size
        assert updates > 2 * UNLIMITED.http2_control_frames


async def test_a_window_that_opens_byte_by_byte(certificates):
    """Data that a peer has sent to it byte by byte is sent so, until it has cost enough."""
    async with quick(certificates, limits=UNLIMITED) as house, client(house) as made:
        made.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1})
        await made.ask(1, "/big?bytes=1000")
        while made.terminated is None:
            assert await made.read(acknowledge=False)
            if made.terminated is None and made.bodies.get(1):
                made.connection.increment_flow_control_window(1, 1)
                await made.flush()
        assert made.terminated == ErrorCodes.ENHANCE_YOUR_CALM
        assert 1 < len(made.bodies[1]) < 200


async def test_no_extension_is_offered(certificates):
    """An application that sent trailers or pushes would send them to nobody, so it is not told that it may."""
    offered = []

    async def http(scope, receive, send):
        offered.append(scope["extensions"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with quick(certificates, http=http) as house, client(house) as made:
        await made.ask(1)
        await made.until(1)
    assert offered == [{}]


@pytest.mark.parametrize("size", [16_385, 2**24 - 1])
async def test_frame_that_is_too_long_is_refused_by_its_head(certificates, size):
    """None of it is collected first."""
    async with quick(certificates, limits=ServingLimits()) as house, client(house) as made:
        await made.ask(1, "/wait")  # so that it is not the idle connection that is closed
        await house.wait_for(lambda: house.events == ["began"])
        await made.peer.send(h2frame(SETTINGS, 0, 0, b"x", length=size))
        while made.terminated is None:
            assert await made.read()
        assert made.terminated == ErrorCodes.FRAME_SIZE_ERROR
