"""Who a request is for. The only source of identity below the point where a request comes to be."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import attrs

from nurseries.errors import CallerError, InvalidContext
from nurseries.frozen import EMPTY, FrozenMapping, deep_freeze

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ID_LENGTH: Final = 512  # room for a run id of MAX_DEPTH operations
MAX_DEPTH: Final = 8
MAX_OPERATION_LENGTH: Final = 32

# Words that stand where an identifier was forgotten. Only whole values are refused: `contest-winner` is a
# name, `test` is an accident that would put two strangers into one account.
PLACEHOLDERS: Final = frozenset(
    "registry placeholder default mock test testing dummy sample example none null nil undefined unknown"
    " anonymous temp tmp todo fixme changeme user user_id userid thread thread_id run run_id request"
    " request_id id string xxx nan n/a na -".split(),
)
_OPERATION: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.IGNORECASE)


class DepthExceeded(CallerError):
    """An operation started an operation, and so on, deeper than `MAX_DEPTH`."""

    code = "depth_exceeded"


def _identifier(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise InvalidContext(attribute.name, f"must be a string, not {type(value).__name__}")
    if not value or value.isspace():
        raise InvalidContext(attribute.name, "must not be empty")
    if value != value.strip():
        raise InvalidContext(attribute.name, "must not begin or end with white space")
    if len(value) > MAX_ID_LENGTH:
        raise InvalidContext(attribute.name, f"longer than {MAX_ID_LENGTH} characters")
    if not value.isprintable():  # control characters, lone surrogates, line separators
        raise InvalidContext(attribute.name, "contains a character that cannot be printed")
    if value.casefold() in PLACEHOLDERS:
        raise InvalidContext(attribute.name, f"{value!r} is a placeholder, not an identifier")


def _depth(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or not 0 <= value <= MAX_DEPTH:
        raise InvalidContext(attribute.name, f"must be a whole number from 0 to {MAX_DEPTH}")


def _aware(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidContext(attribute.name, "must be a datetime with a time zone")


def _frozen_mapping(value: Any, _self: object, field: attrs.Attribute[Any]) -> FrozenMapping:
    if type(value) is FrozenMapping:
        return value  # made by `deep_freeze`: it cannot hold anything that changes
    frozen = deep_freeze(value, field.name)
    if not isinstance(frozen, FrozenMapping):
        raise InvalidContext(field.name, f"must be a mapping, not {type(value).__name__}")
    return frozen


_freeze: Final = attrs.Converter(_frozen_mapping, takes_self=True, takes_field=True)


@attrs.frozen(kw_only=True)
class UserContext:
    """One user, in one thread, in one run, in one request. Immutable all the way down.

    Attributes:
        user_id: whose data, events and budget this is.
        thread_id: the conversation.
        run_id: the unit of work that a user can cancel; its events carry this id.
        request_id: this request; a child operation has its own.
        parent_request_id: the request that this one is part of.
        operation_depth: 0 for what a user asked for, one more for each `child()`.
        agent_context: what the agent is told besides the message. Copied and frozen.
        audit_metadata: where the request came from, for the audit trail. Copied and frozen.
        websocket_client_id: the socket it came by, if it came by one.
        created_at: when it was made, in UTC.

    Raises:
        InvalidContext: at construction; `field` names the attribute, with the path inside a mapping.
    """

    user_id: str = attrs.field(validator=_identifier)
    thread_id: str = attrs.field(validator=_identifier)
    run_id: str = attrs.field(validator=_identifier)
    request_id: str = attrs.field(factory=lambda: str(uuid4()), validator=_identifier)
    parent_request_id: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_identifier)
    )
    operation_depth: int = attrs.field(default=0, validator=_depth)
    agent_context: Mapping[str, Any] = attrs.field(default=EMPTY, converter=_freeze)  # type: ignore[misc]  # mypy does not know Converter objects
    audit_metadata: Mapping[str, Any] = attrs.field(default=EMPTY, converter=_freeze)  # type: ignore[misc]  # mypy does not know Converter objects
    websocket_client_id: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_identifier)
    )
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC), validator=_aware)

    def child(self, operation: str, *, run_id: str | None = None) -> UserContext:
        """Return the context of an operation inside this one: same user and thread, ids of its own.

        Args:
            operation: a short name.
            run_id: the id that it had before it was cut off, if it goes on now.

        Raises:
            InvalidContext: `operation` is not a short name, or `run_id` is none of such an operation.
            DepthExceeded: this context is already at `MAX_DEPTH`.
        """
        if not _OPERATION.fullmatch(operation) or len(operation) > MAX_OPERATION_LENGTH:
            raise InvalidContext(
                "operation", f"must be a name of at most {MAX_OPERATION_LENGTH} letters, digits, . _ -"
            )
        if self.operation_depth >= MAX_DEPTH:
            raise DepthExceeded(f"operations are nested deeper than {MAX_DEPTH}")
        prefix = f"{self.run_id}_{operation}_"
        if run_id is not None and not run_id.startswith(prefix):
            raise InvalidContext("run_id", "must be that of such an operation inside this one")
        return attrs.evolve(
            self,
            run_id=run_id or f"{prefix}{uuid4().hex[:8]}",
            request_id=str(uuid4()),
            parent_request_id=self.request_id,
            operation_depth=self.operation_depth + 1,
            created_at=datetime.now(UTC),
        )
