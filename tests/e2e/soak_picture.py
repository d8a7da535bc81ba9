"""The soak test's picture and table."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plot
from matplotlib.ticker import NullFormatter, ScalarFormatter

POINTS = 200


@dataclass(frozen=True)
class Sample:
    """What was seen when so many documents were done."""

    documents: int
    function_kib: int
    press_kib: int
    # Of that, what no file is behind: `Anonymous`, as the kernel calls it.
    press_own_kib: int
    threads: int
    files: int
    milliseconds_a_document: float


def table(samples: list[Sample]) -> str:
    """The table in docs/performance.md: the first sample, some in between and the last."""
    wanted = [10, 100, 500, 1_000, 2_000, 5_000, 10_000, 20_000]
    rows = {next((sample for sample in samples if sample.documents >= number), samples[-1]) for number in wanted}
    memory = "function, resident KiB | press, resident KiB | press, `Anonymous` KiB"
    lines = [f"| documents | {memory} | threads | open files | ms a document |"]
    lines.append("| --- " * (lines[0].count("|") - 1) + "|")
    previous = 0
    for sample in sorted(rows, key=lambda sample: sample.documents):
        since = [each.milliseconds_a_document for each in samples if previous < each.documents <= sample.documents]
        previous = sample.documents
        numbers = [sample.documents, sample.function_kib, sample.press_kib, sample.press_own_kib]
        columns = [f"{number:,}" for number in numbers]
        columns += [str(sample.threads), str(sample.files), f"{sum(since) / len(since):.1f}"]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def draw(samples: list[Sample], path: Path) -> None:
    # Text stays text, and the same samples make the same file.
    plot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pressrun", "font.family": "sans-serif", "font.size": 9}
    figure, (memory, counts, times) = plot.subplots(3, 1, figsize=(8, 6), sharex=True, layout="constrained")
    buckets = split(samples)
    x = [bucket[-1].documents for bucket in buckets]

    kinds = {"function": "function_kib", "press": "press_kib", "press, Anonymous": "press_own_kib"}
    for label, name in kinds.items():
        memory.plot(x, [max(getattr(sample, name) for sample in bucket) / 1024 for bucket in buckets], label=label)
    memory.set_ylabel("resident, MiB")

    counts.plot(x, [max(sample.threads for sample in bucket) for bucket in buckets], label="threads")
    counts.plot(x, [max(sample.files for sample in bucket) for bucket in buckets], label="open files")
    counts.set_ylabel("function and press")

    took = [[sample.milliseconds_a_document for sample in bucket] for bucket in buckets]
    times.plot(x, [median(bucket) for bucket in took], label="median batch")
    times.plot(x, [sum(bucket) / len(bucket) for bucket in took], label="mean", linewidth=0.8)
    times.set_ylabel("ms a document")
    times.set_yscale("log")
    times.yaxis.set_major_formatter(ScalarFormatter())
    times.yaxis.set_minor_formatter(NullFormatter())
    times.set_xlabel("documents")
    for panel in (memory, counts):
        panel.set_ylim(bottom=0)
    for panel in (memory, counts, times):
        panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderpad=0)
        panel.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plot.close(figure)


def split(samples: list[Sample]) -> list[list[Sample]]:
    size = max(1, len(samples) // POINTS)
    return [samples[start : start + size] for start in range(0, len(samples), size)]
