"""The tables of docs/testing.md: the scenarios as their files have them, and the guards as `guards.toml` has them."""

import ast
from pathlib import Path

import attrs

from tests.mutations.mutations import ROOT, mutations

DOCUMENT = ROOT / "docs" / "testing.md"
SCENARIOS = ROOT / "tests" / "scenarios"
GROUPS = ("database_sessions", "context_factory", "concurrency", "sockets", "tokens", "dependencies")


@attrs.frozen
class Scenario:
    """One test function of a group."""

    file: str
    name: str
    text: str


@attrs.frozen
class Table:
    """A table that is written between two marks.

    Attributes:
        name: of the marks.
        text: as the code has it.
    """

    name: str
    text: str

    @property
    def marks(self) -> tuple[str, str]:
        """Return the lines around it."""
        return (
            f"<!-- {self.name}: written by python -m tests.mutations --tables -->\n",
            f"<!-- end of {self.name} -->\n",
        )

    def written(self, document: Path) -> str:
        """Return the table as it stands in the document."""
        begin, end = self.marks
        return document.read_text().partition(begin)[2].partition(end)[0].strip() + "\n"

    def write(self, document: Path) -> None:
        """Write it into the document."""
        begin, end = self.marks
        head, mark, rest = document.read_text().partition(begin)
        _, closing, tail = rest.partition(end)
        if not (mark and closing):
            raise ValueError(f"{document} has no place for the table of {self.name}")
        document.write_text(f"{head}{begin}\n{self.text}\n{end}{tail}")


def scenarios(group: str) -> list[Scenario]:
    """Return the scenarios of a group, in the order of its file."""
    path = SCENARIOS / f"test_{group}.py"
    return [
        Scenario(path.name, each.name, (ast.get_docstring(each) or "").replace("\n", " "))
        for each in ast.parse(path.read_text()).body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test_")
    ]


def tables() -> tuple[Table, Table]:
    """Return both tables as the code has them."""
    rows = ["| scenario | what it shows |", "| --- | --- |"]
    for group in GROUPS:
        about = (
            ast.get_docstring(ast.parse((SCENARIOS / f"test_{group}.py").read_text())) or ""
        ).splitlines()[0]
        rows.append(f"| **`{group}`** | **{about}** |")
        rows += [f"| {_plain(each.name)} | {each.text} |" for each in scenarios(group)]
    guards = ["| guard | taken away by | the scenario that fails |", "| --- | --- | --- |"]
    for each in mutations():
        file, _, test = each.scenario.partition("::")
        group = file.removeprefix("test_").removesuffix(".py")
        guards.append(f"| {each.guard} | {each.name} | `{group}`: {_plain(test)} |")
    return Table("scenarios", "\n".join(rows) + "\n"), Table("guards", "\n".join(guards) + "\n")


def _plain(test: str) -> str:
    """Return the name of a test for people."""
    return test.removeprefix("test_").replace("_", " ")
