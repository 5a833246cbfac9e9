"""Several models in order: the first that begins to answer answers, and nothing it said is ever said again."""

from __future__ import annotations

import math
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from app.engine.model import Usage
from app.engine.models.errors import ModelFailure, ModelInterrupted, ModelRefused, ModelUnavailable, TimedOut
from app.engine.models.provider import Progress
from nurseries.breaker import Breaker, BreakerOpen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from app.engine.model import Conversation, Piece
    from app.engine.models.provider import Provider
    from nurseries.breaker import Admission

BREAKER_FAILURES: Final = 5
BREAKER_SECONDS: Final = 15.0
PATIENCE_SECONDS: Final = 10.0
"""How long an answer may wait for a model to be asked again, once all have failed."""

RETRY_SECONDS: Final = 1.0
"""How long it waits where nobody said how long."""

logger = structlog.get_logger(__name__)


@attrs.frozen
class ModelStatistics:
    """One model at one instant.

    Attributes:
        state: of its breaker: `closed`, `open` or `half-open`.
        busy_seconds: how long it still wants to be left alone.
        answered: answers that it began, so far.
        failed: tries that failed, so far.
    """

    name: str
    state: str
    busy_seconds: float
    answered: int
    failed: int


@attrs.define(eq=False)
class Candidate:
    """One model of a cascade, and how it has been doing. What it counts is of all users together, and no content.

    Attributes:
        name: as it is configured.
        first_token_seconds, between_tokens_seconds: its time limits.
    """

    name: str
    provider: Provider
    first_token_seconds: float
    between_tokens_seconds: float
    breaker: Breaker = attrs.field(
        factory=lambda: Breaker(threshold=BREAKER_FAILURES, cooldown=BREAKER_SECONDS)
    )
    busy_until: float = -math.inf
    answered: int = 0
    failed: int = 0

    def admit(self) -> Admission:
        """Ask to try it now.

        Raises:
            ModelFailure: it is to be left alone; `retry_after` says for how long.
        """
        busy = self.busy_until - trio.current_time()
        if busy > 0:
            raise ModelFailure(status=429, retry_after=busy)
        try:
            return self.breaker.admit()
        except BreakerOpen as error:
            raise ModelFailure("has been failing", retry_after=error.retry_after) from None

    def blame(self, failure: ModelFailure, admission: Admission | None) -> None:
        """Remember how a try failed; without an admission, one that the breaker thinks well of already."""
        self.failed += 1
        if failure.retry_after is not None:
            self.busy_until = trio.current_time() + failure.retry_after
        if admission is not None:
            (admission.failed if failure.counts else admission.succeeded)()
        logger.warning(
            "model failed",
            model=self.name,
            reason=str(failure),
            status=failure.status,
            kind=failure.kind,
            retry_after=failure.retry_after,
        )
        if failure.detail:
            logger.debug("model's own words", model=self.name, detail=failure.detail)


