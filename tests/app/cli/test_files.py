"""`nurseries files` and the terminal's `/upload`, against a real server."""

import pytest

from app.cli.chat import chat_command
from app.cli.files import Account, add, list_, remove
from tests.app.cli.screen import at_terminal
from tests.fixtures.house import PASSWORD, running_server, signed_up


@pytest.fixture
async def url(database, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TERM", "dumb")
    async with running_server(database.owner) as url:
        yield url


@pytest.fixture
def sales(tmp_path):
    path = tmp_path / "Sales 2026.csv"
    path.write_text("region,amount\nnorth,3\nsouth,4\n")
    return path


def account(user, url):
    return Account(url, user.email, PASSWORD)


async def test_a_file_is_added_listed_asked_about_and_removed(url, sales, capsys):
    """One line for each; and the analyst finds it under the name that was printed."""
    async with signed_up(url) as ann, signed_up(url) as bob:
        assert await add(sales, account=account(ann, url)) == 0
        line = "sales_2026  2 rows  Sales 2026.csv  (region, amount)\n"
        assert capsys.readouterr().out == line
        assert await list_(account=account(ann, url)) == 0
        assert capsys.readouterr().out == line
        assert await list_(account=account(bob, url)) == 0
        assert capsys.readouterr().out == ""
        question = "sql: SELECT sum(amount) AS total FROM sales_2026"
        asked = {"url": url, "email": ann.email, "agent": "analyst", "once": question}
        assert await chat_command(**asked) == 0
        assert "| total |\n| --- |\n| 7 |" in capsys.readouterr().out
        assert await remove("sales_2026", account=account(bob, url)) == 1
        assert await remove("sales_2026", "nothing", account=account(ann, url)) == 1
        assert "there is no table nothing; nothing was removed" in capsys.readouterr().err
        assert await remove("sales_2026", account=account(ann, url)) == 0
        assert await list_(account=account(ann, url)) == 0
        assert capsys.readouterr().out == ""


async def test_what_is_refused_is_named_and_the_rest_is_added(url, sales, tmp_path, capsys):
    """One that is not there, a directory, one that is empty, one that is no table; status 1."""
    empty, broken = tmp_path / "empty.csv", tmp_path / "broken.parquet"
    empty.touch()
    broken.write_bytes(b"PAR1 and no more")
    missing = tmp_path / "missing.csv"
    async with signed_up(url) as ann:
        assert await add(missing, tmp_path, empty, broken, sales, account=account(ann, url)) == 1
    out, err = capsys.readouterr()
    assert out.startswith("sales_2026  2 rows")
    told = err.replace("\n", "")
    assert f"{missing}: No such file or directory" in told
    assert f"{tmp_path}: Is a directory" in told
    assert f"{empty}: file: it is empty (HTTP 422)" in told
    assert f"{broken}: file: " in told


async def test_the_only_account_that_is_logged_in_need_not_be_named(url, sales, capsys):
    """With two of them, somebody has to say which."""
    async with signed_up(url) as ann, signed_up(url) as bob:
        assert await add(sales, account=Account(url)) == 3  # nobody, and no terminal to ask at
        assert await add(sales, account=account(ann, url)) == 0
        assert await list_(account=Account(url)) == 0
        assert await chat_command(url=url, once="calculate 6*7") == 0
        assert capsys.readouterr().out.endswith("6*7 = 42\n")
        assert await list_(account=account(bob, url)) == 0
        assert await list_(account=Account(url)) == 3


async def test_a_file_can_be_uploaded_in_the_middle_of_a_conversation(url, sales, monkeypatch):
    """`/upload` shows the table; a path that is wrong is said, and the conversation goes on."""
    async with signed_up(url) as ann:
        monkeypatch.setenv("NURSERIES_EMAIL", ann.email)
        monkeypatch.setenv("NURSERIES_PASSWORD", PASSWORD)
        async with at_terminal(url, "--new", "--agent", "analyst") as screen:
            await screen.until("you> ")
            screen.type("/files\n")
            assert "There are none yet" in await screen.until("you> ")
            screen.type(f"/upload {sales}.gz\n")
            assert "No such file or directory" in await screen.until("you> ")
            screen.type(f"/upload {sales}\n")
            assert "sales_2026  2 rows" in await screen.until("you> ")
            screen.type("sql: SELECT max(amount) AS most FROM sales_2026\n")
            assert "| 4 |" in await screen.until("you> ")
            screen.type("/files\n")
            assert "sales_2026  2 rows" in await screen.until("you> ")
            screen.type("/quit\n")
            assert await screen.status() == 0
