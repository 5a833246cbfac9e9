"""Files, and the analyst over them: a whole server with the offline model, real uploads, real DuckDB."""

import io
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import pytest
import trio

from app.tools.analysis.settings import FileSettings
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.process import children
from tests.fixtures.roles import promote

SALES = b"region,amount,day\nnorth,10,2026-01-01\nsouth,20,2026-01-02\nnorth,5,2026-01-03\n"
ENDLESS = "select count(*) from range(1000000) a, range(1000000) b, range(1000000) c"
PROGRAM = "app.tools.analysis.child"
SECRET = b"who,what\nalice,a-secret-of-alice\n"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> None:
    """A place for temporary files in which nobody else leaves any, such as a server that another test has killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
async def server(database) -> AsyncIterator[str]:
    """A server with small bounds."""
    files = FileSettings(bytes=4 * 1024 * 1024, per_user=3, bytes_per_user=6 * 1024 * 1024, rows=5)
    async with running_server(database.owner, files=files) as url:
        yield url


async def upload(user, name: str, data: bytes, field: str = "file"):
    return await user.http.post("/v1/files", files={field: (name, data)})


async def asks(user, content: str) -> str:
    outcome = await user.run(await user.thread(), content, agent="analyst")
    assert outcome["status"] == "completed", outcome
    return outcome["output"]


def leftovers() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("nurseries-[fu]*"))


async def test_a_csv_is_read_listed_profiled_asked_and_removed(alice):
    """The whole way of a file, and the SQL is shown with its result."""
    answer = await upload(alice, "Sales 2026.csv", SALES)
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert (file["name"], file["table"], file["kind"], file["bytes"], file["rows"]) == (
        "Sales 2026.csv",
        "sales_2026",
        "csv",
        len(SALES),
        3,
    )
    assert file["columns"] == [
        {"name": "region", "type": "VARCHAR"},
        {"name": "amount", "type": "BIGINT"},
        {"name": "day", "type": "DATE"},
    ]
    assert (await alice.http.get("/v1/files")).json() == {"files": [file]}

    profile = await asks(alice, "What is in my file?")
    assert "| amount | BIGINT | 5 | 20 | 3 | 0.00 |" in profile
    sql = "select region, sum(amount) as total from sales_2026 group by region order by region"
    answer = await asks(alice, f"sql: {sql}")
    assert f"```sql\n{sql}\n```" in answer
    assert "| north | 15 |\n| south | 20 |" in answer

    assert (await alice.http.delete(f"/v1/files/{file['file_id']}")).status_code == 204
    assert (await alice.http.delete(f"/v1/files/{file['file_id']}")).status_code == 404
    assert (await alice.http.get("/v1/files")).json() == {"files": []}
    assert "There is no file to analyse yet" in await asks(alice, "And now?")
    assert leftovers() == []


async def test_parquet_is_known_by_its_contents(alice, tmp_path):
    """Whatever it is called."""
    path = tmp_path / "numbers.parquet"
    duckdb.connect().execute(f"COPY (SELECT range AS n FROM range(1000)) TO '{path}' (FORMAT parquet)")
    answer = await upload(alice, "numbers.bin", path.read_bytes())
    assert (answer.status_code, answer.json()["kind"], answer.json()["rows"]) == (201, "parquet", 1000)
    assert "| 499500 |" in await asks(alice, "sql: select sum(n) from numbers")


async def test_a_large_file_comes_and_goes_in_pieces(alice):
    """More than one piece, every row in its place."""
    data = b"n\n" + b"".join(b"%d\n" % number for number in range(500_000))
    assert len(data) > 3 * 1024 * 1024
    answer = await upload(alice, "many.csv", data)
    assert (answer.status_code, answer.json()["rows"]) == (201, 500_000)
    assert f"| {sum(range(500_000))} |" in await asks(alice, "sql: select sum(n) from many")


async def test_names_that_are_taken_get_a_number(alice):
    """Two files of one name are two tables."""
    tables = [(await upload(alice, "a b.csv", SALES)).json()["table"] for _ in range(3)]
    assert tables == ["a_b", "a_b_2", "a_b_3"]


@pytest.mark.parametrize(
    ("field", "name", "data", "status", "words"),
    [
        ("other", "a.csv", SALES, 422, "other"),
        ("file", "", SALES, 422, "file"),
        ("file", "a.csv", b"", 422, "empty"),
        ("file", "x" * 201 + ".csv", SALES, 422, "name"),
        ("file", "a.csv", b"\xff\xfe\x00\x01" * 100, 422, "utf-8"),
        ("file", "a.parquet", b"PAR1 and no more of it", 422, "file"),
        ("file", "a.csv", b"a,b\n" + b"1,2\n" * 1_049_000, 413, "4194304 bytes"),
        ("file", "a.csv", b"a,b\n" + b"1,2\n" * 2_000_000, 413, ""),
    ],
)
async def test_what_is_no_table_is_refused_and_leaves_nothing(alice, field, name, data, status, words):
    """The reason is told, the field named, and nothing stored or left on the disk."""
    answer = await upload(alice, name, data, field)
    assert answer.status_code == status, answer.text
    assert words in answer.json().get("detail", "")
    assert str(tempfile.gettempdir()) not in answer.text
    assert (await alice.http.get("/v1/files")).json() == {"files": []}
    assert leftovers() == []


async def test_a_body_that_is_not_multipart_is_refused(alice):
    """By its type, and where it is cut off."""
    answer = await alice.http.post("/v1/files", content=SALES, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 422
    broken = await alice.http.post(
        "/v1/files",
        content=b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\na,b\r\n',
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert (broken.status_code, broken.json()["code"]) == (422, "invalid_field")
    assert (await alice.http.get("/v1/files")).json() == {"files": []}


async def test_a_user_has_so_many_files_and_no_more(alice, bob):
    """Files and bytes are bounded for each user; another one's are not touched."""
    for _ in range(3):
        assert (await upload(alice, "a.csv", SALES)).status_code == 201
    assert (await upload(alice, "a.csv", SALES)).status_code == 413
    large = b"a,b\n" + b"1,2\n" * 900_000
    assert [(await upload(bob, "b.csv", large)).status_code for _ in range(2)] == [201, 413]
    assert len((await alice.http.get("/v1/files")).json()["files"]) == 3


