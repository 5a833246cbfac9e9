"""Take each guard away in turn, and see that a scenario fails: `python -m tests.mutations [--jobs N] [--why] [WORD...]`.

Works on copies of the repository. Exits with 1 if a mutation survives, if the text of a guard has moved, if a
scenario could not be run to an end, or if one fails as it is. Words select the mutations whose guards, names or
scenarios contain one of them; `--tables` writes the tables of docs/testing.md instead.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from tests.mutations.mutations import Mutation, mutations
from tests.mutations.runs import Outcome, copied_tree, mutated, unmutated
from tests.mutations.tables import DOCUMENT, tables


def main() -> int:
    """Do what the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--tables", action="store_true", help="write the tables of docs/testing.md")
    parser.add_argument("--why", action="store_true", help="say how each scenario failed")
    arguments = parser.parse_args()
    if arguments.tables:
        for each in tables():
            each.write(DOCUMENT)
        return 0
    words = arguments.words or [""]
    chosen = [each for each in mutations() if any(word in _told(each) for word in words)]
    if not chosen:
        parser.error("no mutation has any of these words")
    return 0 if _all_noticed(chosen, arguments.jobs, why=arguments.why) else 1


def _told(mutation: Mutation) -> str:
    return f"{mutation.guard} {mutation.name} {mutation.scenario}"


def _all_noticed(chosen: Sequence[Mutation], jobs: int, *, why: bool) -> bool:
    begun = time.monotonic()
    with ExitStack() as stack:
        first = stack.enter_context(copied_tree())
        nodes = {each.node for each in chosen}
        whole = unmutated(first, nodes)
        if whole.verdict != "survived":
            _say(f"a scenario fails as it is: {whole.detail}")
            return False
        _say(f"{len(nodes)} scenarios pass as they are ({time.monotonic() - begun:.0f} s)")
        trees = SimpleQueue()
        for tree in [first, *(stack.enter_context(copied_tree(first)) for _ in range(jobs - 1))]:
            trees.put(tree)

        def run(mutation: Mutation) -> tuple[Mutation, Outcome, float]:
            tree, started = trees.get(), time.monotonic()
            try:
                return mutation, mutated(tree, mutation), time.monotonic() - started
            finally:
                trees.put(tree)

        good = 0
        with ThreadPoolExecutor(jobs) as pool:
            for mutation, outcome, seconds in pool.map(run, chosen):
                good += outcome.verdict == "noticed"
                _say(f"{outcome.verdict:9} {seconds:5.1f} s  {mutation.name}: {mutation.scenario}")
                if why or outcome.verdict != "noticed":
                    _say(f"          {outcome.detail}")
    _say(f"{good} of {len(chosen)} mutations noticed, {time.monotonic() - begun:.0f} s")
    return good == len(chosen)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
