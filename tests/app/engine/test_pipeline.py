"""The pipeline: stages in order, results of the declared types, and what becomes of a failed stage."""

import json
from typing import Annotated, Any

import attrs
import msgspec
import pytest

from app.agents import AgentRequest, Pipeline, Stage, agent
from app.engine.checkpoints import Checkpoint, NoCheckpoints, Past
from app.engine.engine import run_agent
from app.engine.registry import AgentRegistry
from app.engine.stages import accepts
from nurseries.request import open_request
from tests.app.engine.playing import catalog_of, play


@attrs.frozen
class Order:
    """What is ordered."""

    goods: list[str]
    prices: dict[str, int] = attrs.field(factory=dict)


class Note(msgspec.Struct):
    """Something written down."""

    text: str


async def parse(request: AgentRequest, text: str) -> Order:
    return Order(text.split())


async def price(request: AgentRequest, order: Order) -> Order:
    return attrs.evolve(order, prices={good: len(good) for good in order.goods})


async def write(request: AgentRequest, order: Order) -> str:
    return ", ".join(f"{good}: {order.prices.get(good, '?')}" for good in order.goods)


async def loud(request: AgentRequest, text: str) -> str:
    return text.upper()


async def broken(request: AgentRequest, order: Order) -> Order:
    raise ZeroDivisionError("a secret")


def pipeline(*stages, **fields):
    return type("Shop", (Pipeline,), {"name": "shop", "description": "Sells.", "stages": stages, **fields})


# -- what passes ------------------------------------------------------------------------------------------


async def test_what_one_returns_the_next_one_takes(house):
    """Objects pass as they are; the user sees each stage begin and end, and the last one's text as the answer."""
    shop = pipeline(Stage(parse), Stage(price), Stage(write))
    played = await play(house, catalog_of(shop), shop, "tea milk")
    assert played.output == "tea: 3, milk: 4"
    assert played.said == ["tea: 3, milk: 4"]
    assert played.result.usage == {"sub_agents": 3}
    stages = [step for step in played.story() if step[1] != "message_delta"]
    assert stages == [
        (1, kind, stage)
        for stage in ("parse", "price", "write")
        for kind in ("agent_started", "agent_completed")
    ]
    outputs = [e["payload"]["output"] for e in played.envelopes if e["type"] == "agent_completed"]
    assert json.loads(outputs[1]) == {"goods": ["tea", "milk"], "prices": {"tea": 3, "milk": 4}}
    assert outputs[2] == played.output


async def test_a_stage_has_a_request_of_its_own(house):
    """A child of the pipeline's, with its tools, its agents and the user's message."""
    seen = []

    async def look(request: AgentRequest, text: str) -> str:
        seen.append(
            (
                request.context.operation_depth,
                request.content,
                text,
                [tool.name for tool in request.tools.descriptions()],
                list(request.agents),
            )
        )
        await request.say("looking")
        return text + "!"

    shop = pipeline(Stage(look), Stage(look, name="again"), tools=("clock",), agents=("assistant",))
    played = await play(house, catalog_of(shop), shop, "hello")
    assert seen == [
        (1, "hello", "hello", ["clock"], ["assistant"]),
        (1, "hello", "hello!", ["clock"], ["assistant"]),
    ]
    assert played.output == "hello!!"
    assert "looking" not in played.output


async def test_an_agent_can_be_a_stage(house):
    """It takes text and returns text, and need not be declared a second time."""

    @agent
    async def echo(request):
        """Echoes."""
        return f"echo: {request.content}"

    shop = pipeline(Stage(loud), Stage("echo"), Stage(loud, name="louder"))
    played = await play(house, catalog_of(shop, echo), shop, "hello")
    assert played.output == "ECHO: HELLO"
    assert shop.agents == ("echo",)


@pytest.mark.parametrize("result", [5, None, ["x"], {"goods": "tea"}, {"goods": [1]}, {"foods": []}])
async def test_a_result_is_of_the_declared_type(house, result):
    """What is not fails the stage, and says what and where; nothing of it passes."""
    passed = []

    async def careless(request: AgentRequest, text: str) -> Order:
        return result

    async def next_one(request: AgentRequest, order: Order) -> str:
        passed.append(order)
        return ""

    shop = pipeline(Stage(careless), Stage(next_one))
    played = await play(house, catalog_of(shop), shop)
    assert played.result.code == "agent_failed"
    assert "the stage careless returned what it does not declare: " in played.result.message
    assert "(wrong_type)" in played.result.message
    assert passed == []


