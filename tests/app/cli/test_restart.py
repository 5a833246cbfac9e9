"""One process serves everybody: when it is killed nothing of it stays, and the same command serves at once again."""

import psutil
import pytest
import trio

from nurseries.errors import StartupFailed
from tests.fixtures.house import open_socket, running_server, signed_up
from tests.fixtures.process import postgres_gone, served


def runs(process: psutil.Process) -> bool:
    """Say whether it does; one that has ended may still wait for a parent that asks how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_killed_server_leaves_no_process_and_the_same_command_goes_on(data_dir, tmp_path):
    """On the same port, with the sockets of before still half open; tokens, threads and cursors hold."""
    arguments = ("--data-dir", str(data_dir))
    async with served(tmp_path / "log", *arguments) as server:
        async with signed_up(server.url) as user, user.socket() as socket:
            thread = await user.thread()
            await socket.send(type="user_message", thread_id=thread, content="calculate 6*7")
            last = (await socket.until("agent_completed"))[-1]
            children = psutil.Process(server.process.pid).children(recursive=True)
            assert children, "the embedded PostgreSQL"
            server.process.kill()
            await server.ended()
            assert await socket.close_code() == 1006
            await postgres_gone(data_dir)
            assert not [child for child in children if runs(child)]

            port = int(server.url.rpartition(":")[2])
            async with served(tmp_path / "again", *arguments, port=port) as again:
                assert again.url == server.url
                async with open_socket(again.url, [("Authorization", f"Bearer {user.access_token}")]) as back:
                    await back.until("connection_established")
                    await back.send(type="subscribe", thread_id=thread, after=last["seq"] - 1)
                    assert (await back.receive())["recovered"]
                    assert await back.receive() == last
                    await back.send(type="user_message", thread_id=thread, content="calculate 7*6")
                    assert "42" in (await back.until("agent_completed"))[-1]["payload"]["output"]


async def test_a_second_server_on_the_same_database_gives_up_and_the_first_does_not_notice(
    database, monkeypatch
):
    """Two would number the same threads: the lock lets one serve, and the other says why it does not."""
    monkeypatch.setattr("app.tenancy.TAKE_SECONDS", 0.2)
    async with running_server(database.owner) as url, signed_up(url) as user, user.socket() as socket:
        with (
            pytest.RaisesGroup(
                pytest.RaisesExc(StartupFailed, match="another server is using this database"),
                flatten_subgroups=True,
            ),
            trio.fail_after(30),
        ):
            async with running_server(database.owner):
                raise AssertionError("it serves")
        thread = await user.thread()
        await socket.send(type="user_message", thread_id=thread, content="calculate 6*7")
        assert (await socket.until("agent_completed"))[-1]["seq"] > 1
