"""What the server says of itself during a soak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio

from app.cli.audit import ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.cli.audit import Report as AuditReport
    from app.cli.client import Api

SAMPLE_SECONDS: Final = 2.0
AUDIT_SECONDS: Final = 20.0
REST_SECONDS: Final = 30.0
"""How long a server may take to come to rest when nobody wants anything any more."""


@attrs.define(eq=False)
class Watch:
    """Looks at a server again and again, as an administrator.

    Attributes:
        memory: seconds since the beginning, and the bytes that the process took then.
        audits: the isolation audits that it asked for.
        orphans: the most that were seen at once.
        status: the latest one.
        at_rest: whether everything was given back in the end.
    """

    api: Api
    token: Callable[[], Awaitable[str]]
    memory: list[tuple[float, float]] = attrs.field(factory=list)
    audits: list[AuditReport] = attrs.field(factory=list)
    orphans: int = 0
    status: dict[str, Any] = attrs.field(factory=dict)
    at_rest: bool = False

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        started = trio.current_time()
        next_audit = started + AUDIT_SECONDS / 2
        while True:
            await self.look()
            now = trio.current_time()
            self.memory.append((now - started, float(self.status["memory"]["rss_bytes"])))
            if now >= next_audit:
                await self.audit()
                next_audit = now + AUDIT_SECONDS
            await trio.sleep(SAMPLE_SECONDS)

    async def look(self) -> None:
        """Ask for the status."""
        text = await self.api.text("/v1/admin/status", await self.token())
        self.status = msgspec.json.decode(text)
        self.orphans = max(self.orphans, int(self.status["leaks"]["orphans"]))

    async def audit(self) -> None:
        """Have the server audit itself."""
        self.audits.append((await ask(self.api, await self.token()))[1])

    async def rest(self) -> None:
        """Wait until nothing is open any more, for a while."""
        with trio.move_on_after(REST_SECONDS):
            while not self.at_rest:
                await self.look()
                self.at_rest = not any(self.left().values())
                if not self.at_rest:
                    await trio.sleep(0.5)

    def left(self) -> dict[str, int]:
        """Return what was open at the last look."""
        status = self.status
        return {
            "sockets": status["sessions"]["open"],
            "listeners": status["sessions"]["users"],
            "runs": status["runs"]["open"],
            "requests": status["runs"]["requests"],
            "connections": status["pool"]["checked_out"],
            "contexts": status["leaks"]["contexts_kept"],
            "orphans": status["leaks"]["orphans"],
        }
