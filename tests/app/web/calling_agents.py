"""An agent that calls the tools that its message names."""

import json

from app.agents import agent


@agent(description="Calls tools.")
async def caller(request):
    for number, (tool, arguments) in enumerate(json.loads(request.content)):
        result = await request.tools.call(f"call-{number}", tool, arguments)
        await request.say(json.dumps(result.payload()) + "\n")
