"""Running scenarios in a copy of the repository, each mutation in a process of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import attrs

from tests.mutations.mutations import ROOT, GuardMoved, Mutation

PARTS = ("nurseries", "app", "tests", "docs")
FILES = ("pyproject.toml", "README.md")
SECONDS = 150
"""How long one process may take. Every scenario ends by itself long before; one that does not has failed at that."""

Verdict = Literal["noticed", "survived", "moved", "broken"]


@attrs.frozen
class Outcome:
    """What became of a mutation.

    Attributes:
        verdict: `noticed` is the only good one: the scenario ran and failed. `survived`: it passed. `moved`: the
            text of the guard is not there any more. `broken`: the scenario did not get to run, or to an end.
        detail: why, in a line.
    """

    verdict: Verdict
    detail: str = ""


@contextmanager
def copied_tree(original: Path = ROOT) -> Iterator[Path]:
    """Copy what the tests need, and what Python has compiled of it, for the body of the block."""
    with tempfile.TemporaryDirectory(prefix="nurseries-mutations-") as place:
        tree = Path(place)
        for part in PARTS:
            shutil.copytree(original / part, tree / part)
        for file in FILES:
            shutil.copy2(original / file, tree)
        yield tree


def unmutated(tree: Path, nodes: Iterable[str]) -> Outcome:
    """Run the scenarios as they are; they must all pass. This also compiles the copy."""
    code, said = _pytest(tree, sorted(set(nodes)), compile_files=True)
    return Outcome("survived") if code == 0 else Outcome("broken", said)


def mutated(tree: Path, mutation: Mutation) -> Outcome:
    """Take one guard away and run its scenario."""
    try:
        with mutation.applied(tree):
            code, said = _pytest(tree, [mutation.node])
    except GuardMoved as error:
        return Outcome("moved", str(error))
    except subprocess.TimeoutExpired:
        return Outcome("broken", f"did not end within {SECONDS} s")
    if code == 0:
        return Outcome("survived")
    return Outcome(
        "noticed" if code == 1 else "broken", said
    )  # other codes: nothing was run, or not to its end


def _pytest(tree: Path, nodes: list[str], *, compile_files: bool = False) -> tuple[int, str]:
    """Run tests; return pytest's exit status and the last line that says what was wrong."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"}
    # Of a changed file nothing must stay; an empty value stands for none.
    environment["PYTHONDONTWRITEBYTECODE"] = "" if compile_files else "1"
    options = ["-q", "-x", "-p", "no:cacheprovider", "--show-capture=no", "--tb=line"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *nodes],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
        text=True,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR ", "E  "))]
    return done.returncode, (said or done.stdout.splitlines() or [""])[-1]
