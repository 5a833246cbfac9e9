"""A model that says what a test wrote for it, step by step, and keeps what it was told."""

from contextlib import asynccontextmanager

import pytest

from tests.fixtures.pieces import Pieces


class ScriptedModel:
    """Each step is a list of pieces; an exception among them is raised, a function is awaited."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.told = []
        self.open = 0

    @asynccontextmanager
    async def stream(self, conversation):
        self.told.append(conversation)
        self.open += 1
        try:
            yield Pieces(self.steps.pop(0))
        finally:
            self.open -= 1


@pytest.fixture
def scripted():
    """The class, for tests to make models of."""
    return ScriptedModel
