"""Processes as the kernel sees them, from outside: what /proc says."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_SECONDS = 10


def until(what: str, condition: Callable[[], object], patience: float = PATIENCE_SECONDS) -> object:
    """Waits until a condition holds, and returns what it says."""
    give_up = time.monotonic() + patience
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
    for line in read(f"/proc/{process}/status").splitlines():
        if line.startswith("VmRSS:"):
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
    """A function between invocations, with its presses and the run that waits under each."""

    function: Holdings
    presses: dict[int, Holdings]
    runs: list[Holdings]
    connections_to_s3: int = field(compare=False)


def take_census(function: int, s3_port: int) -> Census:
    presses = children(function)
    runs = [run for press in presses for run in children(press)]
    return Census(
        function=holdings(function, s3_port),
        presses={press: holdings(press, s3_port) for press in presses},
        runs=[holdings(run, s3_port) for run in runs],
        connections_to_s3=open_files(function, s3_port)[1],
    )


def take_census_at_rest(function: int, s3_port: int) -> Census:
    """A census when each press's next run has been forked and is warm, which takes some milliseconds."""
    return until("the runs wait", lambda: at_rest(take_census(function, s3_port)))


def at_rest(taken: Census) -> Census | None:
    is_at_rest = len(taken.runs) == len(taken.presses) and all(len(run.threads) == 1 for run in taken.runs)
    return taken if taken.presses and is_at_rest else None


def expect_same(before: Census, function: int, s3_port: int, when: str) -> Census:
    """Waits until everything is as before, for as long as forking and warming the next run may take."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while (after := take_census(function, s3_port)) != before:
        assert time.monotonic() < give_up, f"{when}: {differences(before, after)}"
        time.sleep(0.001)
    return after


def runs_work(function: int) -> bool:
    """Whether every press's run is setting a document, or warming itself, which soon ends."""
    runs = [children(press) for press in children(function)]
    return bool(runs) and all(len(under) == 1 and len(threads(under[0])) > 1 for under in runs)


def run_ids(function: int) -> set[int]:
    return {run for press in children(function) for run in children(press)}


def differences(before: Census, after: Census) -> str:
    """For a failing test's reader: what has come and what has gone."""
    said = []
    pairs = [("function", before.function, after.function)]
    for press in sorted(before.presses.keys() | after.presses.keys()):
        nothing = Holdings([], [], 0)
        pairs.append((f"press {press}", before.presses.get(press, nothing), after.presses.get(press, nothing)))
    for name, was, now in pairs:
        for kind in ("threads", "files"):
            came = Counter(getattr(now, kind)) - Counter(getattr(was, kind))
            went = Counter(getattr(was, kind)) - Counter(getattr(now, kind))
            if came or went:
                said.append(f"{name}: {kind} came {dict(came)}, went {dict(went)}")
        if was.children != now.children:
            said.append(f"{name}: {was.children} children, now {now.children}")
    return "; ".join(said) or f"runs were {before.runs}, are {after.runs}"
