"""Walks over the live object graph: what a long-lived part reaches, and what is alive at all."""

import gc
import types
from collections import deque

import trio

SKIPPED = (
    type, types.ModuleType, types.FrameType, types.CodeType, types.BuiltinFunctionType,
    trio.lowlevel.Task, trio.Nursery,  # the scheduler ties all tasks of a process together
)  # fmt: skip


def reached(root, kinds, *, but=()):
    """Return the way to each object of one of `kinds` that `root` reaches, without opening what `but` names."""
    waiting, seen, found = deque([(root, type(root).__name__)]), {id(root)}, []
    while waiting:
        thing, way = waiting.popleft()
        for held in _inside(thing):
            if id(held) in seen or isinstance(held, (*SKIPPED, *but)):
                continue
            seen.add(id(held))
            there = f"{way} > {type(held).__name__}"
            if isinstance(held, kinds):
                found.append(there)
            waiting.append((held, there))
    return found


def _inside(thing):
    if isinstance(thing, types.FunctionType):  # its globals are everybody's
        return [*(thing.__closure__ or ()), *(thing.__defaults__ or ())]
    return gc.get_referents(thing)


def alive(kinds):
    """Return the types of all objects of `kinds` that are alive, once the collector has been here."""
    gc.collect()
    return sorted(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, kinds))
