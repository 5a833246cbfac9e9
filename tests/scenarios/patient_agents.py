"""Agents for scenarios: one that is still at work, one that holds a transaction while it waits."""

import trio

from app.agents import Agent, AgentRequest


class Patient(Agent):
    """Says one word, then waits until it is cancelled."""

    name = "patient"
    description = "Waits."

    async def run(self, request: AgentRequest) -> str:
        """Say it."""
        await request.say("begun ")
        await trio.sleep_forever()
        raise AssertionError


class Bookkeeper(Agent):
    """Reads and writes in one transaction, with pauses in it."""

    name = "bookkeeper"
    description = "Keeps accounts."

    async def run(self, request: AgentRequest) -> str:
        """Read a row of the user's own, say so, and change it."""
        thread_id = request.context.thread_id
        async with request.database.transaction() as transaction:
            await transaction.fetch("SELECT title FROM threads WHERE thread_id = $1::uuid", thread_id)
            await request.think("half way")
            await transaction.execute(
                "UPDATE threads SET title = 'kept' WHERE thread_id = $1::uuid", thread_id
            )
            await trio.lowlevel.checkpoint()
        return "kept"
