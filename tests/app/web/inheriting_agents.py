"""An agent that looks at what its task inherited."""

from contextvars import copy_context

from app.agents import Agent


class Heir(Agent):
    """Says which context variables it finds, but for those that its own request set."""

    name = "heir"
    description = "Looks around."

    async def run(self, request):
        names = {variable.name for variable in copy_context()} - {"decimal_context"}
        return ", ".join(sorted(names)) or "nothing inherited"
