"""What a tool is, and how its arguments are checked before it runs."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec

from nurseries.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nurseries.context import UserContext
    from nurseries.postgres.scoped import ScopedDatabase

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")

# Who asks is never a parameter: a model writes the arguments, and a model says what it was told to say.
_IDENTITY: Final = frozenset({"user_id", "run_id", "request_id", "parent_request_id", "websocket_client_id"})


class InvalidArguments(CallerError):
    """Arguments that do not fit a tool's parameters; the message names the field."""

    code = "invalid_arguments"


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every tool's parameters: typed, bounded with `msgspec.Meta`, nothing unknown accepted."""


@attrs.frozen
class CallContext:
    """All that a plain function gets besides its arguments. It runs in a thread, where there is no database.

    Attributes:
        context: who asks.
        call_id: the same in every attempt at one call: a call that a lost server cut off is made again.
    """

    context: UserContext
    call_id: str = ""


@attrs.frozen
class ToolContext:
    """All that an asynchronous function gets besides its arguments.

    Attributes:
        context: who asks.
        database: that user's rows and nobody else's.
        call_id: as in `CallContext`.
    """

    context: UserContext
    database: ScopedDatabase
    call_id: str = ""


@attrs.frozen
class ToolDescription:
    """What a model is told of a tool; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


@attrs.frozen
class JSONSchema:
    """Parameters of a tool that somebody else checks, such as an MCP server: what a model is told of them.

    Attributes:
        text: the schema as JSON, which requests can share, as they could not a dictionary.
    """

    text: bytes


def _check_parameters(_tool: object, _attribute: object, value: type[Parameters] | JSONSchema) -> None:
    if isinstance(value, JSONSchema):
        return
    if not (isinstance(value, type) and issubclass(value, Parameters)):
        raise TypeError("parameters must be a subclass of Parameters")
    if not (value.__struct_config__.forbid_unknown_fields and value.__struct_config__.frozen):
        raise TypeError(f"{value.__name__} must stay frozen and refuse unknown fields")
    if named := _IDENTITY.intersection(value.__struct_fields__):
        raise ValueError(
            f"{value.__name__}: identity comes from the context, never from {', '.join(sorted(named))}"
        )


def _check_seconds(_tool: object, _attribute: object, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise ValueError("seconds must be positive and finite")


@attrs.frozen(eq=False)
class Tool:
    """Something that a model may ask for.

    Attributes:
        name: how a model calls it: lower case letters, digits and underscores.
        description: when to use it, for the model and for people.
        parameters: the type of its arguments, or the JSON schema of those that its function checks itself; the
            function is given a dictionary then.
        function: `async def (context: ToolContext, parameters)`; or a plain `def (context: CallContext,
            parameters)`, which runs in a worker thread and so has no database. It returns JSON values, attrs
            or msgspec objects. A `CallerError` that it raises is told in its own words, another error by
            its type alone.
        seconds: its time limit, where it differs from the dispatcher's.
        approval: whether its user must approve each call before it is made.
        repeatable: whether a call that a lost server cut off may simply be made again. If not, the model is
            told that nobody knows how it came out.
    """

    name: str = attrs.field(validator=attrs.validators.matches_re(_NAME))
    description: str = attrs.field(validator=attrs.validators.min_len(1))
    parameters: type[Parameters] | JSONSchema = attrs.field(validator=_check_parameters)
    function: Callable[[Any, Any], Any] = attrs.field(validator=attrs.validators.is_callable())
    seconds: float | None = attrs.field(default=None, validator=_check_seconds)
    approval: bool = False
    repeatable: bool = True

    @property
    def is_async(self) -> bool:
        """Whether the function runs on the loop rather than in a thread."""
        return inspect.iscoroutinefunction(self.function)

    def parse(self, arguments: object) -> Parameters | dict[str, Any]:
        """Return the typed arguments.

        Raises:
            InvalidArguments: a field is missing, unknown, of another type or out of bounds.
        """
        kind: Any = dict[str, Any] if isinstance(self.parameters, JSONSchema) else self.parameters
        try:
            parsed: Parameters | dict[str, Any] = msgspec.convert(arguments, kind)
        except msgspec.ValidationError as error:
            raise InvalidArguments(f"arguments: {error}") from None
        return parsed

    def describe(self) -> ToolDescription:
        """Return what a model is told."""
        return ToolDescription(self.name, self.description, msgspec.json.decode(self._schema))

    @cached_property
    def _schema(self) -> bytes:
        """The JSON schema of the parameters. Making it costs as much as a whole step of the engine without it."""
        if isinstance(self.parameters, JSONSchema):
            return self.parameters.text
        _, components = msgspec.json.schema_components([self.parameters])
        schema = components.pop(self.parameters.__name__)
        if components:
            schema["$defs"] = components
        return msgspec.json.encode(schema)
