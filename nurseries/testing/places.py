"""Where a task stands: lines for people who have to find a fault."""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

FRAMES: Final = 6
"""How many lines are shown of a task, the innermost ones."""

_TRIO: Final = str(Path(trio.__file__).parent)
_HERE: Final = str(Path(__file__).parent)
_STANDARD: Final = sysconfig.get_path("stdlib")


@attrs.frozen
class Line:
    """One line of a stack; it costs little to keep, and is looked up when it is shown."""

    file: str
    module: str
    number: int
    function: str

    @classmethod
    def of(cls, place: tuple[FrameType, int]) -> Line:
        """Return the line of a frame."""
        frame, number = place
        code = frame.f_code
        return cls(code.co_filename, frame.f_globals.get("__name__", ""), number, code.co_qualname)

    @property
    def is_own(self) -> bool:
        """Whether it is of people's own code, and not of Trio, the standard library or these tools."""
        if self.file.startswith((_TRIO, _HERE)):
            return False
        return not self.file.startswith(_STANDARD) or "site-packages" in self.file

    def __str__(self) -> str:
        file = os.path.relpath(self.file)
        if file.startswith(".."):  # installed somewhere: where does not matter
            file = self.module.replace(".", "/") + ".py"
        return f"{file}:{self.number} in {self.function}: {linecache.getline(self.file, self.number).strip()}"


def name_of(task: trio.lowlevel.Task) -> str:
    """Return the name of the function that the task runs. Unlike the task's own name it holds no id."""
    name: str = getattr(task.coro, "__qualname__", task.name)
    return name


def place_of(task: trio.lowlevel.Task) -> str:
    """Return the lines at which the task stands, the innermost last, without those of Trio."""
    own = [line for line in map(Line.of, task.iter_await_frames()) if line.is_own]
    return described(own[-FRAMES:])


def lines_above(frame: FrameType) -> list[Line]:
    """Return the lines that led to `frame`, the innermost last."""
    own: list[Line] = []
    for line in map(Line.of, traceback.walk_stack(frame)):
        if line.is_own:
            own.append(line)
            if len(own) == FRAMES:
                break
    return own[::-1]


def described(lines: Sequence[Line]) -> str:
    """Return the lines as text."""
    return "\n".join(map(str, lines)) or "before its first line"


def tasks_below(root: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Yield `root` and all tasks in its nurseries, and in theirs."""
    waiting = [root]
    while waiting:
        task = waiting.pop()
        yield task
        for nursery in task.child_nurseries:
            waiting.extend(nursery.child_tasks)


def standing(root: trio.lowlevel.Task) -> str:
    """Return where each task below `root` stands that does not only wait for its children."""
    return "\n".join(
        f"- {name_of(task)}\n    " + place_of(task).replace("\n", "\n    ")
        for task in tasks_below(root)
        if not any(nursery.child_tasks for nursery in task.child_nurseries)
    )
