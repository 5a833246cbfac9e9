"""What the documentation shows is true: links lead somewhere, listings run."""

import ast
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def anchors(page):
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Every relative link of a page: to a file that is there, and in it to a heading."""
    for link in re.findall(r"\]\(([^)\s]+)", page.read_text()):
        if "://" not in link:
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not heading or heading in anchors(target), link


NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(page):
    """A function of that name, in that file."""
    for path, name in NAMED.findall(page.read_text()):
        tree = ast.parse((ROOT / path).read_text())
        functions = {
            node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        assert name in functions, f"{path}::{name}"
        assert name.startswith("test_")


def test_no_hazard_is_without_a_test():
    """Every numbered row, and every row without a number, names one."""
    rows = [line for line in (ROOT / "docs" / "hazards.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not re.match(r"\| (---|#|hazard)", row)]
    numbers = [int(found[1]) for row in rows if (found := re.match(r"\| (\d+) \|", row))]
    assert numbers == list(range(1, 51))
    assert len(rows) == 17 + 50
    assert all(NAMED.search(row) for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page):
    """What a page names in the repository is there."""
    for path in re.findall(r"`((?:tests|docs|app|nurseries)/[\w/.]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_kernel_alone_runs(database):
    """The program of docs/request.md: one request succeeds, the other fails, neither hears of the other."""
    listing = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "request.md").read_text(), re.DOTALL)[1]
    program = subprocess.run(
        [sys.executable, "-c", listing],
        env={**os.environ, "NURSERIES_EXAMPLE_CONNINFO": database.request},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = sorted(
        program.stdout.splitlines()[-2:]
        if len(program.stdout.splitlines()) == 2
        else program.stdout.splitlines()
    )
    assert "alice alice ['greeted']" in lines
    assert any(line.startswith("bob Failure(code='internal'") and line.endswith("[]") for line in lines)


def test_the_serving_layer_alone_runs():
    """The program of docs/serving.md answers a request and a socket, and ends well when it is told to."""
    listing = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)[1]
    with subprocess.Popen(
        [sys.executable, "-c", listing.replace("port=8000", "port=0")], stdout=subprocess.PIPE, text=True
    ) as program:
        url = program.stdout.readline().removeprefix("listening on ").strip()
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == b"hello\n"
        with connect(url.replace("http", "ws", 1)) as socket:
            socket.send("hi")
            assert [socket.recv(30), socket.recv(30)] == ["two texts,", "one write: 'hi'"]
        program.terminate()
        assert program.wait(timeout=30) == 0
