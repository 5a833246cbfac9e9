"""The frames of one HTTP/2 connection: h2's sans-I/O state machine on a wire, with backpressure and bounds.

There is no buffer and no sending task in here: who has something to say sends it, and waits as long as the peer
takes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.frame_buffer import FrameBuffer

from nurseries.serving.rates import Rate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hyperframe.frame import Frame

    from nurseries.serving.limits import ServingLimits
    from nurseries.serving.wire import Wire

GONE = (h2.exceptions.ProtocolError, KeyError)
"""What h2 raises when a stream or the connection has ended under a sender."""

_TABLE_BYTES = 4_096  # of our headers that are remembered for the peer; what HTTP/2 begins with
_LENGTH_BYTES = 3  # with which a frame begins (RFC 9113, 4.1)
_UPDATE_BYTES = 1_024  # of data sent pay for one WINDOW_UPDATE


class _Buffer(FrameBuffer):
    """Refuses a frame that is too long by its head. h2 collects all of it before it looks, up to 16 MiB."""

    def __next__(self) -> Frame:
        if len(self._data) >= _LENGTH_BYTES:
            self._validate_frame_length(int.from_bytes(self._data[:_LENGTH_BYTES], "big"))
        return super().__next__()


class Frames:
    """What one HTTP/2 connection hears and says.

    Its methods raise `GONE` for a stream that has ended, and `WireBroken` when they send and nobody is there.
    """

    def __init__(self, wire: Wire, limits: ServingLimits) -> None:
        codes = h2.settings.SettingCodes
        self._wire = wire
        self._write_seconds = limits.write_seconds
        self._window = trio.Event()  # set, and replaced, whenever somebody may be able to send again
        self._control = Rate(limits.http2_control_frames / 10, limits.http2_control_frames)
        self._unacknowledged = 0  # bytes of data that no WINDOW_UPDATE was counted for
        self._connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._connection.incoming_buffer = _Buffer(server=True)
        self._connection.decoder.max_header_list_size = limits.head_bytes
        self._connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: limits.http2_streams,
                codes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
            },
        )

    async def greet(self) -> None:
        """Send the settings of this side."""
        self._connection.initiate_connection()
        await self.flush()

    def take(self, data: bytes) -> list[h2.events.Event]:
        """Return what the peer has said with these bytes; `flush` sends what answers them.

        Raises:
            ProtocolError: it is not HTTP/2 any more; h2 has a GOAWAY to be flushed.
        """
        events = self._connection.receive_data(data)
        # The peer may offer to remember any amount of our headers. Each answer is searched for in all of it.
        encoder = self._connection.encoder
        encoder.header_table_size = min(encoder.header_table_size, _TABLE_BYTES)
        return events

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the peer send as much again."""
        if size:
            self._connection.acknowledge_received_data(size, stream_id)

    def count_update(self) -> bool:
        """Count a WINDOW_UPDATE, and tell whether it is one too many: it is free when it answers data."""
        self.open_window()
        if self._unacknowledged >= _UPDATE_BYTES:
            self._unacknowledged -= _UPDATE_BYTES
            return False
        return self.count()

    def count(self) -> bool:
        """Count a frame that costs the peer nothing, and tell whether it is one too many."""
        return self._control.take(trio.current_time()) > 0.0

    # -- sending -------------------------------------------------------------------------------------

    def headers(self, stream_id: int, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Have the head of a response sent."""
        self._connection.send_headers(stream_id, [(b":status", b"%d" % status), *headers])

    def room(self, stream_id: int) -> int:
        """Return how many bytes of data the peer takes now."""
        connection = self._connection
        return min(connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)

    async def wait_room(self) -> bool:
        """Wait until there may be more room, and tell whether that came within the write deadline."""
        with trio.move_on_after(self._write_seconds) as scope:
            await self._window.wait()
        return not scope.cancelled_caught

    def open_window(self) -> None:
        """Have everybody who waits for room look again."""
        self._window.set()
        self._window = trio.Event()

    async def data(self, stream_id: int, data: bytes) -> None:
        """Send a piece of a body for which there is room."""
        self._connection.send_data(stream_id, data)
        self._unacknowledged += len(data)
        await self.flush()

    async def end(self, stream_id: int) -> None:
        """Say that a response is complete."""
        self._connection.end_stream(stream_id)
        await self.flush()

    def reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        """Have a stream cut, unless it has ended."""
        try:
            self._connection.reset_stream(stream_id, code)
        except GONE:
            return

    async def go_away(self, code: h2.errors.ErrorCodes) -> None:
        """Say that the connection is over."""
        self._connection.close_connection(code)
        await self.flush()

    async def flush(self) -> None:
        """Send all that waits to be sent."""
        data = self._connection.data_to_send()
        if data:
            await self._wire.send(data)
