"""The guide to testing one's own agents, docs/testing.md: its listings run, and fail and pass as it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "testing.md"
SECTION = re.search(r"^## Testing your own agents\n(.*?)^## ", GUIDE.read_text(), re.DOTALL | re.MULTILINE)[1]
FAULTY, MENDED = SECTION.split("### Mended\n")
LISTING = re.compile(r"^```python (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OUTPUT = re.compile(r"^```text\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_listings(place: Path, text: str) -> str:
    """Run pytest on the listings as a project of its own; returns what it says."""
    (place / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    for name, listing in LISTING.findall(text):
        (place / name).write_text(listing)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def without_digits(text: str) -> list[str]:
    """Return the lines without what differs from run to run, and from version to version."""
    return [
        re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+", "N", line).strip()
        for line in text.splitlines()
    ]


def assert_shown(said: str, shown: str) -> None:
    """Each line that the guide shows is in what was said, in this order; frames of pytest and Trio may be around it."""
    lines = iter(without_digits(said))
    for expected in without_digits(shown):
        assert any(expected in line for line in lines), f"not said, or not there: {expected}\n{said}"


def test_each_tool_finds_its_fault(tmp_path):
    """Five tests fail with the messages that are shown, and the ordinary one passes."""
    said = run_listings(tmp_path, FAULTY)
    for shown in OUTPUT.findall(FAULTY):
        assert_shown(said, shown)
    assert "5 failed, 1 passed" in said


def test_mended_agents_pass(tmp_path):
    """With the agents of the last listing the same tests pass, and the summary is as shown."""
    said = run_listings(tmp_path, FAULTY + MENDED)
    [shown] = OUTPUT.findall(MENDED)
    assert_shown(said, shown)
    assert "failed" not in said


@pytest.mark.parametrize(
    "tool", ["assert_isolated", "explore", "cancel_everywhere", "virtual_time", "lease_ledger"]
)
def test_every_tool_is_in_the_guide(tool):
    """Each has a heading of its own and a line in the table."""
    assert f"### `{tool}`: " in SECTION
    assert f"| `{tool}" in SECTION
