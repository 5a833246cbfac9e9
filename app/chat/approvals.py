"""What a person says to a call that needs it: first come, first counted, and kept by the run that asked."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import attrs
import trio

from app.errors import InvalidField, NotFound
from app.store import approvals as store
from app.tools.ledger import Decided
from nurseries.errors import Conflict, Draining

if TYPE_CHECKING:
    from app.audit.event import Audit, Kind, SecurityEvent
    from app.audit.refusals import Caller
    from app.chat.runs import Runs
    from app.tools.ledger import Decision
    from nurseries.request import Request

MAX_NOTE: Final = 1000
MAX_CALL_ID: Final = 200
LOOK_SECONDS: Final = 30.0
"""How often the wall clock is looked at: an approval expires by it, whatever has become of our own clock."""

# A run's id, or that of an operation inside it: `<run id>_<operation>_<8 hex>`.
_ASKED_BY: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:_[A-Za-z0-9._-]{1,500})?")


class AlreadyDecided(Conflict):
    """It was decided otherwise, by somebody, by the time, or by the end of its run."""

    code = "already_decided"


@attrs.define(eq=False)
class Question:
    """One call that waits for a decision, in a run of this server.

    Attributes:
        decided: what was decided; the first decision counts.
        answered: set with the first decision.
        settled: set when the decision is in the database, or never will be.
    """

    expires_at: datetime
    decided: Decided | None = None
    answered: trio.Event = attrs.field(factory=trio.Event)
    settled: trio.Event = attrs.field(factory=trio.Event)

    @classmethod
    def expiring(cls, seconds: float) -> Question:
        """Return a new one, which expires in so many seconds by the wall clock."""
        return cls(datetime.now(UTC) + timedelta(seconds=seconds))

    def decide(self, decision: Decision, note: str | None = None) -> None:
        """Decide, unless it is decided or the time for it is over."""
        if self.decided is None:
            in_time = datetime.now(UTC) < self.expires_at
            self.decided = Decided(decision, note) if in_time else Decided("expired")
            self.answered.set()

    def stand(self, decided: Decided) -> None:
        """Take what the database says: it was decided in an earlier life of the run."""
        self.decided = decided
        self.answered.set()
        self.settled.set()

    async def wait(self) -> Decided:
        """Return what was decided; when the time is over, that it is."""
        await trio.lowlevel.checkpoint()
        while self.decided is None:
            seconds = (self.expires_at - datetime.now(UTC)).total_seconds()
            if seconds <= 0:
                self.decide("expired")
            with trio.move_on_after(max(0.0, min(seconds, LOOK_SECONDS))):
                await self.answered.wait()
        assert self.decided is not None
        return self.decided


class Approvals:
    """Passes on what users decide to the runs that asked them, and tells the audit trail who decided."""

    def __init__(self, runs: Runs, audit: Audit) -> None:
        self._runs = runs
        self._audit = audit

    async def answer(  # noqa: PLR0913  # who says what to which call
        self,
        request: Request,
        asked_by: str,
        call_id: str,
        decision: Decision,
        note: str | None = None,
        *,
        caller: Caller,
        thread_id: str | None = None,
    ) -> Question | None:
        """Tell a run what its user decided about a call; the same decision again is harmless.

        Args:
            request: of the user who decides.
            asked_by: the run id that the question's event carries.
            call_id: the call's.
            decision: `approve` or `deny`.
            note: told to the model with a denial.
            caller: from where, and in which login, for the audit trail.
            thread_id: where the run must be, if that was said.

        Returns:
            The question, which is settled as soon as the decision is in the database; None if it was before.

        Raises:
            NotFound: this user was not asked about such a call.
            AlreadyDecided: otherwise.
            Draining: the run has left this server, undecided.
        """
        if note is not None and len(note) > MAX_NOTE:
            raise InvalidField("note", f"longer than {MAX_NOTE} characters")
        match = _ASKED_BY.fullmatch(asked_by)
        if match is None or len(call_id) > MAX_CALL_ID or not call_id.isprintable():
            raise NotFound("no such approval")
        row = await _row(request, asked_by, call_id)
        if thread_id is not None and row.thread_id != thread_id:
            raise NotFound("no such approval")
        if row.decision is not None:
            _compare(row.decision, decision)
            return None
        run = self._runs.live(request.context.user_id, match[1])
        if run is None:
            raise Draining("the run goes on after the restart of the server: decide then")
        question: Question = run.questions.setdefault((asked_by, call_id), Question(row.expires_at))
        first = question.decided is None
        question.decide(decision, note)
        assert question.decided is not None
        _compare(question.decided.decision, decision)
        if first:
            self._audit(_told(row, match[1], decision, caller))
        return question

    async def settle(
        self, request: Request, asked_by: str, call_id: str, decision: Decision
    ) -> store.Approval:
        """Return the approval as it stands in the database, where this decision was the first.

        Raises:
            AlreadyDecided: it was not.
            Draining: it is not there.
        """
        row = await _row(request, asked_by, call_id)
        if row.decision is None:
            raise Draining("the run has not taken the decision: decide again")
        _compare(row.decision, decision)
        return row


async def _row(request: Request, asked_by: str, call_id: str) -> store.Approval:
    row = await store.get(request.database, asked_by, call_id)
    if row is None:
        raise NotFound("no such approval")
    return row


def _told(row: store.Approval, run_id: str, decision: Decision, caller: Caller) -> SecurityEvent:
    """Return what the audit trail is told of a decision: not the note, which is a user's own words."""
    kind: Kind = "call_approved" if decision == "approve" else "call_denied"
    event = caller.event(kind, tool=row.tool, id=f"{row.run_id}:{row.call_id}")
    return attrs.evolve(event, thread_id=row.thread_id, run_id=run_id)


def _compare(decided: str, decision: Decision) -> None:
    if decided != decision:
        raise AlreadyDecided(f"decided otherwise: {decided}")
