"""The cascade with models that do what a test wrote for them, in virtual time."""

from contextlib import aclosing, asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from app.engine.model import Conversation, TextPiece, ThinkingPiece, ToolCall, Usage, UserTurn
from app.engine.models.cascade import (
    BREAKER_FAILURES,
    BREAKER_SECONDS,
    PATIENCE_SECONDS,
    RETRY_SECONDS,
    Candidate,
    ModelCascade,
)
from app.engine.models.errors import ModelFailure, ModelInterrupted, ModelRefused, ModelUnavailable, TimedOut
from app.engine.models.provider import Progress

FIRST, BETWEEN = 60.0, 30.0
QUESTION = Conversation("", (UserTurn("q"),))


class Scripted:
    """A provider. Each time it is asked it follows the next of its scripts, and in the end the last one again.

    A script has pieces, failures that it raises, and numbers of seconds that it waits; what stands before `...`
    happens while the request is sent.
    """

    def __init__(self, *scripts):
        self.scripts = scripts
        self.asked = 0
        self.open = 0
        self.times = []

    @asynccontextmanager
    async def stream(self, conversation):
        assert conversation is QUESTION
        script = list(self.scripts[min(self.asked, len(self.scripts) - 1)])
        self.asked += 1
        self.times.append(trio.current_time())
        self.open += 1
        try:
            before = script.index(...) if ... in script else 0
            async for _ in self.follow(script[:before]):
                raise AssertionError("a piece before the stream")
            async with aclosing(self.follow(script[before + (... in script) :])) as pieces:
                yield pieces
        finally:
            self.open -= 1

    async def follow(self, script):
        await trio.lowlevel.checkpoint()
        for each in script:
            if isinstance(each, BaseException):
                raise each
            if isinstance(each, int | float):
                await trio.sleep(each)
            else:
                yield each


def cascade_of(*providers):
    names = "abcdefgh"
    return ModelCascade(
        [Candidate(name, each, FIRST, BETWEEN) for name, each in zip(names, providers, strict=False)]
    )


async def heard(cascade, *, until=None):
    """Return what an answer says, and the error that ends it."""
    pieces = []
    try:
        async with cascade.stream(QUESTION) as stream:
            async for piece in stream:
                pieces.append(piece)
                if until is not None and len(pieces) == until:
                    break
    except (ModelUnavailable, ModelRefused, ModelInterrupted) as error:
        return pieces, error
    return pieces, None


def words(pieces):
    return [piece.text for piece in pieces if isinstance(piece, TextPiece)]


DOWN = ModelFailure("cannot be reached")
BROKEN = ModelFailure(status=500)
REFUSED = ModelFailure(status=400)


def busy(seconds):
    return ModelFailure(status=429, retry_after=seconds)


HI = [TextPiece("hi"), Usage(3, 1)]


async def test_the_answer_tells_who_gives_it_first(autojump_clock):
    """Before the first piece there is the name; the tokens come at the end, and nothing is lost or repeated."""
    script = [ThinkingPiece("hm"), TextPiece("a"), Progress(), ToolCall("c", "t", {}), Usage(3, 1)]
    pieces, error = await heard(cascade_of(Scripted(script)))
    assert error is None
    assert pieces == [
        Usage(0, 0, "a"), ThinkingPiece("hm"), TextPiece("a"), ToolCall("c", "t", {}), Usage(3, 1, "a"),
    ]  # fmt: skip


async def test_an_answer_may_be_empty(autojump_clock):
    """A model that has nothing to say has answered."""
    second = Scripted(HI)
    pieces, error = await heard(cascade_of(Scripted([]), second))
    assert (pieces, error, second.asked) == ([Usage(0, 0, "a")], None, 0)


@pytest.mark.parametrize("where", ["while it is asked", "before its first piece"])
@pytest.mark.parametrize("failure", [DOWN, BROKEN, REFUSED, busy(5), FIRST + 1, busy(5000)], ids=str)
async def test_what_fails_before_its_first_piece_is_followed_by_the_next(autojump_clock, failure, where):
    """Whatever the failure is; and what it held is free before the next one is asked."""
    first = Scripted([failure, ..., *HI] if where == "while it is asked" else [..., Progress(), failure, *HI])
    second = Scripted(HI)
    second_asked_with = []
    stream = second.stream

    def watch(conversation):
        second_asked_with.append(first.open)
        return stream(conversation)

    second.stream = watch
    pieces, error = await heard(cascade_of(first, second))
    assert error is None
    assert pieces == [Usage(0, 0, "b"), TextPiece("hi"), Usage(3, 1, "b")]
    assert (first.asked, second_asked_with) == (1, [0])


