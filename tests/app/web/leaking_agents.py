"""Agents with leaks between users, each of another kind; they wait until they are cancelled."""

import logging
from typing import ClassVar

import trio

from app.agents import Agent

CACHE = {}
MEETING = trio.Event()
logging.getLogger("shelf").books = []


class ClassKeeper(Agent):
    """Remembers for all users in a dict of its class."""

    name = "class-keeper"
    description = "Leaks."
    heard: ClassVar[dict[str, str]] = {}

    async def run(self, request):
        self.heard[request.context.user_id] = request.content
        await trio.sleep_forever()


class ModuleKeeper(Agent):
    """Remembers for all users in a dict of its module."""

    name = "module-keeper"
    description = "Leaks."

    async def run(self, request):
        CACHE[request.content] = request.context.user_id
        await trio.sleep_forever()


class ArgumentKeeper(Agent):
    """Remembers for all users in a default argument."""

    name = "argument-keeper"
    description = "Leaks."

    async def run(self, request, said=[]):  # noqa: B006
        said.append(request.content)
        await trio.sleep_forever()


def make_memory():
    memory = []

    def remember(words):
        memory.append(words)

    return remember


remember = make_memory()


class ClosureKeeper(Agent):
    """Remembers for all users in a closure."""

    name = "closure-keeper"
    description = "Leaks."

    async def run(self, request):
        remember(request.content)
        await trio.sleep_forever()


class Meeter(Agent):
    """Lets one user's run wait for another's."""

    name = "meeter"
    description = "Leaks."

    async def run(self, request):
        await MEETING.wait()


class LocalKeeper(Agent):
    """Has what it leaks in a local variable alone, from a place that nobody audits."""

    name = "local-keeper"
    description = "Leaks."

    async def run(self, request):
        async def read():
            books = logging.getLogger("shelf").books
            books.append(request.content)
            await trio.sleep_forever()

        request.nursery.start_soon(read)


class Keeper(Agent):
    """Keeps to itself: what it remembers is its own, for it is made for one request."""

    name = "keeper"
    description = "Does not leak."

    def __init__(self):
        self.heard = {}

    async def run(self, request):
        self.heard[request.context.user_id] = [request.content]
        await trio.sleep_forever()