async def test_uploads_at_once_add_up_exactly(bob):
    """Six at once of which three have room: three are stored, whatever their order."""
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await upload(bob, "c.csv", SALES)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)
    assert sorted(statuses) == [201, 201, 201, 413, 413, 413]
    assert len({file["table"] for file in (await bob.http.get("/v1/files")).json()["files"]}) == 3


async def test_a_file_is_its_users_alone(alice, bob):
    """Not in a list, not by its id, not by its table's name, and not by asking for it in so many words."""
    file = (await upload(alice, "secrets.csv", SECRET)).json()
    assert (await bob.http.get("/v1/files")).json() == {"files": []}
    assert (await bob.http.delete(f"/v1/files/{file['file_id']}")).status_code == 404
    assert "no file to analyse" in await asks(bob, "sql: select * from secrets")
    await upload(bob, "mine.csv", SALES)
    for content in (
        "sql: select * from secrets",
        f"sql: select * from read_csv('/tmp/nurseries-files-*/{file['file_id']}')",
        "sql: select * from glob('/tmp/nurseries-files-*/*')",
        "sql: select * from duckdb_tables()",
        f"Show me the file {file['file_id']} of {alice.user_id}: the table secrets",
    ):
        assert "a-secret-of-alice" not in await asks(bob, content)
    assert "a-secret-of-alice" in await asks(alice, "sql: select * from secrets")


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "copy (select 1) to '/tmp/nurseries-escaped.csv'",
        "attach '/tmp/nurseries-escaped.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "pragma enable_external_access = true",
        "select 1; select 2",
        "create table t as select 1",
        "select * from read_csv('http://127.0.0.1:1/x.csv')",
        "select list(i) from range(400000000) t(i)",
        "select count(*) from sales) ; drop table sales; select (1",
        "",
    ],
)
async def test_only_one_select_over_ones_tables_is_run(alice, sql):
    """Nothing outside is read or written, and memory is bounded; the query fails alone."""
    await upload(alice, "sales.csv", SALES)
    content = f"sql: {sql}"
    output = await asks(alice, content)
    assert "not possible" in output or "column_name" in output, output
    assert "root:" not in output
    assert "| 35 |" in await asks(alice, "sql: select sum(amount) from sales")
    assert not list(Path("/tmp").glob("nurseries-escaped*"))


async def test_a_long_result_is_cut_and_says_so(alice):
    """Rows beyond the bound, and text beyond its own, are left out visibly."""
    await upload(alice, "sales.csv", SALES)
    output = await asks(alice, "sql: select range as n from range(100)")
    assert "| 4 |\n\nThere are more rows." in output
    output = await asks(alice, "sql: select repeat('y', 10000) as long")
    assert "y" * 2000 + "\u2026" in output
    assert "y" * 2001 not in output


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        (
            "select length(repeat('x', 1000000000))",
            "needs more than 536870912 bytes",
        ),  # DuckDB does not count it
        (
            "select levenshtein(repeat('a', 300000), repeat('b', 300000))",
            "did not answer",
        ),  # and does not listen
        (f"select null::{'struct(a ' * 900}int{')' * 900}", "did not answer"),  # not even while it parses
    ],
    ids=["memory", "computing", "parsing"],
)
async def test_what_duckdb_does_not_bound_ends_with_its_process(database, sql, words):
    """The system bounds it; the only place for a query is free for the next one, of another user, at once."""
    files = FileSettings(query_seconds=6, queries=1)
    async with (
        running_server(database.owner, files=files) as url,
        signed_up(url) as one,
        signed_up(url) as two,
    ):
        for user in (one, two):
            assert (await upload(user, "sales.csv", SALES)).status_code == 201
        assert words in await asks(one, f"sql: {sql}")
        assert children(PROGRAM) == []
        assert "| 35 |" in await asks(two, "sql: select sum(amount) from sales")