@pytest.mark.parametrize("piece", [TextPiece("a"), ThinkingPiece("hm"), ToolCall("c", "t", {})])
@pytest.mark.parametrize("failure", [DOWN, BROKEN, BETWEEN + 1], ids=str)
async def test_what_fails_after_its_first_piece_ends_the_answer(autojump_clock, piece, failure):
    """Nobody else is asked, or something would be said or done twice. What was said has been heard."""
    second = Scripted(HI)
    first = Scripted([piece, failure, TextPiece("never")])
    pieces, error = await heard(cascade_of(first, second))
    assert pieces == [Usage(0, 0, "a"), piece]
    assert isinstance(error, ModelInterrupted)
    assert "language model a did not finish" in str(error)
    assert (second.asked, first.open) == (0, 0)


async def test_time_is_the_models_alone(autojump_clock):
    """It counts while the model is waited for, in every pause anew; not while the listener is busy."""
    script = [
        FIRST - 1,
        Progress(),
        BETWEEN - 1,
        Progress(),
        BETWEEN - 1,
        TextPiece("a"),
        BETWEEN - 1,
        TextPiece("b"),
    ]
    async with cascade_of(Scripted(script)).stream(QUESTION) as stream:
        said = []
        async for piece in stream:
            said.append(piece)
            await trio.sleep(1000)
    assert words(said) == ["a", "b"]


@pytest.mark.parametrize(
    "script", [[Progress(), BETWEEN + 1, *HI], [*[10, Progress()] * 3, BETWEEN + 1, *HI]]
)
async def test_a_pause_before_the_first_piece_is_a_pause(autojump_clock, script):
    """A model that has begun must go on, whether or not anything could be handed on."""
    second = Scripted(HI)
    pieces, error = await heard(cascade_of(Scripted(script), second))
    assert (pieces[0].model, error, second.asked) == ("b", None, 1)


async def test_the_first_limit_covers_asking_and_waiting(autojump_clock):
    """Forty seconds to connect and forty to begin are eighty, which is too long for sixty."""
    pieces, error = await heard(cascade_of(Scripted([40, ..., 40, *HI])))
    assert pieces == []
    assert isinstance(error, ModelUnavailable)
    assert "did not answer in time" in str(error)
    assert trio.current_time() == FIRST


async def test_parts_that_are_not_handed_on_are_no_pause(autojump_clock):
    """A long tool call comes in many parts and is handed on whole."""
    script = [*[20, Progress()] * 30, ToolCall("c", "t", {})]
    pieces, error = await heard(cascade_of(Scripted(script)))
    assert error is None
    assert len(pieces) == 2


async def test_a_busy_model_is_left_out_until_its_time(autojump_clock):
    """It is not asked before, also not for another answer."""
    first, second = Scripted([busy(100)], HI), Scripted(HI)
    cascade = cascade_of(first, second)
    for _ in range(3):
        await heard(cascade)
    assert (first.asked, second.asked) == (1, 3)
    assert cascade.statistics()[0].busy_seconds == 100
    await trio.sleep(99)
    await heard(cascade)
    assert first.asked == 1
    await trio.sleep(1)
    assert (await heard(cascade))[0][0].model == "a"


async def test_a_short_while_is_waited_for_once(autojump_clock):
    """All are asked again when the first of them may be; then the answer fails, and says when to come back."""
    first, second = Scripted([busy(PATIENCE_SECONDS)], [busy(40)]), Scripted([busy(100)])
    pieces, error = await heard(cascade_of(first, second))
    assert pieces == []
    assert isinstance(error, ModelUnavailable)
    assert error.retry_after == 40
    assert first.times == [0, PATIENCE_SECONDS]
    assert second.times == [0]