class ModelCascade:
    """A model that is the first of several which answers.

    Whatever fails before the first piece has been handed on, the next one is asked. Once it has been, a failure ends
    the answer: to begin again would repeat what was said, or do again what was asked of tools.

    If all of them fail, and at least one may answer within `PATIENCE_SECONDS`, the answer waits for it and asks once
    more all that may. A model that did not answer in time is not asked again for the same answer.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = tuple(candidates)

    @asynccontextmanager
    async def stream(self, conversation: Conversation) -> AsyncIterator[AsyncIterator[Piece]]:
        """Open the answer to the last turn.

        Raises:
            ModelUnavailable: on entering; no model answers now.
            ModelRefused: on entering; all refuse this request.
            ModelInterrupted: at a piece; the model broke off.
        """
        async with AsyncExitStack() as stack:
            yield await self._open(stack, conversation)

    def statistics(self) -> list[ModelStatistics]:
        """Return how the models are doing, in their order."""
        now = trio.current_time()
        return [
            ModelStatistics(
                each.name,
                each.breaker.state,
                max(each.busy_until - now, 0.0),
                each.answered,
                each.failed,
            )
            for each in self._candidates
        ]

    def shared(self) -> tuple[type, ...]:
        """Return the types of what the users of the models share by design."""
        return (
            ModelCascade,
            Candidate,
            *(kind for each in self._candidates for kind in each.provider.shared()),
        )

    async def _open(self, stack: AsyncExitStack, conversation: Conversation) -> _Answer:
        failures: dict[Candidate, ModelFailure] = {}
        answer = await self._ask(self._candidates, stack, conversation, failures)
        if answer is None:
            again = {each: _wait(failure) for each, failure in failures.items() if failure.transient}
            soonest = min(again.values(), default=math.inf)
            if soonest <= PATIENCE_SECONDS:
                await trio.sleep(soonest)
                answer = await self._ask(tuple(again), stack, conversation, failures)
        if answer is None:
            raise _summary(failures)
        return answer

    async def _ask(
        self,
        candidates: Sequence[Candidate],
        stack: AsyncExitStack,
        conversation: Conversation,
        failures: dict[Candidate, ModelFailure],
    ) -> _Answer | None:
        """Ask one after the other until one begins to answer; put into `failures` why the others do not."""
        for candidate in candidates:
            try:
                return await _begin(candidate, stack, conversation)
            except ModelFailure as failure:
                failures[candidate] = failure
        return None


async def _begin(candidate: Candidate, stack: AsyncExitStack, conversation: Conversation) -> _Answer:
    """Ask one model and wait for its first piece; on success its stream belongs to `stack`.

    Raises:
        ModelFailure: nothing has been handed on.
    """
    admission = candidate.admit()
    try:
        async with AsyncExitStack() as attempt:
            answer = await _first_piece(candidate, attempt, conversation)
            answer.keep(admission)
            attempt.callback(answer.leave)
            await stack.enter_async_context(attempt.pop_all())
            return answer
    except ModelFailure as failure:
        candidate.blame(failure, admission)
        raise
    except BaseException:
        admission.abandoned()
        raise


async def _first_piece(candidate: Candidate, attempt: AsyncExitStack, conversation: Conversation) -> _Answer:
    with trio.move_on_after(candidate.first_token_seconds) as limit:
        pieces = await attempt.enter_async_context(candidate.provider.stream(conversation))
    if limit.cancelled_caught:
        raise TimedOut("did not answer in time")
    answer = _Answer(candidate, pieces)
    await answer.begin(max(limit.deadline - trio.current_time(), 0.0))
    return answer


class _Answer:
    """The pieces of one answer: first who gives it, then what it says."""

    def __init__(self, candidate: Candidate, pieces: AsyncIterator[Piece | Progress]) -> None:
        self._candidate = candidate
        self._pieces = pieces
        self._admission: Admission | None = None
        self._ready: deque[Piece] = deque([Usage(0, 0, candidate.name)])

    async def begin(self, seconds: float) -> None:
        """Wait for the first piece, or for the end of an answer that has none, without handing it on."""
        piece = await self._receive(seconds, "did not answer in time")
        if piece is not None:
            self._ready.append(piece)

    def keep(self, admission: Admission) -> None:
        """Tell the breaker at the end how it went; but if others wait for that, tell them now that it answers."""
        self._candidate.answered += 1
        if self._candidate.breaker.state == "closed":
            self._admission = admission
        else:
            admission.succeeded()

    def leave(self) -> None:
        """Nobody wants more of it, or there is no more."""
        if self._admission is not None:
            self._admission.succeeded()
            self._admission = None

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> Piece:
        if self._ready:
            await trio.lowlevel.checkpoint()
            return self._ready.popleft()
        candidate = self._candidate
        try:
            piece = await self._receive(candidate.between_tokens_seconds, "paused for too long")
        except ModelFailure as failure:
            candidate.blame(failure, self._admission)
            self._admission = None
            raise ModelInterrupted(
                f"The language model {candidate.name} did not finish its answer: it {failure}."
            ) from None
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def _receive(self, seconds: float, late: str) -> Piece | None:
        """Return the next piece that can be handed on; None at the end of the answer."""
        while True:
            with trio.move_on_after(seconds) as limit:
                piece = await anext(self._pieces, None)
            if limit.cancelled_caught:
                raise TimedOut(late)
            if isinstance(piece, Usage):
                return attrs.evolve(piece, model=self._candidate.name)
            if not isinstance(piece, Progress):
                return piece
            seconds = self._candidate.between_tokens_seconds


def _wait(failure: ModelFailure) -> float:
    return RETRY_SECONDS if failure.retry_after is None else failure.retry_after


def _summary(failures: dict[Candidate, ModelFailure]) -> ModelUnavailable | ModelRefused:
    """Put into words why there is no answer."""
    reasons = ", ".join(f"{each.name} {failure}" for each, failure in failures.items())
    if all(failure.final for failure in failures.values()):
        return ModelRefused(f"No language model takes this request: {reasons}.")
    wait = min(_wait(failure) for failure in failures.values() if not failure.final)
    return ModelUnavailable(f"No language model answers just now: {reasons}.", retry_after=max(wait, 1.0))