async def test_a_result_becomes_what_is_declared(house):
    """JSON values where an object is declared, and the bounds of the next stage are looked at, too."""

    async def sloppy(request: AgentRequest, text: str) -> Order:
        return {"goods": text.split()}

    async def count(request: AgentRequest, order: Order) -> int:
        return len(order.goods)

    async def few(request: AgentRequest, number: Annotated[int, msgspec.Meta(le=2)]) -> str:
        return f"{number} is few"

    shop = pipeline(Stage(sloppy), Stage(count), Stage(few))
    catalog = catalog_of(shop)
    assert (await play(house, catalog, shop, "a b")).output == "2 is few"
    many = (await play(house, catalog, shop, "a b c")).result
    assert "the stage few is given what it does not declare: Expected `int` <= 2" in many.message


# -- failures ---------------------------------------------------------------------------------------------


async def test_a_failed_stage_ends_the_run_unless_declared_otherwise(house):
    """Those after it do not begin."""
    shop = pipeline(Stage(parse), Stage(broken), Stage(write))
    played = await play(house, catalog_of(shop), shop)
    assert played.result.message.startswith("the agent broken failed: ")
    assert "secret" not in json.dumps(played.envelopes)
    assert [e["payload"].get("agent") for e in played.envelopes if e["type"] == "agent_started"] == [
        "parse",
        "broken",
    ]


async def test_a_skipped_stage_passes_on_what_it_was_given(house):
    """Or what is declared for that case, made anew for each run."""
    unchanged = pipeline(Stage(parse), Stage(broken, on_failure="skip"), Stage(write))
    assert (await play(house, catalog_of(unchanged), unchanged, "tea")).output == "tea: ?"

    seen = []

    async def spoil(request: AgentRequest, order: Order) -> str:
        order.goods.append("spoilt")
        seen.append(order.goods)
        return ", ".join(order.goods)

    async def fail(request: AgentRequest, text: str) -> Order:
        raise ZeroDivisionError

    instead = pipeline(Stage(fail, on_failure="skip", otherwise=Order(["bread"])), Stage(spoil))
    catalog = catalog_of(instead)
    for _ in range(2):
        assert (await play(house, catalog, instead, "tea")).output == "bread, spoilt"
    assert seen[0] is not seen[1]


async def test_a_stage_is_tried_again_as_often_as_declared(house, virtual_time):
    """With the same value each time."""
    tries = []

    async def flaky(request: AgentRequest, text: str) -> str:
        tries.append(text)
        if len(tries) < 3:
            raise ZeroDivisionError
        return text

    shop = pipeline(Stage(loud), Stage(flaky, retries=2))
    played = await play(house, catalog_of(shop), shop, "tea")
    assert played.output == "TEA"
    assert tries == ["TEA"] * 3
    assert played.result.usage["sub_agents"] == 4


async def test_a_pipeline_can_be_cancelled_everywhere(house, cancel_everywhere):
    """At every moment of a pipeline with rows, tools and a retry, nothing is left behind."""

    async def rows(request: AgentRequest, text: str) -> int:
        found = await request.database.fetch("SELECT count(*) FROM messages")
        await request.tools.call("c1", "clock", {})
        return found[0][0]

    async def tell(request: AgentRequest, number: int) -> str:
        await request.say("telling")
        return str(number)

    shop = pipeline(Stage(rows), Stage(tell), tools=("clock",))
    catalog = catalog_of(shop)
    context = house.context()

    async def scenario():
        async with open_request(house.kernel, context) as request:
            await run_agent(request, catalog, agent="shop", content="x", message_id="m1")

    async def nothing_left():
        assert house.kernel.live.requests == {}
        assert house.pool.statistics().checked_out == 0

    assert (await cancel_everywhere(scenario, nothing_left)).caught > 30


# -- going on ---------------------------------------------------------------------------------------------


class Notebook(NoCheckpoints):
    """Keeps checkpoints as a server's database would, and can lose its server at any of them."""

    keeping = True

    def __init__(self, last=None, until=None):
        self.past = Past(last=last)
        self._until = until

    @property
    def last(self):
        return self.past.last

    async def keep(self, output, state):
        step = self.last.step + 1 if self.last else 1
        self.past.last = Checkpoint(step, output, state)
        if step == self._until:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lost_after", [1, 2, 3])
