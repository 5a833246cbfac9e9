"""`/v1/threads`: conversations and what was said in them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from quart import Blueprint, Response, request

from app.chat.acceptance import KeyReused
from app.chat.calls import open_call
from app.chat.ids import known
from app.chat.keys import fingerprint
from app.errors import InvalidField, NotFound
from app.store import keys as key_store
from app.store import threads as store
from app.web.authentication import require_identity
from app.web.bodies import Body, json_response, no_content, read_body
from app.web.parameters import idempotency_key, page_limit
from app.wire.codec import encode_json
from nurseries.errors import OutcomeUnknown
from nurseries.ids import new_id

if TYPE_CHECKING:
    from app.accounts.service import AccountService
    from app.chat.runs import Runs
    from nurseries.request import Kernel, Request

MAX_TITLE: Final = 200


class NewThread(Body, frozen=True):
    """A new conversation."""

    title: str = ""


class Title(Body, frozen=True):
    """What a conversation is called."""

    title: str


def threads_blueprint(service: AccountService, kernel: Kernel, runs: Runs) -> Blueprint:
    """Return the routes of the threads; errors are left to `install_problems`."""
    threads = Blueprint("threads", __name__)

    @threads.post("/v1/threads")
    async def create() -> Response:
        identity = await require_identity(service)
        body = await read_body(NewThread)
        title, key = _title(body.title), idempotency_key()
        async with open_call(kernel, identity.user_id) as call:
            return json_response(await _create(call, title, key), 201)

    @threads.get("/v1/threads")
    async def page() -> Response:
        identity = await require_identity(service)
        limit, before = page_limit(), _before("thread")
        async with open_call(kernel, identity.user_id) as call:
            found = await store.page(call.database, limit + 1, before)
        if found is None:
            raise NotFound("no such thread")
        return json_response(
            {"threads": found[:limit], "next": found[limit - 1].thread_id if len(found) > limit else None}
        )

    @threads.get("/v1/threads/<thread_id>")
    async def get(thread_id: str) -> Response:
        identity = await require_identity(service)
        async with open_call(kernel, identity.user_id, thread_id=known(thread_id, "thread")) as call:
            return json_response(_found(await store.get(call.database, thread_id)))

    @threads.patch("/v1/threads/<thread_id>")
    async def rename(thread_id: str) -> Response:
        identity = await require_identity(service)
        title = _title((await read_body(Title)).title)
        async with open_call(kernel, identity.user_id, thread_id=known(thread_id, "thread")) as call:
            return json_response(_found(await store.rename(call.database, thread_id, title)))

    @threads.delete("/v1/threads/<thread_id>")
    async def delete(thread_id: str) -> Response:
        identity = await require_identity(service)
        async with open_call(kernel, identity.user_id, thread_id=known(thread_id, "thread")) as call:
            if not await runs.delete_thread(call, thread_id):
                raise NotFound("no such thread")
        return no_content()

    @threads.get("/v1/threads/<thread_id>/messages")
    async def messages(thread_id: str) -> Response:
        identity = await require_identity(service)
        limit, before = page_limit(), _before("thread or message")
        async with open_call(
            kernel, identity.user_id, thread_id=known(thread_id, "thread or message")
        ) as call:
            found = await store.messages(call.database, thread_id, limit + 1, before)
        if found is None:
            raise NotFound("no such thread or message")
        # A page is in the order of the conversation; the one before it ends where this one begins.
        shown = found[-limit:]
        return json_response({"messages": shown, "next": shown[0].message_id if len(found) > limit else None})

    return threads


async def _create(call: Request, title: str, key: str | None) -> store.Thread:
    """Create a thread, once for each key: a repeat is answered with the thread of the first."""
    thread = store.Thread(new_id(), title, datetime.now(UTC), 0)
    if key is None:
        try:
            await store.create(call.database, thread, None)
        except OutcomeUnknown:
            # A COMMIT without an answer: the id is ours, so whether the thread is there can be looked up.
            if await store.get(call.database, thread.thread_id) is None:
                raise
        return thread
    asked = fingerprint("thread", title)
    answer = key_store.Key(key, asked, encode_json(thread).decode())
    if await store.create(call.database, thread, answer):
        return thread
    stored = await key_store.stored_answer(call.database, key)
    if stored is None or stored[0] != asked:
        raise KeyReused("Idempotency-Key", "this key was used for something else")
    return msgspec.convert(stored[1], store.Thread)


def _found(thread: store.Thread | None) -> store.Thread:
    if thread is None:
        raise NotFound("no such thread")
    return thread


def _title(title: str) -> str:
    if len(title) > MAX_TITLE:
        raise InvalidField("title", f"longer than {MAX_TITLE} characters")
    return title.strip()


def _before(kind: str) -> str | None:
    before = request.args.get("before")
    return None if before is None else known(before, kind)
