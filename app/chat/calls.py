"""The request of a single call: an HTTP route or a socket's frame that reads or writes a little.

It is a request like any other, in a nursery of its own, with a context of its own. A call that is about no
thread, such as listing them, is a thread to itself.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from nurseries.context import UserContext
from nurseries.ids import new_id
from nurseries.request import open_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nurseries.request import Kernel, Request


@asynccontextmanager
async def open_call(
    kernel: Kernel, user_id: str, *, thread_id: str | None = None, socket_id: str | None = None
) -> AsyncIterator[Request]:
    """Open the request of one call by `user_id`, which comes from a verified identity and nowhere else."""
    call_id = new_id()
    context = UserContext(
        user_id=user_id,
        thread_id=thread_id or call_id,
        run_id=call_id,
        request_id=call_id,
        websocket_client_id=socket_id,
    )
    async with open_request(kernel, context) as request:
        yield request
