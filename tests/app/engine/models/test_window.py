"""Which turns of a conversation fit into a model's window."""

from hypothesis import given
from hypothesis import strategies as st

from app.engine.model import Conversation, ModelTurn, ToolCall, ToolTurn, UserTurn
from app.engine.models.window import LEFT_OUT, estimate_tokens, fit
from app.tools.calls import ToolResult
from app.tools.schema import ToolDescription


def calling(number, size=0):
    """Return a call, and its result of so many characters."""
    call = ToolCall(f"c{number}", "t", {"n": number})
    result = ToolResult(f"c{number}", "t", ok=True, milliseconds=1, result="r" * size)
    return ModelTurn("", (call,)), ToolTurn((result,))


WORDS = st.integers(0, 3000).map(lambda size: "w" * size)
CALLS = st.builds(calling, st.integers(0, 9), st.integers(0, 3000))
ANSWERS = st.lists(CALLS | st.builds(lambda text: (ModelTurn(text),), WORDS), max_size=4)
EXCHANGES = st.builds(
    lambda question, answer: (UserTurn(question), *(turn for step in answer for turn in step)), WORDS, ANSWERS
)
STRAYS = st.lists(st.builds(ModelTurn, WORDS), max_size=2)
CONVERSATIONS = st.builds(
    lambda system, stray, exchanges: Conversation(
        system, (*stray, *(turn for exchange in exchanges for turn in exchange))
    ),
    WORDS,
    STRAYS,
    st.lists(EXCHANGES, min_size=1, max_size=5),
)


@given(CONVERSATIONS, st.integers(0, 8000))
def test_what_is_kept(conversation, tokens):
    """The latest turns, whole exchanges of them, and always the last question; calls stay with their results."""
    fitted = fit(conversation, tokens)
    turns, kept = conversation.turns, fitted.turns
    last = max(at for at, turn in enumerate(turns) if isinstance(turn, UserTurn))
    assert isinstance(kept[0], UserTurn)
    assert any(turn is turns[last] for turn in kept)
    tail = len(turns) - len(kept)
    if kept[0] is turns[last]:
        steps = kept[1:]
        assert all(
            mine is theirs for mine, theirs in zip(steps, turns[len(turns) - len(steps) :], strict=True)
        )
    else:
        assert all(mine is theirs for mine, theirs in zip(kept, turns[tail:], strict=True))
    for at, turn in enumerate(kept):
        if isinstance(turn, ToolTurn):
            before = kept[at - 1]
            assert [call.call_id for call in before.calls] == [result.call_id for result in turn.results]
    if turns[-1] is not turns[last]:
        assert kept[-1] is turns[-1]
    everything = estimate_tokens(conversation.system) + sum(map(estimate_tokens, turns))
    if everything <= tokens:
        assert len(kept) == len(turns) - next(
            at for at, turn in enumerate(turns) if isinstance(turn, UserTurn)
        )
        assert fitted.system == conversation.system
    size = estimate_tokens(fitted.system) + sum(map(estimate_tokens, kept))
    steps_kept = sum(isinstance(turn, ModelTurn) for turn in kept)
    assert size <= tokens + 8 or (kept[0] is turns[last] and steps_kept <= 1)


@given(CONVERSATIONS, st.integers(0, 8000))
def test_more_room_keeps_more(conversation, tokens):
    """A larger window never holds less, and what fits is not fitted again."""
    fitted = fit(conversation, tokens)
    assert len(fitted.turns) <= len(fit(conversation, tokens + 100).turns)
    assert fit(fitted, 10**9).turns == fitted.turns


def test_the_model_learns_that_something_is_missing():
    """Its instructions say so, once; it can tell the user."""
    turns = (UserTurn("x" * 3000), ModelTurn("y"), UserTurn("q"))
    fitted = fit(Conversation("Be brief.", turns), 200)
    assert fitted.turns == turns[2:]
    assert fitted.system == "Be brief." + LEFT_OUT
    assert fit(Conversation("Be brief.", turns), 2000) == Conversation("Be brief.", turns)


def test_tools_take_room():
    """What the model is told of its tools counts."""
    tools = (ToolDescription("t", "d" * 3000, {"type": "object"}),)
    turns = (UserTurn("x" * 300), ModelTurn("y"), UserTurn("q"))
    assert fit(Conversation("", turns, tools), 1000).turns == turns[2:]
    assert fit(Conversation("", turns), 1000).turns == turns


def test_an_estimate_is_rather_too_high():
    """Three bytes a token: English takes less, Chinese about as many characters as tokens."""
    assert 33 <= estimate_tokens("x" * 100) <= 50
    assert 100 <= estimate_tokens(UserTurn("\u5b57" * 100)) <= 120
    assert estimate_tokens("\ud800") > 0