async def test_a_resumable_pipeline_goes_on_behind_what_was_done(house, lost_after):
    """No stage is done twice, and its results are what they were."""
    done = []

    async def first(request: AgentRequest, text: str) -> Order:
        done.append("first")
        return Order(text.split())

    async def second(request: AgentRequest, order: Order) -> Note:
        done.append("second")
        return Note(" ".join(order.goods))

    async def third(request: AgentRequest, note: Note) -> str:
        done.append("third")
        return note.text

    shop = pipeline(Stage(first), Stage(second), Stage(third), resumable=True)
    catalog = catalog_of(shop)
    notebook = Notebook(until=lost_after)

    async def live(checkpoints):
        async with open_request(house.kernel, house.context()) as request:
            return await run_agent(
                request, catalog, agent="shop", content="tea milk", message_id="m1", checkpoints=checkpoints
            )

    with pytest.raises(KeyboardInterrupt):
        await live(notebook)
    assert len(done) == lost_after
    answer = await live(Notebook(notebook.last))
    assert answer.output == "tea milk"
    assert done == ["first", "second", "third"]


# -- mistakes ---------------------------------------------------------------------------------------------


class Opaque:
    """Has no JSON form."""


async def opaque(request: AgentRequest, text: str) -> Opaque:
    return Opaque()


async def unopaque(request: AgentRequest, thing: Opaque) -> str:
    return ""


async def untyped(request, text):
    return text


async def half_typed(request, text: str):
    return text


async def unknown(request, text: "Nonsense") -> str:  # noqa: F821
    return ""


async def one(request) -> str:
    return ""


def plain(request, text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((), "there must be stages"),
        ((parse,), "stages are `Stage`s"),
        ((Stage(parse),), "the answer must be str, but what 'parse' returns is Order"),
        ((Stage(price),), "stage 'price' takes Order, but the message is str"),
        ((Stage(parse), Stage(loud)), "stage 'loud' takes str, but what 'parse' returns is Order"),
        (
            (Stage(parse), Stage("assistant")),
            "stage 'assistant' takes str, but what 'parse' returns is Order",
        ),
        ((Stage(loud), Stage(loud)), "stage 'loud': another stage has this name"),
        ((Stage(loud, name="Very Loud"),), "stage 'Very Loud': lower case"),
        ((Stage(untyped),), "it does not say what it takes and returns"),
        ((Stage(half_typed),), "it does not say what it takes and returns"),
        ((Stage(unknown),), "its annotations: name 'Nonsense' is not defined"),
        ((Stage(one),), "stage 'one' must be `async def (request, value: ...) -> ...`"),
        ((Stage(plain),), "stage 'plain' must be `async def (request, value: ...) -> ...`"),
        ((Stage(5),), "stage '': lower case"),
        ((Stage(parse, on_failure="skip"), Stage(write)), "may be skipped, but takes str and returns Order"),
        (
            (Stage(parse, on_failure="skip", otherwise=5), Stage(write)),
            "otherwise: Expected `object`, got `int`",
        ),
    ],
)
def test_stages_that_do_not_fit_are_told_at_the_start(stages, said):
    """With the pipeline's name and the stage's."""
    with pytest.raises((TypeError, ValueError), match=r"Shop: ") as failed:
        AgentRegistry([pipeline(*stages)])
    assert said in str(failed.value)


def test_what_a_resumable_pipeline_passes_can_be_written_down():
    """Another one may pass whatever it likes."""
    AgentRegistry([pipeline(Stage(opaque), Stage(unopaque))])
    with pytest.raises(TypeError, match="stage 'opaque' of a resumable pipeline: "):
        AgentRegistry([pipeline(Stage(opaque), Stage(unopaque), resumable=True)])


@pytest.mark.parametrize(
    ("wanted", "given", "fits"),
    [
        (str, str, True),
        (str, int, False),
        (float, int, True),
        (int, float, False),
        (object, Order, True),
        (Any, Order, True),
        (Order | None, Order, True),
        (Order, Order | None, False),
        (int | str, str | int, True),
        (None, type(None), True),
        (list, list[int], True),
        (list[int], list, False),
        (list[float], list[int], True),
        (dict[str, int], dict[str, str], False),
        (Exception, ValueError, True),
        (Annotated[int, msgspec.Meta(ge=1)], int, True),
        (tuple[int, str], tuple[int, str], True),
        (list[int], set[int], False),
    ],
)
def test_types_fit(wanted, given, fits):
    """As far as types tell; bounds are looked at when there is a value."""
    assert accepts(wanted, given) is fits