async def test_a_long_while_is_not_waited_for(autojump_clock):
    """The user is told at once."""
    _, error = await heard(cascade_of(Scripted([busy(PATIENCE_SECONDS + 1)])))
    assert error.retry_after == PATIENCE_SECONDS + 1
    assert trio.current_time() == 0


async def test_a_passing_failure_of_the_only_model_passes(autojump_clock):
    """Such as an idle connection that the server closed just then: it is asked once more."""
    model = Scripted([DOWN], HI)
    assert words((await heard(cascade_of(model)))[0]) == ["hi"]
    assert model.times == [0, RETRY_SECONDS]


@pytest.mark.parametrize(
    ("failures", "kind"),
    [
        ([REFUSED], ModelRefused),
        ([REFUSED, ModelFailure(status=401)], ModelRefused),
        ([REFUSED, DOWN], ModelUnavailable),
        ([TimedOut("did not answer in time")], ModelUnavailable),
    ],
)
async def test_the_error_says_whether_to_come_back(autojump_clock, failures, kind):
    """Where all refuse the request there is no use in it; what refused or was late is not asked a second time."""
    models = [Scripted([failure]) for failure in failures]
    _, error = await heard(cascade_of(*models))
    assert type(error) is kind
    assert all(str(failure) in str(error) for failure in failures)
    assert [model.asked for model in models] == [1 + failure.transient for failure in failures]


async def test_a_model_that_keeps_failing_is_not_asked_for_a_while(autojump_clock):
    """After some failures in a row its breaker opens; then one answer finds out, and the others do not wait for it."""
    first, second = Scripted(*[[BROKEN]] * BREAKER_FAILURES, [5, *HI]), Scripted(HI)
    cascade = cascade_of(first, second)
    for _ in range(BREAKER_FAILURES + 3):
        assert (await heard(cascade))[1] is None
    assert first.asked == BREAKER_FAILURES
    assert cascade.statistics()[0].state == "open"
    await trio.sleep(BREAKER_SECONDS)
    answers = []
    async with trio.open_nursery() as nursery:

        async def ask():
            answers.append((await heard(cascade))[0][0].model)

        for _ in range(3):
            nursery.start_soon(ask)
    assert sorted(answers) == ["a", "b", "b"]
    assert cascade.statistics()[0].state == "closed"
    assert (await heard(cascade))[0][0].model == "a"


async def test_a_probe_closes_the_breaker_with_its_first_piece(autojump_clock):
    """A long answer keeps nobody waiting for the news that the model answers again."""
    model = Scripted(*[[BROKEN]] * BREAKER_FAILURES, [TextPiece("a"), 20, 20, TextPiece("b")])
    cascade = cascade_of(model, Scripted(HI))
    for _ in range(BREAKER_FAILURES):
        await heard(cascade)
    await trio.sleep(BREAKER_SECONDS)
    async with cascade.stream(QUESTION) as stream:
        assert (await anext(stream)).model == "a"
        assert cascade.statistics()[0].state == "closed"


async def test_a_cancelled_probe_leaves_its_place_to_the_next(autojump_clock):
    """A breaker must not wait for ever for somebody who went away."""
    model = Scripted(*[[BROKEN]] * BREAKER_FAILURES, [50, *HI], HI)
    cascade = cascade_of(model, Scripted(HI))
    for _ in range(BREAKER_FAILURES):
        await heard(cascade)
    await trio.sleep(BREAKER_SECONDS)
    with trio.move_on_after(1) as scope:
        await heard(cascade)
    assert scope.cancelled_caught
    assert model.open == 0
    assert (await heard(cascade))[0][0].model == "a"


async def test_models_that_always_break_off_are_not_asked_for_a_while(autojump_clock):
    """A cut answer counts as a failure, though it began."""
    first, second = Scripted([TextPiece("a"), DOWN]), Scripted(HI)
    cascade = cascade_of(first, second)
    for _ in range(BREAKER_FAILURES):
        assert isinstance((await heard(cascade))[1], ModelInterrupted)
    assert words((await heard(cascade))[0]) == ["hi"]


@pytest.mark.parametrize("status", [400, 403, 413, 422, 429])
async def test_nobody_can_close_a_model_to_others(autojump_clock, status):
    """What a request itself is to blame for does not count against the model."""
    model = Scripted(*[[ModelFailure(status=status)]] * BREAKER_FAILURES * 2, HI)
    cascade = cascade_of(model, Scripted(HI))
    for _ in range(BREAKER_FAILURES * 2):
        await heard(cascade)
    assert (await heard(cascade))[0][0].model == "a"


