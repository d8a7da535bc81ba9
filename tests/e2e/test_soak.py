"""Thousands of documents of all sizes, some failing, some killing their run: nothing grows and nothing is lost."""

import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import aws
import census
import soak_picture
from conftest import OUTPUT, WORKERS, StartFunction, port_of
from documents import FAILING, KILLING, event, failures, invoice, message, record, report, statement
from emulator import Emulator
from soak_picture import Sample

BATCH = 10
# What a failing and a killing document stand at in every hundred, and in every thousand.
FAILS_AT, KILLS_AT = 37, 500
# More than the longest report takes on a busy machine. An endless document takes all of it.
MAX_RENDER_MS = 15_000
# What a process holds rises with the largest documents so far, which come ever more rarely. A leak is as large in the
# second half as in the first.
MOST_GROWTH_OF_THE_PRESS_KIB = 256
# By then nearly all of the largest have been.
LONG_SOAK, MOST_GROWTH_IN_A_LONG_SOAK_KIB = 10_000, 128
MOST_GROWTH_OF_THE_FUNCTION = 1.1
# The press only forks: what it has written into its memory stays what it was after the first document.
MOST_CHANGE_OF_WHAT_THE_PRESS_OWNS_KIB = 64


def body(number: int) -> str:
    if number % 1000 == KILLS_AT:
        return KILLING[number // 1000 % len(KILLING)]
    if number % 100 == FAILS_AT:
        return FAILING[number // 100 % len(FAILING)]
    return message(*document(number))


def document(number: int) -> tuple[str, dict]:
    """One page mostly, up to some 200."""
    chance = random.Random(number)
    kind = chance.random()
    if kind < 0.85:
        return "invoice", invoice(number)
    if kind < 0.95:
        return "statement", statement(chance.randint(1, 400), number)
    if kind < 0.99:
        return "report", report(chance.randint(1, 5), number)
    if kind < 0.998:
        return "statement", statement(chance.randint(400, 5_000), number)
    return "report", report(chance.randint(20, 47), number)


def is_bad(number: int) -> bool:
    return number % 1000 == KILLS_AT or number % 100 == FAILS_AT


def test_nothing_grows(
    start_function: StartFunction, moto: str, s3, target: Path, capsys: pytest.CaptureFixture, request
):
    emulator = start_function(
        timeout_seconds=120, MAX_RENDER_MS=str(MAX_RENDER_MS), AWS_LAMBDA_FUNCTION_MEMORY_SIZE="1769"
    )
    first, *samples = soak(emulator, s3, port_of(moto), request.config.getoption("--soak"))
    folder = target / "e2e"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_text(json.dumps([asdict(sample) for sample in [first, *samples]]))
    soak_picture.draw(samples, folder / "soak.svg")
    with capsys.disabled():
        print(f"\n{soak_picture.table(samples)}\n{folder / 'soak.svg'}")
    expect_no_growth(samples)
    last = samples[-1]
    assert abs(last.press_own_kib - first.press_own_kib) <= MOST_CHANGE_OF_WHAT_THE_PRESS_OWNS_KIB, f"{first}, {last}"


def soak(emulator: Emulator, s3, s3_port: int, documents: int) -> list[Sample]:
    """A sample after the first invocation, and one after each that follows."""
    # So that the connections to emulator and S3 are there.
    began = time.perf_counter()
    emulator.invoke(event(record("first", message("invoice", invoice(0)))))
    milliseconds = (time.perf_counter() - began) * 1000
    aws.delete_all(s3, OUTPUT)
    function = emulator.function
    before = census.take_census_at_rest(function, s3_port, WORKERS)
    samples = [sample(0, before, function, milliseconds)]
    for start in range(0, documents, BATCH):
        numbers = range(start, start + BATCH)
        batch = event(*(record(f"m-{number}", body(number)) for number in numbers))
        began = time.perf_counter()
        answer = emulator.invoke(batch)
        milliseconds = (time.perf_counter() - began) * 1000 / BATCH
        assert failures(answer) == [f"m-{number}" for number in numbers if is_bad(number)]
        assert_stored(s3, {f"m-{number}" for number in numbers if not is_bad(number)})
        after = census.expect_same(before, function, s3_port, f"after {start + BATCH} documents")
        samples.append(sample(start + BATCH, after, function, milliseconds))
    return samples


def sample(documents: int, after: census.Census, function: int, milliseconds: float) -> Sample:
    processes = [after.function, after.press]
    return Sample(
        documents,
        census.resident_kib(function),
        census.resident_kib(after.press_id),
        census.own_kib(after.press_id),
        sum(len(process.threads) for process in processes),
        sum(len(process.files) for process in processes) + after.connections_to_s3,
        milliseconds,
    )


def assert_stored(s3, ids: set[str]) -> None:
    """Every one of these is in S3, and nothing else. Takes it away."""
    assert aws.message_ids(s3, OUTPUT) == sorted(ids)
    aws.delete_all(s3, OUTPUT)


def expect_no_growth(samples: list[Sample]) -> None:
    halves = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    is_long = samples[-1].documents >= LONG_SOAK
    most_growth_kib = MOST_GROWTH_IN_A_LONG_SOAK_KIB if is_long else MOST_GROWTH_OF_THE_PRESS_KIB
    then, now = (max(sample.press_kib for sample in half) for half in halves)
    assert now <= then + most_growth_kib
    then, now = (max(sample.function_kib for sample in half) for half in halves)
    assert now <= then * MOST_GROWTH_OF_THE_FUNCTION
