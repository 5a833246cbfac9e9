"""A small server of the protocol that does what a test tells it at the moment the test chooses.

It stands in for the real server only where the client's own behaviour is in question: a socket that ends
after the n-th frame, a log that is pruned, an event sent twice. It keeps the protocol otherwise.
"""

import json
import sys
import uuid
from contextlib import asynccontextmanager, suppress

import attrs
import h11
import trio
from websockets.exceptions import InvalidState
from websockets.frames import Opcode
from websockets.server import ServerProtocol

from app.cli.frames import checksum

EMAIL, PASSWORD = "ada@example.com", "correct horse battery"


@attrs.define(eq=False)
class Socket:
    stream: trio.SocketStream
    protocol: ServerProtocol
    user_id: str
    sent: int = 0
    lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def send(self, **frame):
        self.protocol.send_text(json.dumps(frame).encode())
        self.sent += 1
        await self.flush()

    async def close(self, code):
        self.protocol.send_close(code)
        await self.flush()

    async def flush(self):
        async with self.lock:
            await self.stream.send_all(b"".join(self.protocol.data_to_send()))


@attrs.define(eq=False, slots=False)
class ScriptedServer:
    """Accounts, threads and logs in memory. Tests replace its methods to interfere."""

    url: str = ""
    user_id: str = ""
    passwords: dict = attrs.field(factory=dict)
    users: dict = attrs.field(factory=dict)  # email -> user id
    access: dict = attrs.field(factory=dict)  # live access token -> user id
    refresh: dict = attrs.field(factory=dict)  # unused refresh token -> user id
    threads: dict = attrs.field(factory=dict)  # thread id -> list of envelopes
    pruned: dict = attrs.field(factory=dict)  # thread id -> events up to here are gone
    runs: dict = attrs.field(factory=dict)  # client id -> run id
    outputs: dict = attrs.field(factory=dict)  # run id -> output
    sockets: list = attrs.field(factory=list)
    received: list = attrs.field(factory=list)
    calls: list = attrs.field(factory=list)
    expires_in: float = 900
    heartbeat: float = 30
    hold: bool = False  # runs do not end by themselves
    refusals: list = attrs.field(factory=list)  # (status, headers) for the next handshakes or calls
    errors: list = attrs.field(factory=list)  # codes for the next user messages

    async def on_event(self, socket, envelope):
        """Send one event to one socket; a test replaces this to interfere."""
        await socket.send(**envelope)

    def new_user(self, email, password):
        self.passwords[email] = password
        self.users[email] = str(uuid.uuid4())
        return self.users[email]

    def new_tokens(self, user_id):
        access, refresh = uuid.uuid4().hex, uuid.uuid4().hex
        self.access[access] = self.refresh[refresh] = user_id
        return {
            "access_token": access,
            "refresh_token": refresh,
            "token_type": "Bearer",
            "expires_in": self.expires_in,
        }

    # -- runs -----------------------------------------------------------------------------------------

    async def emit(self, user_id, thread_id, run_id, type_, **payload):
        log = self.threads[thread_id]
        seq = len(log) + 1
        envelope = {
            "type": type_,
            "event_id": f"{thread_id}:{seq}",
            "seq": seq,
            "user_id": user_id,
            "thread_id": thread_id,
            "run_id": run_id,
            "timestamp": "2026-01-01T00:00:00Z",
            "payload": payload,
            "delivery_checksum": checksum(user_id, thread_id, run_id),
        }
        log.append(envelope)
        for socket in list(self.sockets):
            if socket.user_id == user_id:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError, InvalidState):
                    await self.on_event(socket, envelope)

    async def run(self, user_id, thread_id, run_id, content, client_id):
        async def emit(type_, **payload):
            await self.emit(user_id, thread_id, run_id, type_, **payload)

        await emit("run_queued", content=content, agent="echo", client_id=client_id, position=0)
        await emit("agent_started", agent="echo", request_id=str(uuid.uuid4()), depth=0)
        if content == "fail":
            await emit("run_failed", code="model", message="no model")
            return
        if content.startswith("{"):
            asked = json.loads(content)
            texts = [(user_id + "x" * asked["delta_bytes"])[: asked["delta_bytes"]]] * asked["events"]
        else:
            await emit("agent_thinking", agent="echo", text="let me see")
            await emit("tool_executing", call_id="1", tool="mirror", arguments={"text": content})
            await emit("tool_completed", call_id="1", tool="mirror", ok=True, result=content, milliseconds=1)
            texts = [f"{word} " for word in f"you said {content}".split()]
        for text in texts:
            await emit("message_delta", message_id="m", text=text)
        if not self.hold:
            self.outputs[run_id] = "".join(texts)
            await emit(
                "agent_completed", agent="echo", depth=0, message_id="m", output="".join(texts), usage={}
            )

    # -- HTTP -----------------------------------------------------------------------------------------

    def answer(self, method, path, body, token):  # noqa: PLR0911  # a table of calls
        self.calls.append((method, path))
        if self.refusals:
            status, headers = self.refusals.pop(0)
            return status, {"code": "rate_limited", "detail": "not now"}, headers
        if path == "/v1/auth/register":
            if body["email"] in self.users:
                return 409, {"code": "taken", "detail": "taken"}, {}
            return 201, {"user_id": self.new_user(**body)}, {}
        if path == "/v1/auth/login":
            if self.passwords.get(body["email"]) != body["password"]:
                return 401, {"code": "unauthorized", "detail": "wrong"}, {}
            return 200, self.new_tokens(self.users[body["email"]]), {}
        if path == "/v1/auth/refresh":
            user_id = self.refresh.pop(body["refresh_token"], None)
            return (200, self.new_tokens(user_id), {}) if user_id else (400, {"error": "invalid_grant"}, {})
        user_id = self.access.get(token)
        if user_id is None:
            return 401, {"code": "unauthorized", "detail": "who?"}, {}
        return self.answer_user(method, path.partition("?")[0].strip("/").split("/")[1:], user_id)

    def thread(self, thread_id):
        log = self.threads[thread_id]
        return {
            "thread_id": thread_id,
            "title": "t",
            "created_at": "2026-01-01T00:00:00Z",
            "last_seq": len(log),
        }

    def answer_user(self, method, parts, user_id):  # noqa: PLR0911  # a table of calls
        match method, parts:
            case "GET", ["me"]:
                return 200, {"user_id": user_id, "email": "", "roles": []}, {}
            case "GET", ["agents"]:
                return 200, {"agents": [{"name": "load", "description": "", "tools": []}]}, {}
            case "POST", ["threads"]:
                thread_id = str(uuid.uuid4())
                self.threads[thread_id] = []
                return 201, self.thread(thread_id), {}
            case "GET", ["threads"]:
                return 200, {"threads": [self.thread(t) for t in reversed(self.threads)], "next": None}, {}
            case "GET", ["threads", thread_id] if thread_id in self.threads:
                return 200, self.thread(thread_id), {}
            case "GET", ["threads", thread_id, "messages"]:
                return 200, {"messages": [], "next": None}, {}
            case "GET", ["threads", thread_id, "runs", run_id]:
                done = run_id in self.outputs
                status = "completed" if done else "running"
                return 200, {"run_id": run_id, "status": status, "output": self.outputs.get(run_id)}, {}
        return 404, {"code": "not_found", "detail": "no such thing"}, {}

    # -- sockets --------------------------------------------------------------------------------------

    async def on_message(self, socket, frame, nursery):
        self.received.append(frame)
        match frame:
            case {"type": "ping"}:
                await socket.send(type="pong")
            case {"type": "subscribe", "thread_id": thread_id, "after": after}:
                log = self.threads[thread_id]
                recovered = self.pruned.get(thread_id, 0) <= after <= len(log)
                await socket.send(
                    type="subscribed",
                    thread_id=thread_id,
                    after=after,
                    last_seq=len(log),
                    recovered=recovered,
                )
                for envelope in log[after:] if recovered else []:
                    await self.on_event(socket, envelope)
            case {"type": "user_message", "thread_id": thread_id, "content": content}:
                if self.errors:
                    code = self.errors.pop(0)
                    await socket.send(
                        type="error", code=code, message="no", in_reply_to=frame.get("client_id")
                    )
                    return
                client_id = frame.get("client_id")
                run_id = self.runs.get(client_id)
                duplicate = run_id is not None
                if run_id is None:
                    run_id = str(uuid.uuid4())
                    if client_id is not None:
                        self.runs[client_id] = run_id
                    nursery.start_soon(self.run, socket.user_id, thread_id, run_id, content, client_id)
                await socket.send(type="accepted", run_id=run_id, client_id=client_id, duplicate=duplicate)
            case {"type": "cancel", "run_id": run_id}:
                for thread_id, log in self.threads.items():
                    if any(event["run_id"] == run_id for event in log):
                        await self.emit(socket.user_id, thread_id, run_id, "run_cancelled", reason="asked")

    async def serve_socket(self, stream, head, nursery):
        protocol = ServerProtocol(subprotocols=["nurseries.v1"])
        protocol.receive_data(head)
        request = protocol.events_received()[0]
        user_id = self.access.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if self.refusals:
            status, headers = self.refusals.pop(0)
            response = protocol.reject(status, "not now")
            response.headers.update(headers)
        elif user_id is None:
            response = protocol.reject(401, '{"code":"unauthorized","detail":"who?"}')
        else:
            response = protocol.accept(request)
        protocol.send_response(response)
        await stream.send_all(b"".join(protocol.data_to_send()))
        if response.status_code != 101:
            return
        socket = Socket(stream, protocol, user_id)
        self.sockets.append(socket)
        await socket.send(
            type="connection_established",
            connection_id=str(uuid.uuid4()),
            user_id=user_id,
            server_time="2026-01-01T00:00:00Z",
            heartbeat_seconds=self.heartbeat,
            limits={"message_bytes": 131072, "messages_per_minute": 600},
        )
        try:
            while data := await stream.receive_some(65536):
                protocol.receive_data(data)
                for event in protocol.events_received():
                    if event.opcode is Opcode.TEXT:
                        await self.on_message(socket, json.loads(event.data), nursery)
                await socket.flush()
        finally:
            self.sockets.remove(socket)

    async def serve(self, stream, nursery):
        try:
            async with stream:
                head = bytearray()
                while b"\r\n\r\n" not in head:
                    data = await stream.receive_some(65536)
                    if not data:
                        return
                    head += data
                if b"upgrade: websocket" in head.lower():
                    await self.serve_socket(stream, bytes(head), nursery)
                else:
                    await self.serve_http(stream, bytes(head))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve_http(self, stream, data):
        connection = h11.Connection(h11.SERVER)
        while True:
            body, request = b"", None
            while not isinstance(event := connection.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
                if event is h11.NEED_DATA:
                    connection.receive_data(data or await stream.receive_some(65536))
                    data = b""
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
            if request is None:
                return
            token = dict(request.headers).get(b"authorization", b"").decode().removeprefix("Bearer ")
            status, answer, headers = self.answer(
                request.method.decode(), request.target.decode(), json.loads(body or b"null"), token
            )
            payload = json.dumps(answer).encode()
            await stream.send_all(
                connection.send(
                    h11.Response(
                        status_code=status, headers=[*headers.items(), ("content-length", str(len(payload)))]
                    )
                )
                + connection.send(h11.Data(data=payload))
                + connection.send(h11.EndOfMessage())
            )
            connection.start_next_cycle()


@asynccontextmanager
async def scripted_server():
    """Serve until the block is left."""
    server = ScriptedServer()
    async with trio.open_nursery() as nursery:

        async def serve(stream):
            await server.serve(stream, nursery)

        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        server.url = f"http://127.0.0.1:{port}"
        yield server
        nursery.cancel_scope.cancel()


if __name__ == "__main__":

    async def main():
        async with scripted_server() as server:
            sys.stdout.write(f"listening on {server.url}\n")
            sys.stdout.flush()
            await trio.sleep_forever()

    trio.run(main)
