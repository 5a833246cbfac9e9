"""The mutations themselves: each still finds its guard, each scenario has one, and the runner tells the verdicts apart."""

import attrs
import pytest

from tests.mutations.mutations import ROOT, Edit, GuardMoved, Mutation, mutations
from tests.mutations.runs import copied_tree, mutated, unmutated
from tests.mutations.tables import DOCUMENT, GROUPS, scenarios, tables

CHILDREN = "test_context_factory.py::test_children_of_one_context_have_ids_of_their_own"
LINE = "            parent_request_id=self.request_id,\n"


@pytest.mark.parametrize("mutation", mutations(), ids=lambda each: f"{each.guard}: {each.name}")
def test_a_mutation_finds_its_guard(mutation):
    """The text that it replaces is in its file, once: where a guard moves, the mutation has to follow."""
    texts = {edit.file: (ROOT / edit.file).read_text() for edit in mutation.edits}
    for edit in mutation.edits:
        texts[edit.file] = edit.applied(texts[edit.file])


def test_every_scenario_has_a_mutation():
    """There is none that could pass whatever the product does, and no mutation without a scenario."""
    named = {f"{each.file}::{each.name}" for group in GROUPS for each in scenarios(group)}
    assert named == {each.scenario.partition("[")[0] for each in mutations()}
    assert len(named) >= 29


@pytest.mark.parametrize("table", tables(), ids=lambda each: each.name)
def test_the_tables_of_the_documentation_are_those_of_the_code(table):
    """`python -m tests.mutations --tables` writes them anew."""
    assert table.written(DOCUMENT) == table.text


@pytest.fixture(scope="module")
def tree():
    """A copy of the repository to take guards away in, where a scenario passes as it is."""
    with copied_tree() as tree:
        assert unmutated(tree, [f"tests/scenarios/{CHILDREN}"]).verdict == "survived"
        yield tree


@pytest.mark.parametrize("group", GROUPS)
def test_a_scenario_fails_without_its_guard(tree, group):
    """The first mutation of each group; `python -m tests.mutations` does the same for all of them."""
    first = next(each for each in mutations() if each.scenario.startswith(f"test_{group}."))
    assert mutated(tree, first).verdict == "noticed"


def _mutation(new, old=LINE):
    return Mutation("an edit", "a guard", CHILDREN, (Edit("nurseries/context.py", old, new),))


def test_a_mutation_is_noticed_survives_or_is_broken(tree):
    """A scenario that fails, one that passes, a guard that has moved, a module that cannot be imported."""
    before = (tree / "nurseries/context.py").stat()
    outcomes = {
        "noticed": _mutation("            parent_request_id=None,\n"),
        "survived": _mutation(LINE + "            # as it was\n"),
        "moved": _mutation("", "            parent_request_id=self.nothing,\n"),
        "broken": _mutation("            parent_request_id=(,\n"),
    }
    for verdict, mutation in outcomes.items():
        assert mutated(tree, mutation).verdict == verdict
    after = (tree / "nurseries/context.py").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_a_guard_that_is_there_twice_has_moved():
    """Replacing one of two would prove nothing."""
    with pytest.raises(GuardMoved, match="found 2 times"):
        Edit("a file", "x", "y").applied("x x")
    assert attrs.evolve(Edit("a file", "x", "y"), old="x x").applied("x x") == "y"
