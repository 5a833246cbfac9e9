"""The peer to beat: the same chat turn by hand on FastAPI, uvicorn with uvloop, and asyncpg.

One socket, 24 frames out, two queries under row-level security, an event log that is written once a turn.
No accounts (the bearer token is the user's id, taken at its word), no messages kept, no queue, no
cancellation, no limits: what somebody writes who wants the turn and nothing else, as fast as it goes.

    python -m tests.bench.peer_fastapi DSN
"""

import asyncio
import hashlib
import json
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

SCHEMA = """
DO $$ BEGIN CREATE ROLE peer LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
CREATE TABLE messages (
    thread_id uuid NOT NULL, user_id uuid NOT NULL, position bigint GENERATED ALWAYS AS IDENTITY,
    role text NOT NULL, content text NOT NULL
);
CREATE INDEX ON messages (thread_id, position DESC);
CREATE TABLE events (
    thread_id uuid NOT NULL, first_seq bigint NOT NULL, last_seq bigint NOT NULL, user_id uuid NOT NULL,
    lines text NOT NULL, PRIMARY KEY (thread_id, first_seq)
);
ALTER TABLE messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON messages TO peer
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
CREATE POLICY own_rows ON events TO peer
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
GRANT SELECT, INSERT ON messages, events TO peer;
"""

QUERY = "SELECT role, content FROM messages WHERE thread_id = $1 ORDER BY position DESC LIMIT 1"
LOG = "INSERT INTO events (thread_id, first_seq, last_seq, user_id, lines) VALUES ($1, $2, $3, $4, $5)"
SUBPROTOCOL = "nurseries.v1"

encode = msgspec.json.encode


class Turn:
    """One run: numbers its events, and keeps them for the log."""

    def __init__(self, socket, user_id, thread_id, last_seq):
        self.socket, self.user_id, self.thread_id = socket, user_id, thread_id
        self.run_id = str(uuid4())
        self.checksum = hashlib.sha256(f"{user_id}:{thread_id}:{self.run_id}".encode()).hexdigest()[:16]
        self.first_seq, self.seq, self.lines = last_seq + 1, last_seq, []

    def event(self, type_, payload):
        self.seq += 1
        line = encode(
            {
                "type": type_,
                "event_id": f"{self.thread_id}:{self.seq}",
                "seq": self.seq,
                "user_id": self.user_id,
                "thread_id": self.thread_id,
                "run_id": self.run_id,
                "timestamp": datetime.now(UTC),
                "payload": payload,
                "delivery_checksum": self.checksum,
            }
        ).decode()
        self.lines.append(line)
        return line

    async def say(self, type_, payload):
        await self.socket.send_text(self.event(type_, payload))


@asynccontextmanager
async def scoped(pool, user_id):
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT set_config('app.user_id', $1, true)", user_id)
        yield connection


async def play(turn, pool, content):
    order = json.loads(content)
    thread_id, user_id = UUID(turn.thread_id), turn.user_id
    await turn.say("run_queued", {"content": content, "agent": "load", "position": 0})
    await turn.say("agent_started", {"agent": "load", "request_id": str(uuid4()), "depth": 0})
    for _ in range(order["queries"]):
        async with scoped(pool, user_id) as connection:
            await connection.fetch(QUERY, thread_id)
    if order["sleep_ms"]:
        await asyncio.sleep(order["sleep_ms"] / 1000)
    piece, message_id = f"{user_id} ".ljust(order["delta_bytes"], ".")[: order["delta_bytes"]], str(uuid4())
    for _ in range(order["events"]):
        await turn.say("message_delta", {"message_id": message_id, "text": piece})
    last = turn.event(
        "agent_completed",
        {
            "agent": "load",
            "depth": 0,
            "message_id": message_id,
            "output": piece * order["events"],
            "usage": {},
        },
    )
    async with scoped(pool, user_id) as connection:
        await connection.execute(
            LOG, thread_id, turn.first_seq, turn.seq, UUID(user_id), "\n".join(turn.lines)
        )
    await turn.socket.send_text(last)


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(app.state.dsn, min_size=20, max_size=20) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.websocket("/v1/ws")
async def talk(socket: WebSocket):
    user_id = socket.headers["authorization"].removeprefix("Bearer ")
    await socket.accept(subprotocol=SUBPROTOCOL)
    await socket.send_text(
        encode(
            {
                "type": "connection_established",
                "connection_id": str(uuid4()),
                "user_id": user_id,
                "server_time": time.time(),
                "heartbeat_seconds": 30,
                "limits": {"message_bytes": 131072, "messages_per_minute": 1_000_000},
            }
        ).decode()
    )
    last_seqs = {}
    try:
        while True:
            message = json.loads(await socket.receive_text())
            thread_id = message["thread_id"]
            turn = Turn(socket, user_id, thread_id, last_seqs.get(thread_id, 0))
            await socket.send_text(
                encode({"type": "accepted", "run_id": turn.run_id, "duplicate": False}).decode()
            )
            await play(turn, app.state.pool, message["content"])
            last_seqs[thread_id] = turn.seq
    except WebSocketDisconnect:
        pass


class AnnouncingServer(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}", flush=True)


if __name__ == "__main__":
    app.state.dsn = sys.argv[1]
    AnnouncingServer(
        uvicorn.Config(
            app, port=0, loop="uvloop", log_level="warning", access_log=False, ws_per_message_deflate=False
        )
    ).run()
