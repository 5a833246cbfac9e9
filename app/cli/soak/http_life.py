"""What a user does over HTTP: runs that are waited for or watched, pages, logins, refreshes, deletions."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import trio

from app.cli.failures import Unreachable
from app.cli.soak.caller import Unexpected
from app.cli.soak.socket_life import load_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.cli.client import Api
    from app.cli.credentials import Credentials
    from app.cli.soak.caller import Caller
    from app.cli.soak.tap import Witness


class HttpLife:
    """One user's ways with HTTP, in a conversation of its own. Every method is one thing, from beginning to end."""

    def __init__(  # noqa: PLR0913  # who, where, with what
        self,
        api: Api,
        credentials: Credentials,
        caller: Caller,
        witness: Witness,
        thread_id: str,
        foreign_thread: Callable[[], str],
    ) -> None:
        self._api = api
        self._credentials = credentials
        self._caller = caller
        self._witness = witness
        self._thread = thread_id
        self._foreign_thread = foreign_thread

    async def wait(self) -> None:
        """Start a run and wait for its outcome."""
        started = trio.current_time()
        try:
            outcome = await self._run(self._thread, self._question())
        except Unreachable:
            # The run goes on, and its events would stand between those of the next one, as if some were lost.
            self._thread = await self._caller.thread()
            raise
        if outcome["status"] != "completed":
            raise Unexpected(f"status {outcome['status']}")
        self._count(started)

    async def watch_run(self) -> None:
        """Start a run and watch it to its end as it happens."""
        after = await self._last_seq(self._thread)
        started = trio.current_time()
        path = f"/v1/threads/{self._thread}/runs"
        async with self._caller.events("POST", path, self._thread, after, self._question()) as source:
            last = None
            while (event := await source.next()) is not None:
                last = event
        if last is None or last.type != "agent_completed":
            raise Unexpected(f"{last.type if last else 'nothing'} at the end of a run's stream")
        self._count(started)

    async def leave_run(self) -> None:
        """Start a run that ends with its stream, and leave in the middle."""
        after = await self._last_seq(self._thread)
        body = {"content": load_order(events=50, sleep_ms=3000), "agent": "load", "on_disconnect": "cancel"}
        path = f"/v1/threads/{self._thread}/runs"
        async with self._caller.events("POST", path, self._thread, after, body) as source:
            while (event := await source.next()) is not None and event.type != "agent_started":
                pass
        if event is None:
            raise Unexpected("a run's stream that ended before it began")
        # This is answered when the run is gone, so that the next one finds the conversation quiet.
        await self._caller.call("POST", f"{path}/{event.run_id}/cancel", {})

    async def watch_thread(self) -> None:
        """Read the log again from anywhere in it, to its end."""
        last_seq = await self._last_seq(self._thread)
        if not last_seq:
            return
        after = random.randrange(max(0, last_seq - 1000), last_seq)
        path = f"/v1/threads/{self._thread}/events?after={after}"
        async with self._caller.events("GET", path, self._thread, after) as source:
            while (event := await source.next()) is not None and event.seq < last_seq:
                pass
        if event is None:
            raise Unexpected("a thread's stream that ended")

    async def read(self) -> None:
        """Look at the conversations and at what was said."""
        await self._caller.call("GET", "/v1/threads?limit=20")
        await self._caller.call("GET", f"/v1/threads/{self._thread}/messages?limit=50")
        await self._caller.call("GET", "/v1/me")
        await self._caller.call("GET", "/v1/agents")

    async def refresh(self) -> None:
        """Trade the refresh token for a new pair."""
        self._credentials.expire()
        await self._credentials.token()

    async def log_in_and_out(self, email: str, password: str) -> None:
        """Open a second session, and end it: its token is worth nothing afterwards."""
        tokens = await self._api.login(email, password)
        await self._api.call("POST", "/v1/auth/logout", token=tokens.access_token)
        try:
            await self._api.me(tokens.access_token)
        except Unreachable:
            raise
        except Exception:  # noqa: BLE001  # a refusal is what must come
            return
        raise Unexpected("a token that outlived its session")

    async def delete(self) -> None:
        """Delete a conversation in the middle of a run."""
        thread = await self._caller.thread()
        body = {"content": load_order(sleep_ms=5000), "agent": "load"}
        await self._caller.call("POST", f"/v1/threads/{thread}/runs", body)
        await self._caller.call("DELETE", f"/v1/threads/{thread}")
        await self._caller.refused(404, "GET", f"/v1/threads/{thread}")

    async def pry(self) -> None:
        """Ask for what is somebody else's: it is answered as what does not exist."""
        thread = self._foreign_thread()
        await self._caller.refused(404, "GET", f"/v1/threads/{thread}")
        await self._caller.refused(404, "GET", f"/v1/threads/{thread}/messages")
        await self._caller.refused(404, "POST", f"/v1/threads/{thread}/runs", {"content": "hello"})
        await self._caller.refused(404, "DELETE", f"/v1/threads/{thread}")
        await self._caller.refused(422, "POST", "/v1/threads", {"user_id": "somebody"})

    async def repeat(self) -> None:
        """Send the same thing twice under one key: it happens once. Another thing under that key is refused."""
        key, path = str(uuid4()), f"/v1/threads/{self._thread}/runs"
        body = {"content": self._witness.canary}
        first = await self._caller.call("POST", path, body, key=key)
        second = await self._caller.call("POST", f"{path}?wait=true", body, key=key)
        if first["run_id"] != second["run_id"]:
            raise Unexpected("a key that started two runs")
        await self._caller.refused(422, "POST", path, {"content": "another thing"}, key=key)

    def _question(self) -> dict[str, Any]:
        if random.random() < 0.5:
            return {"content": load_order(), "agent": "load"}
        return {
            "content": f"my word is {self._witness.canary}\ncalculate 7 / 3\nsearch {self._witness.canary}"
        }

    async def _run(self, thread: str, body: dict[str, Any]) -> dict[str, Any]:
        outcome: dict[str, Any] = await self._caller.call(
            "POST", f"/v1/threads/{thread}/runs?wait=true", body
        )
        self._witness.marks.add(self._witness.user_id, outcome["run_id"])
        return outcome

    async def _last_seq(self, thread: str) -> int:
        found: int = (await self._caller.call("GET", f"/v1/threads/{thread}"))["last_seq"]
        return found

    def _count(self, started: float) -> None:
        self._witness.tally.turns += 1
        self._witness.tally.completion.append(trio.current_time() - started)
