"""Mutations: a guard taken away by replacing text, and the scenario that must fail without it. `guards.toml` has them."""

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("guards.toml")
OLDER = 10**10
"""Nanoseconds by which a changed file differs from the one that Python has compiled: it trusts nothing else."""


class GuardMoved(Exception):
    """The text that a mutation replaces is not in its file exactly once: the mutation says nothing any more."""


@attrs.frozen
class Edit:
    """One replacement in a file of the product."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """Return the file's text without the guard.

        Raises:
            GuardMoved: the guard is not there, or there twice.
        """
        if text.count(self.old) != 1:
            raise GuardMoved(f"{self.file}: found {text.count(self.old)} times: {self.old.strip()}")
        return text.replace(self.old, self.new)


@attrs.frozen
class Mutation:
    """A guard, how it is taken away, and the test that notices.

    Attributes:
        name: what is done, as a few words.
        guard: what the product does about it.
        scenario: pytest's name of the test, below `tests/scenarios/`.
    """

    name: str
    guard: str
    scenario: str
    edits: tuple[Edit, ...]

    @property
    def node(self) -> str:
        """Return the test's name as pytest takes it."""
        return f"tests/scenarios/{self.scenario}"

    @contextmanager
    def applied(self, tree: Path) -> Iterator[None]:
        """Take the guard away in a copy of the repository, for the body of the block."""
        before = {}
        try:
            for edit in self.edits:
                path = tree / edit.file
                if not path.exists():
                    raise GuardMoved(f"{edit.file} is not there")
                text, times = path.read_text(), path.stat()
                before.setdefault(path, (text, times))
                path.write_text(edit.applied(text))
                os.utime(path, ns=(times.st_atime_ns, before[path][1].st_mtime_ns - OLDER))
            yield
        finally:
            for path, (text, times) in before.items():
                path.write_text(text)
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def mutations() -> list[Mutation]:
    """Return all mutations, in the order of the file."""
    found = tomllib.loads(TABLE.read_text())["mutation"]
    return [
        Mutation(each["name"], each["guard"], each["scenario"], tuple(Edit(**edit) for edit in each["edit"]))
        for each in found
    ]
