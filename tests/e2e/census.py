"""Processes as the kernel sees them, from outside: what /proc says."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_SECONDS = 10


def until(what: str, condition: Callable[[], object], timeout_seconds: float = TIMEOUT_SECONDS) -> object:
    """Waits until a condition holds, and returns what it says."""
    give_up = time.monotonic() + timeout_seconds
    while not (held := condition()):
        assert time.monotonic() < give_up, f"waited in vain until {what}"
        time.sleep(0.001)
    return held


def is_alive(process: int) -> bool:
    """Whether a process is there and not a zombie."""
    return state(process) not in ("", "Z", "X")


def kill(process: int) -> None:
    """Kills a process from outside, and waits until it is dead."""
    os.kill(process, signal.SIGKILL)
    until("it is dead", lambda: not is_alive(process))


def state(process: int) -> str:
    stat = read(f"/proc/{process}/stat")
    return stat.rpartition(")")[2].split()[0] if stat else ""


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(process: int) -> list[int]:
    """The children of all of a process's threads, zombies included."""
    found: list[int] = []
    for thread in thread_ids(process):
        found += [int(child) for child in read(f"/proc/{process}/task/{thread}/children").split()]
    return sorted(found)


def descendants(process: int) -> list[int]:
    below = children(process)
    return below + [grandchild for child in below for grandchild in descendants(child)]


def thread_ids(process: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{process}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []


def threads(process: int) -> list[str]:
    """The names of a process's threads, sorted."""
    return sorted(read(f"/proc/{process}/task/{thread}/comm").strip() for thread in thread_ids(process))


def resident_kib(process: int) -> int:
    """The memory that a process has in RAM, what it shares with others included."""
    return kib_of(f"/proc/{process}/status", "VmRSS")


def own_kib(process: int) -> int:
    """The memory of a process that no file is behind: what it, or its parent before it was forked, has written."""
    return kib_of(f"/proc/{process}/smaps_rollup", "Anonymous")


def kib_of(path: str, name: str) -> int:
    for line in read(path).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def cpu_seconds(process: int) -> float:
    fields = read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0


def make_resident(process: int) -> None:
    """Looks at every file that a process has mapped, which the kernel then counts as memory that it has."""
    with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        for line in maps:
            addresses, permissions, _, _, inode = line.split()[:5]
            if permissions.startswith("r") and inode != "0":
                start, end = (int(address, 16) for address in addresses.split("-"))
                memory.seek(start)
                while start < end and (read := memory.read(min(end - start, 1 << 20))):
                    start += len(read)


def open_files(process: int, s3_port: int) -> tuple[list[str], int]:
    """What a process has open, by kind or name, and how many connections to S3 are not in it."""
    connections = sockets_connected_to(process, s3_port)
    names, to_s3 = [], 0
    try:
        entries = os.listdir(f"/proc/{process}/fd")
    except (FileNotFoundError, ProcessLookupError):
        entries = []
    for entry in entries:
        try:
            name = os.readlink(f"/proc/{process}/fd/{entry}")
        except FileNotFoundError:
            continue
        if name in connections:
            to_s3 += 1
        else:
            names.append(name.split(":[")[0])
    return sorted(names), to_s3


def sockets_connected_to(process: int, port: int) -> set[str]:
    lines = [line.split() for line in read(f"/proc/{process}/net/tcp").splitlines()[1:]]
    return {f"socket:[{line[9]}]" for line in lines if int(line[2].split(":")[1], 16) == port}


@dataclass(frozen=True)
class Holdings:
    """What a process holds. Connections to S3 are counted apart: the SDK keeps some."""

    threads: list[str]
    files: list[str]
    children: int


def holdings(process: int, s3_port: int) -> Holdings:
    return Holdings(threads(process), open_files(process, s3_port)[0], len(children(process)))


@dataclass(frozen=True)
class Census:
    """A function between invocations, with its press and the runs that wait below it."""

    function: Holdings
    # No other press may have taken its place.
    press_id: int | None
    press: Holdings
    runs: list[Holdings]
    connections_to_s3: int = field(compare=False)


def take_census(function: int, s3_port: int) -> Census:
    # When a press has just died, its runs are the function's children until that has reaped them.
    below = children(function)
    press_id = below[0] if len(below) == 1 else None
    return Census(
        function=holdings(function, s3_port),
        press_id=press_id,
        press=holdings(press_id, s3_port) if press_id else Holdings([], [], 0),
        runs=[holdings(run, s3_port) for run in runs_of(function)],
        connections_to_s3=open_files(function, s3_port)[1],
    )


def take_census_at_rest(function: int, s3_port: int, workers: int) -> Census:
    """A census when the next run of each worker has been forked and is warm, which takes some milliseconds."""
    return until("the runs wait", lambda: at_rest(take_census(function, s3_port), workers))


def at_rest(taken: Census, workers: int) -> Census | None:
    return taken if len(taken.runs) == workers and all(len(run.threads) == 1 for run in taken.runs) else None


def expect_same(before: Census, function: int, s3_port: int, when: str) -> Census:
    """Waits until everything is as before, for as long as forking and warming the next runs may take."""
    give_up = time.monotonic() + TIMEOUT_SECONDS
    while (after := take_census(function, s3_port)) != before:
        assert time.monotonic() < give_up, f"{when}: {differences(before, after)}"
        time.sleep(0.001)
    return after


def runs_of(function: int) -> list[int]:
    """The process ids of the runs of a function's press."""
    return [run for press in children(function) for run in children(press)]


def runs_work(function: int, workers: int) -> bool:
    """Whether every worker's run is rendering a document, or warming itself, which soon ends."""
    runs = runs_of(function)
    return len(runs) == workers and all(len(threads(run)) > 1 for run in runs)


def differences(before: Census, after: Census) -> str:
    """For a failing test's reader: what has come and what has gone."""
    said = []
    if before.press_id != after.press_id:
        said.append(f"the press was process {before.press_id}, is {after.press_id}")
    for name, was, now in [("function", before.function, after.function), ("press", before.press, after.press)]:
        for kind in ("threads", "files"):
            came = Counter(getattr(now, kind)) - Counter(getattr(was, kind))
            went = Counter(getattr(was, kind)) - Counter(getattr(now, kind))
            if came or went:
                said.append(f"{name}: {kind} came {dict(came)}, went {dict(went)}")
        if was.children != now.children:
            said.append(f"{name}: {was.children} children, now {now.children}")
    if before.runs != after.runs:
        said.append(f"runs were {before.runs}, are {after.runs}")
    return "; ".join(said)
