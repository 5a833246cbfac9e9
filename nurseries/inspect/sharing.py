"""Finding what two users both reach and either could change.

    findings = shared_between({"alice": [request_a], "bob": [request_b]})

A walk starts from each owner's roots. What a second owner reaches is shared from then on: state that is shared is
a finding, and what lies below it belongs to that finding; a shell that is shared is opened once more, for the
second owner. So every object is opened at most twice, however many owners there are.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from nurseries.inspect.infrastructure import KERNEL
from nurseries.inspect.kinds import NOTHING, STATE, is_blank
from nurseries.inspect.paths import describe, type_name
from nurseries.inspect.reach import Reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nurseries.inspect.kinds import Infrastructure
    from nurseries.inspect.paths import Label

OBJECTS: Final = 1_000_000
"""How many objects the roots of a test may hold."""

MAX_FINDINGS: Final = 100


class TooManyObjects(Exception):
    """There was more to look at than the limit allows, so that nothing found means nothing."""


@attrs.frozen
class Finding:
    """One object that two owners reach and that can change. It says where it is, never what is in it.

    Attributes:
        kind: how it is held: `attribute`, `item`, `local variable`, `closure`, `default argument`,
            `class attribute`, `module variable`, `context variable`, `root`, or `reference`.
        type: its type, with the module.
        paths: the two owners that were seen first, each with the way from its root.
    """

    kind: str
    type: str
    paths: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        ways = "; ".join(f"{owner} by {path}" for owner, path in self.paths)
        return f"{self.kind}: a shared {self.type}: {ways}"


def shared_between(
    scopes: Mapping[str, Iterable[object]], *, infrastructure: Infrastructure = KERNEL, objects: int = OBJECTS
) -> list[Finding]:
    """Return what can change and is reached from more than one scope, in one synchronous look.

    Args:
        scopes: each owner's roots; `nurseries.inspect.roots` finds those of a request or a session.
        infrastructure: what may be shared.
        objects: how many objects may be looked at.

    Raises:
        TooManyObjects: there are more.
    """
    walk = Walk(Reach(infrastructure))
    for owner, roots in scopes.items():
        for root in roots:
            walk.enter(owner, root)
        if not walk.step(objects - walk.objects):
            raise TooManyObjects(f"more than {objects} objects")
    return list(walk.findings())


@attrs.frozen
class Shared:
    """An object with two owners, and how the second one came to it."""

    thing: object
    first: str
    second: str
    via: object


class Walk:
    """Looks at objects, as many at a time as it is told.

    It holds on to all it has seen until it is dropped: an address stands for one object only while that lives.

    Attributes:
        objects: how many were looked at.
        shared: the state that is shared, in the order of discovery.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        # By address: the object, its first owner, where from. A tuple for each would be as many objects more for the
        # cyclic collector, which would then look through the whole process at once, in the middle of the walk.
        self._seen: dict[int, object] = {}
        self._owners: dict[int, str] = {}
        self._vias: dict[int, object] = {}
        self._again: dict[int, tuple[str, object]] = {}  # of what is shared: the second owner, where from
        self._waiting: deque[object] = deque()
        self._owner = ""
        self.objects = 0
        self.shared: list[Shared] = []

    def enter(self, owner: str, root: object) -> None:
        """Add a root of an owner; that of another one when all those before are done."""
        assert owner == self._owner or not self._waiting
        self._owner = owner
        self._reached(root, None)

    def step(self, count: int) -> bool:
        """Open up to `count` objects; say whether all are done."""
        waiting, inside = self._waiting, self._reach.inside
        while waiting and count > 0:
            thing = waiting.popleft()
            count -= 1
            self.objects += 1
            for held in inside(thing):
                self._reached(held, thing)
        return not waiting

    def findings(self) -> Iterator[Finding]:
        """Return what is shared, for people; at most `MAX_FINDINGS`, and no two that read alike."""
        told: set[Finding] = set()
        for shared in self.shared:
            ways = {owner: self._way(owner, shared.thing) for owner in (shared.first, shared.second)}
            paths = tuple((owner, way.text) for owner, way in ways.items())
            finding = Finding(ways[shared.second].kind, type_name(shared.thing), paths)
            if finding not in told and len(told) < MAX_FINDINGS:
                told.add(finding)
                yield finding

    def _way(self, owner: str, thing: object) -> Label:
        """Return how an owner reached something, from the root on."""
        way = [thing]
        while (via := self._via(owner, way[-1])) is not None:
            way.append(via)
        return describe(way[::-1], self._reach)

    def _via(self, owner: str, thing: object) -> object:
        if self._owners[id(thing)] == owner:
            return self._vias[id(thing)]
        again = self._again.get(id(thing))
        return again[1] if again is not None and again[0] == owner else None

    def _reached(self, thing: object, via: object) -> None:
        kind = self._reach.kind(thing)
        if kind == NOTHING:
            return
        address, owner = id(thing), self._owner
        first = self._owners.get(address)
        if first is None:
            self._seen[address] = thing
            self._owners[address] = owner
            self._vias[address] = via
            self._waiting.append(thing)
        elif first != owner and address not in self._again:
            self._again[address] = (owner, via)
            if kind != STATE:
                self._waiting.append(thing)
            elif not is_blank(thing):
                self.shared.append(Shared(thing, first, owner, via))
