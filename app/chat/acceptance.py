"""Accepting a message: what is refused, what is stored with it, and how a repeat is told from another use of a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from app.chat.keys import check_key, fingerprint
from app.errors import InvalidField, MessageTooLong, NotFound, RateLimited
from app.store import keys, runs
from app.wire.codec import encode_json
from nurseries.errors import Conflict

if TYPE_CHECKING:
    from app.chat.run import Ask, Run
    from app.chat.settings import RunSettings
    from app.chat.threads import ThreadRuns
    from nurseries.postgres.scoped import ScopedDatabase


class ThreadBusy(Conflict):
    """A run is active in the thread, and `on_conflict` is `reject`."""

    code = "thread_busy"


class KeyReused(InvalidField):
    """The idempotency key was used for something else."""

    code = "idempotency_key_reused"


@attrs.frozen
class Accepted:
    """The answer to an ask.

    Attributes:
        duplicate: the key was used before, and this is the first run's id.
        run: the run, while it lives.
        after: a number before the run's first event in its thread.
    """

    run_id: str
    duplicate: bool
    run: Run | None
    after: int = 0


def check(ask: Ask, settings: RunSettings) -> None:
    """Refuse what could not be accepted in any thread.

    Raises:
        InvalidField: the content or the key cannot be used; MessageTooLong: there is too much of it.
    """
    if not ask.content.strip():
        raise InvalidField("content", "must not be empty")
    if len(ask.content) > settings.message_characters:
        raise MessageTooLong("content", f"longer than {settings.message_characters} characters")
    check_key(ask.key, "client_id")


def admit(thread: ThreadRuns, ask: Ask, settings: RunSettings) -> None:
    """Refuse what the thread cannot take now.

    Raises:
        NotFound: it is being removed.
        ThreadBusy, RateLimited: its run is active, or its queue is full.
    """
    if thread.deleted:
        raise NotFound("no such thread")
    if thread.busy and ask.on_conflict == "reject":
        raise ThreadBusy("a run is active in this thread")
    if len(thread.queue) >= settings.queued_per_thread:
        raise RateLimited(f"{settings.queued_per_thread} runs wait in this thread already")


def row_of(run: Run, active: Run | None) -> runs.NewRun:
    """Return what is stored of a run, with what another server would have to know to run it."""
    ask = run.ask
    return runs.NewRun(
        run_id=run.run_id,
        thread_id=ask.thread_id,
        agent=ask.agent,
        message_id=run.context.request_id,
        content=ask.content,
        client_id=ask.client_id,
        on_conflict=ask.on_conflict,
        on_disconnect=ask.on_disconnect,
        replaces=active.run_id if active is not None and run.goes_ahead else None,
    )


def key_of(run: Run) -> keys.Key | None:
    """Return the run's idempotency key, if it has one, with what a repeat is answered."""
    if run.ask.key is None:
        return None
    return keys.Key(run.ask.key, _fingerprint(run.ask), encode_json({"run_id": run.run_id}).decode())


async def first_run(database: ScopedDatabase, ask: Ask) -> str | None:
    """Return the id of the run that was accepted under the ask's key, if there is one.

    Raises:
        KeyReused: something else was asked for under this key.
    """
    stored = None if ask.key is None else await keys.stored_answer(database, ask.key)
    if stored is None:
        return None
    asked, answer = stored
    if asked != _fingerprint(ask):
        raise KeyReused("client_id", "this idempotency key was used for something else")
    run_id: str = answer["run_id"]
    return run_id


def _fingerprint(ask: Ask) -> bytes:
    return fingerprint(ask.thread_id, ask.content, ask.agent, ask.on_conflict, ask.on_disconnect)