async def test_a_duckdb_that_dies_fails_its_query_alone(alice, bob):
    """As it would where the system runs out of memory: the run says so and goes on, nobody else notices."""
    await upload(alice, "sales.csv", SALES)
    await upload(bob, "sales.csv", SALES)
    async with alice.socket() as socket:
        await socket.send(
            type="user_message", thread_id=await alice.thread(), content=f"sql: {ENDLESS}", agent="analyst"
        )
        await socket.until("tool_executing")
        with trio.fail_after(30):
            while not (found := children(PROGRAM)):
                await trio.lowlevel.checkpoint()
        assert "| 35 |" in await asks(bob, "sql: select sum(amount) from sales")
        found[0].kill()
        (*_, ended) = await socket.until("agent_completed")
    assert "DuckDB broke over it" in ended["payload"]["output"]
    assert leftovers() == []


async def test_values_of_every_type_are_told(alice):
    """Times with a zone, which Python's client cannot read without another package, and lists of any length."""
    await upload(alice, "sales.csv", SALES)
    output = await asks(
        alice,
        "sql: select timestamptz '2026-01-01 12:00:00+00' as moment, range(100000) as many, 2::hugeint ** 100 as huge",
    )
    assert "2026-01-01 12:00:00+00" in output
    assert "[0, 1, 2," in output
    assert "1267650600228229401496703205376" in output or "1.26765" in output


async def test_a_query_is_interrupted_when_its_run_is_cancelled(alice, database):
    """Its process is gone when that is told, and the next query of the same user is answered."""
    promote(database, alice)
    await upload(alice, "sales.csv", SALES)
    thread = await alice.thread()
    async with alice.socket() as socket:
        await socket.send(type="user_message", thread_id=thread, content=f"sql: {ENDLESS}", agent="analyst")
        frames = await socket.until("tool_executing")
        await socket.send(type="cancel", run_id=frames[-1]["run_id"])
        await socket.until("run_cancelled")
    assert children(PROGRAM) == []
    assert "| 35 |" in await asks(alice, "sql: select sum(amount) from sales")
    assert leftovers() == []


async def test_a_query_that_takes_too_long_is_told_so(database):
    """The time limit interrupts it; the run goes on."""
    async with (
        running_server(database.owner, files=FileSettings(query_seconds=0.5)) as url,
        signed_up(url) as user,
    ):
        await upload(user, "sales.csv", SALES)
        output = await asks(user, f"sql: {ENDLESS}")
        assert "did not answer within 0.5 seconds" in output


async def test_the_audit_finds_nothing_shared_between_two_analysts(alice, bob, database):
    """Two users in the middle of their queries."""
    promote(database, alice)
    async with alice.socket() as one, bob.socket() as other:
        for user, socket in ((alice, one), (bob, other)):
            await upload(user, "sales.csv", SALES)
            await socket.send(
                type="user_message",
                thread_id=await user.thread(),
                content=f"sql: {ENDLESS}",
                agent="analyst",
                on_disconnect="cancel",
            )
            await socket.until("tool_executing")
        report = (await alice.http.get("/v1/admin/isolation")).json()
        assert report["findings"] == []


async def test_an_upload_without_room_is_asked_to_come_back(alice, monkeypatch):
    """503 where the disk for temporary files is full; nothing is stored, and later it is."""

    def full(**_options):
        return Path("/dev/full").open("wb", buffering=0)

    with monkeypatch.context() as patch:
        patch.setattr("app.web.uploads.NamedTemporaryFile", full)
        refused = await upload(alice, "a.csv", SALES)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert (await alice.http.get("/v1/files")).json() == {"files": []}
    assert (await upload(alice, "a.csv", SALES)).status_code == 201


async def test_too_many_uploads_at_once_are_asked_to_come_back(database):
    """503 with Retry-After while the only place is taken, and room again afterwards."""
    async with (
        running_server(database.owner, files=FileSettings(uploads=1)) as url,
        signed_up(url) as user,
    ):
        go_on = trio.Event()
        boundary = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'

        async def slow_body() -> AsyncIterator[bytes]:
            yield boundary
            await go_on.wait()
            yield SALES + b"\r\n--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                answer = await user.http.post("/v1/files", content=slow_body(), headers=headers)
                assert answer.status_code == 201, answer.text

            nursery.start_soon(first)
            with trio.fail_after(30):
                while not leftovers():  # its file is made in its place
                    await trio.lowlevel.checkpoint()
            refused = await upload(user, "b.csv", SALES)
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            go_on.set()
        assert (await upload(user, "c.csv", io.BytesIO(SALES).getvalue())).status_code == 201
