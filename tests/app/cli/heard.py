"""A listener of a link that keeps what it is told."""

import trio


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.events = []
        self.others = []
        self.statuses = []
        self.gaps = []
        self._changed = trio.Event()

    def on_frame(self, frame, _raw):
        (self.events if frame.is_event else self.others).append(frame)
        self._wake()

    def on_status(self, text):
        self.statuses.append(text)
        self._wake()

    def on_gap(self, last_seq):
        self.gaps.append(last_seq)
        self._wake()

    def _wake(self):
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition):
        with trio.fail_after(60):
            while not condition():
                await self._changed.wait()

    async def until_ended(self, runs=1):
        await self.until(lambda: sum(frame.ends_run for frame in self.events) >= runs)

    @property
    def seqs(self):
        return [frame.seq for frame in self.events]
