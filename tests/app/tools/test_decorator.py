"""Tools from plain functions."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
import trio
from msgspec import Meta

from app.tools.decorator import tool
from app.tools.schema import CallContext, InvalidArguments, ToolContext
from nurseries.context import UserContext


@tool
async def forecast(
    city: Annotated[str, Meta(min_length=1, description="Where.")],
    days: Annotated[int, Meta(ge=1, le=7)] = 1,
    *,
    unit: Literal["C", "F"] = "C",
    who: ToolContext,
) -> dict:
    """Tell the weather
    of the next days.

    Not for the model.
    """
    await trio.lowlevel.checkpoint()
    return {"city": city, "days": days, "unit": unit, "for": who.context.user_id}


@tool(name="shout_it", description="Make it loud.", seconds=2)
def shout(text: str, who: CallContext) -> str:
    return f"{text.upper()} ({who.context.user_id}, {who.call_id})"


def test_the_signature_is_the_schema_and_the_docstring_the_description():
    """A model is told the parameters with their bounds and defaults, and nothing of the context."""
    told = forecast.describe()
    assert (told.name, told.description) == ("forecast", "Tell the weather of the next days.")
    assert set(told.parameters["properties"]) == {"city", "days", "unit"}
    assert told.parameters["required"] == ["city"]
    assert told.parameters["properties"]["days"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 7,
        "default": 1,
    }
    assert told.parameters["properties"]["city"]["description"] == "Where."
    assert (shout.name, shout.description, shout.seconds) == ("shout_it", "Make it loud.", 2)


async def test_an_asynchronous_function_gets_its_arguments_and_who_asks(house):
    """Defaults are filled in, and the context comes from the request."""
    async with house.request() as (request, _):
        who = ToolContext(request.context, request.database)
        result = await forecast.function(who, forecast.parse({"city": "Ulm", "unit": "F"}))
    assert result == {"city": "Ulm", "days": 1, "unit": "F", "for": request.context.user_id}
    assert forecast.is_async


def test_a_plain_function_stays_plain_so_that_it_runs_in_a_thread():
    """It is called without a loop, with who asks and the call's id alone."""
    asked = CallContext(UserContext(user_id="ann", thread_id="t-1", run_id="r-1"), "c-1")
    assert not shout.is_async
    assert shout.function(asked, shout.parse({"text": "hey"})) == "HEY (ann, c-1)"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({}, "city"),
        ({"city": ""}, "city"),
        ({"city": "Ulm", "days": 8}, "days"),
        ({"city": "Ulm", "unit": "K"}, "unit"),
        ({"city": "Ulm", "who": "bob"}, "who"),
        ({"city": "Ulm", "user_id": "bob"}, "user_id"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, word):
    """A model cannot leave out, exceed, or add; who asks is no argument."""
    with pytest.raises(InvalidArguments, match=word):
        forecast.parse(arguments)


def no_type(city):
    """Say."""


def starred(*cities: str):
    """Say."""


def silent(city: str): ...


def streams(city: str):
    """Say."""
    yield city


def shared(cities: list[str] = ["Ulm"]):  # noqa: B006  # the mistake that is refused
    """Say."""


def identity(user_id: str):
    """Say."""


def twice(one: CallContext, two: CallContext):
    """Say."""


def database_in_a_thread(who: ToolContext):
    """Say."""


async def too_little(who: CallContext):
    """Say."""


def odd(city: trio.Nursery):
    """Say."""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_type, "city: needs a type"),
        (starred, "cities: arguments have names"),
        (silent, "needs a docstring"),
        (streams, "does not yield"),
        (shared, "cities: a default that can change"),
        (identity, "user_id"),
        (twice, "one and two"),
        (database_in_a_thread, "who: a plain function"),
        (too_little, "who: an asynchronous function"),
        (odd, "odd"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused_at_import(function, words):
    """The mistake is named where the module is imported, before the server listens."""
    with pytest.raises((TypeError, ValueError), match=words):
        tool(function)


def test_an_optional_argument_may_be_left_out():
    """An empty default list is made anew for each call, so that no two share it."""

    @tool
    def join(words: list[str] = [], sep: str | None = None) -> str:  # noqa: B006  # msgspec copies it
        """Join."""
        return (sep or " ").join(words)

    first, second = join.parse({}), join.parse({})
    assert first.words == []
    assert first.words is not second.words
    assert msgspec.structs.asdict(second) == {"words": [], "sep": None}