async def test_whoever_has_heard_enough_is_no_failure(autojump_clock):
    """The stream is left at any piece, and the model is as well as before."""
    model = Scripted([TextPiece("a"), TextPiece("b"), 20, TextPiece("c")])
    cascade = cascade_of(model)
    for _ in range(BREAKER_FAILURES + 1):
        pieces, error = await heard(cascade, until=2)
        assert (words(pieces), error, model.open) == (["a"], None, 0)
    (statistics,) = cascade.statistics()
    assert (statistics.state, statistics.failed, statistics.answered) == ("closed", 0, BREAKER_FAILURES + 1)


async def test_a_fault_of_ours_is_not_the_models(autojump_clock):
    """It passes as it is, so that it is seen; nobody else is asked, and no breaker learns of it."""
    first, second = Scripted([ZeroDivisionError()]), Scripted(HI)
    cascade = cascade_of(first, second)
    with pytest.raises(ZeroDivisionError):
        await heard(cascade)
    with pytest.raises(KeyError):
        async with cascade_of(second).stream(QUESTION):
            raise KeyError
    assert (second.asked, first.open, second.open, cascade.statistics()[0].failed) == (1, 0, 0, 0)


# -- every combination ---------------------------------------------------------------------------------


@attrs.frozen
class Behaviour:
    """What a model does when it is asked: `before` its first piece, then pieces, then perhaps a failure."""

    before: ModelFailure | float | None
    pieces: int
    after: ModelFailure | float | None

    def script(self, name, attempt):
        parts = [
            self.before,
            ...,
            *(TextPiece(f"{name}{attempt}{n}") for n in range(self.pieces)),
            self.after,
        ]
        return [part for part in parts if part is not None]

    @property
    def begins(self):
        return not isinstance(self.before, ModelFailure) and (self.before or 0) < FIRST

    @property
    def transient(self):
        return isinstance(self.before, ModelFailure) and self.before.transient


FAILURES = st.sampled_from([DOWN, BROKEN, REFUSED, busy(3), busy(1000)])
BEHAVIOURS = st.builds(
    Behaviour,
    before=FAILURES | st.sampled_from([None, 5.0, FIRST + 5]),
    pieces=st.integers(1, 3),
    after=FAILURES | st.sampled_from([None, BETWEEN + 5]),
)


@given(st.lists(st.tuples(BEHAVIOURS, BEHAVIOURS), min_size=1, max_size=4))
def test_one_model_answers_and_nothing_is_said_twice(behaviours):
    """The first that begins is the only one that is heard, up to its failure; nobody is asked without need."""
    asked = []

    async def run():
        providers = []
        for name, twice in zip("abcd", behaviours, strict=False):
            provider = Scripted(*(each.script(name, attempt) for attempt, each in enumerate(twice)))
            stream = provider.stream

            def watch(conversation, name=name, stream=stream):
                asked.append(name)
                return stream(conversation)

            provider.stream = watch
            providers.append(provider)
        result = await heard(cascade_of(*providers))
        assert all(provider.open == 0 for provider in providers)
        return result

    pieces, error = trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    told = words(pieces)
    begun = pieces[0].model if pieces else None
    if begun is None:
        assert isinstance(error, (ModelUnavailable, ModelRefused))
        assert not any(first.begins for first, _ in behaviours)
        return
    attempt = asked.count(begun) - 1
    behaviour = behaviours["abcd".index(begun)][attempt]
    assert behaviour.begins
    assert told == [f"{begun}{attempt}{n}" for n in range(behaviour.pieces)]
    assert isinstance(error, ModelInterrupted) is (behaviour.after is not None)
    assert asked[-1] == begun
    before = asked[:-1]
    first_round = list("abcd"[: len(behaviours)])
    if attempt == 0 and begun not in before:
        assert before == first_round[: first_round.index(begun)]
    else:
        assert before[: len(first_round)] == first_round
        again = [name for name in first_round if behaviours["abcd".index(name)][0].transient]
        assert set(before[len(first_round) :]) <= set(again)
