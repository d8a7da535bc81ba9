"""The function under AWS's Runtime Interface Emulator: what it answers, and what it leaves behind."""

import base64
import json
import os
import random
import re
import signal
import threading
from pathlib import Path

import pytest

import aws
import census
from conftest import OUTPUT, WORKERS, StartFunction, port_of
from documents import (
    DIRECT,
    EVENTS,
    FAILING,
    event,
    failures,
    ids,
    invoice,
    letter,
    message,
    outcomes,
    record,
    report,
    statement,
)
from emulator import Emulator, InvocationFailed, expect_gone

INVOCATIONS = 500
# What the SDK keeps open, as docs/operations.md says.
MOST_CONNECTIONS = 8


def letters(*numbers: int) -> dict:
    return event(*(record(f"letter-{number}", message("letter", letter(number))) for number in numbers))


ENDLESS = event(*(record(f"endless-{number}", message("endless", {"endless": True})) for number in range(WORKERS)))


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.name)
def test_every_event_gets_its_outcomes_and_every_pdf_is_stored(start_function: StartFunction, s3, path: Path):
    emulator = start_function()
    good, bad = outcomes(path)
    assert failures(emulator.invoke(json.loads(path.read_text()))) == bad
    assert aws.message_ids(s3, OUTPUT) == sorted(good)


def test_a_direct_call_is_answered_with_what_was_stored(start_function: StartFunction, s3):
    emulator = start_function()
    sent = json.loads(DIRECT.read_text())
    answer = emulator.invoke(sent)
    assert (answer["bucket"], answer["key"], answer["pages"]) == (OUTPUT, sent["key"], 1)
    stored = s3.get_object(Bucket=OUTPUT, Key=sent["key"])
    assert stored["ContentLength"] == answer["bytes"]
    assert stored["ETag"].strip('"') == answer["eTag"]


def test_a_preview_is_the_pdf_itself(start_function: StartFunction, s3):
    emulator = start_function()
    answer = emulator.invoke(json.loads(DIRECT.read_text()) | {"respond": "inline"})
    pdf = base64.b64decode(answer["pdf"])
    assert pdf.startswith(b"%PDF-") and len(pdf) == answer["bytes"]
    assert aws.keys(s3, OUTPUT) == []


def test_a_direct_call_that_fails_has_the_code_as_its_error_type(start_function: StartFunction):
    emulator = start_function()
    for body, code in [
        ({"template": "lettre", "data": {}}, "UnknownTemplate"),
        ({"template": "letter", "data": {"to": "x"}, "respond": "later"}, "InvalidMessage"),
        ({"template": "letter", "data": {"to": 2**64}}, "InvalidData"),
        ({"template": "letter", "data": {"to": "x"}, "files": {"a": "no-such-object"}}, "InvalidMessage"),
    ]:
        with pytest.raises(InvocationFailed) as failed:
            emulator.invoke(body)
        assert json.loads(str(failed.value))["errorType"] == code
    assert emulator.invoke(letters(1)) == {"batchItemFailures": []}, "the function lives on"


def test_an_event_that_is_not_of_sqs_is_one_clear_error(start_function: StartFunction):
    emulator = start_function()
    with pytest.raises(InvocationFailed, match="EventError"):
        emulator.invoke({"detail-type": "Scheduled Event"})
    assert emulator.invoke(letters(1)) == {"batchItemFailures": []}, "the function lives on"


def test_a_bad_environment_stops_init_with_the_variables_name(start_function: StartFunction):
    emulator = start_function(WORKERS="many")
    with pytest.raises(InvocationFailed):
        emulator.invoke(letters(1))
    assert any('WORKERS is "many"; it takes ' in line for line in emulator.log_lines())


def test_a_function_that_died_is_started_again_with_the_next_event(start_function: StartFunction, s3):
    emulator = start_function()
    emulator.invoke(letters(1))
    for number in (2, 3):
        cold, family = emulator.function, census.descendants(emulator.function)
        os.kill(cold, signal.SIGKILL)
        expect_gone([cold, *family])
        answers = answers_after_a_death(emulator, letters(number))
        assert answers[-1] == {"batchItemFailures": []}
        assert emulator.function != cold
    assert sorted(aws.keys(s3, OUTPUT)) == [f"letter/letter-{number}.pdf" for number in (1, 2, 3)]


def answers_after_a_death(emulator: Emulator, sent: dict) -> list[object]:
    """The emulator may notice only with the next invocation that the function is gone, and fail that one."""
    try:
        return [emulator.invoke(sent)]
    except InvocationFailed as failed:
        return [failed, emulator.invoke(sent)]


