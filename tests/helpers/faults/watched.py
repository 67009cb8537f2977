"""Run cases in a forked child that is watched: it may crash, hang or take all memory without harm."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a case did.

    Attributes:
        case: its number.
        kind: "result", or the name of the exception's class; "crash" or "hang".
        detail: the result or the message.
        seconds: that it took.
        megabytes: by which the child's memory rose, at its peak.
    """

    case: int
    kind: str
    detail: str
    seconds: float
    megabytes: float


def run_watched(
    cases: Sequence[Any], function: Callable[[Any], str], *, seconds: float = 20, memory: int = 3 << 30
) -> list[Outcome]:
    """Call a function with each case, in a child; a child that dies or hangs is replaced by another.

    Args:
        cases: what the function is called with.
        function: returns a short text.
        seconds: after which a case counts as hanging.
        memory: bytes of address space beyond the present that the child may take.
    """
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("fork")
    while len(outcomes) < len(cases):
        first = len(outcomes)
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_run, args=(theirs, cases, first, function, memory))
        child.start()
        theirs.close()
        outcomes += _received(ours, len(cases) - first, seconds)
        if len(outcomes) < len(cases):
            kind = "hang" if child.is_alive() else "crash"
            child.kill()
            child.join()
            outcomes.append(Outcome(len(outcomes), kind, f"exit code {child.exitcode}", seconds, 0.0))
        child.join()
    return outcomes


def _received(ours: Connection, wanted: int, seconds: float) -> list[Outcome]:
    outcomes: list[Outcome] = []
    try:
        while len(outcomes) < wanted and ours.poll(seconds):
            outcomes.append(ours.recv())
    except EOFError:
        time.sleep(0.2)  # until the child is gone
    return outcomes


def _run(
    pipe: Connection, cases: Sequence[Any], first: int, function: Callable[[Any], str], memory: int
) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for number in range(first, len(cases)):
        began, before = time.monotonic(), _reset_peak()
        try:
            kind, detail = "result", function(cases[number])
        except BaseException as error:
            kind, detail = type(error).__name__, str(error)[:300]
        pipe.send(Outcome(number, kind, detail, time.monotonic() - began, _peak() - before))


def _reset_peak() -> float:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


def _peak() -> float:
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1024