def mixed_batch(number: int) -> tuple[dict, list[str]]:
    """One of many batches, and the ids of the bad records in it."""
    chance = random.Random(number)
    bodies = [message("letter", letter(number * 10 + index)) for index in range(chance.choice([0, 1, 1, 1, 2, 5, 10]))]
    if number % 10 == 3:
        bodies += [message("invoice", invoice(number)), message("statement", statement(200, number))]
    if number % 50 == 7:
        bodies.append(message("report", report(3, number)))
    good = len(bodies)
    if number % 5 == 1:
        bodies += chance.sample(FAILING, 2)
    records = [record(f"{number}-{index}", body) for index, body in enumerate(bodies)]
    bad = ids(records[good:])
    chance.shuffle(records)
    return event(*records), bad


def test_five_hundred_invocations_leave_nothing_behind(start_function: StartFunction, moto: str, s3):
    emulator = start_function()
    # Every template has been used, and the connection to the emulator is there.
    emulator.invoke(letters(*range(20)))
    function, s3_port = emulator.function, port_of(moto)
    before = census.take_census_at_rest(function, s3_port, WORKERS)
    assert before.function.children == 1 and before.press.threads == ["press"]
    assert before.press.children == len(before.runs) == WORKERS
    for number in range(INVOCATIONS):
        batch, bad = mixed_batch(number)
        runs = set(census.runs_of(function))
        failed = failures(emulator.invoke(batch))
        assert sorted(failed) == sorted(bad)
        after = census.expect_same(before, function, s3_port, f"after invocation {number}")
        assert emulator.function == function
        assert after.connections_to_s3 <= MOST_CONNECTIONS
        has_rendered = any(item["messageId"] not in bad for item in batch["Records"])
        assert not has_rendered or set(census.runs_of(function)) != runs, "no run that has seen a message is alive"


def test_sigterm_ends_an_idle_function_and_all_that_is_its(start_function: StartFunction):
    emulator = start_function()
    emulator.invoke(letters(1))
    function, family = emulator.function, census.descendants(emulator.function)
    assert len(family) == 1 + WORKERS, "a press and its runs"
    os.kill(function, signal.SIGTERM)
    expect_gone([function])
    expect_reaped(family)
    assert said_of_sigterm(emulator) == ["idle"]


@pytest.mark.parametrize("whom", ["function", "emulator"])
def test_sigterm_ends_a_working_function_and_all_that_is_its(start_function: StartFunction, whom: str):
    emulator = start_function()
    emulator.invoke(letters(1))
    function = emulator.function
    outcome: list[object] = []

    def invoke() -> None:
        try:
            outcome.append(emulator.invoke(ENDLESS))
        except (InvocationFailed, OSError) as failed:
            outcome.append(failed)

    invoking = threading.Thread(target=invoke)
    invoking.start()
    census.until("all runs have worked for a while", lambda: all_runs_have_used(function, cpu_seconds=0.2))
    family = census.descendants(function)
    assert len(family) == 1 + WORKERS, "a press and its runs"
    os.kill(function if whom == "function" else emulator.process.pid, signal.SIGTERM)
    expect_gone([function])
    if whom == "function":
        expect_reaped(family)
        assert said_of_sigterm(emulator) == ["working"]
    else:
        # It kills the function at once. What that has started ends by itself.
        expect_gone(family)
    invoking.join(timeout=10)
    assert len(outcome) == 1 and not isinstance(outcome[0], dict), "nothing was acknowledged"


def expect_reaped(processes: list[int]) -> None:
    left = [(process, state) for process in processes if (state := census.state(process))]
    assert left == [], "no process, and no zombie, is left to others when the function has ended"


def said_of_sigterm(emulator: Emulator) -> list[str]:
    """What the function was doing, as each of its lines about SIGTERM says."""
    lines = [re.search(r"SIGTERM while (\w+)", line) for line in emulator.log_lines()]
    return [line[1] for line in lines if line]


def all_runs_have_used(function: int, cpu_seconds: float) -> bool:
    """More than warming takes."""
    is_enough = all(census.cpu_seconds(run) > cpu_seconds for run in census.runs_of(function))
    return is_enough and census.runs_work(function, WORKERS)


def test_an_invocation_past_its_time_is_answered_and_leaves_nothing_behind(start_function: StartFunction, moto: str):
    emulator = start_function(timeout_seconds=4)
    emulator.invoke(letters(*range(20)))
    function, s3_port = emulator.function, port_of(moto)
    before = census.take_census_at_rest(function, s3_port, WORKERS)
    assert len(failures(emulator.invoke(ENDLESS))) == WORKERS
    census.expect_same(before, function, s3_port, "after an invocation past its time")
