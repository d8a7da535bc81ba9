"""The log: whose each line is, at every level and in both formats, and that no line has a message's data in it."""

import json
from http.client import HTTPConnection

import pytest

from conftest import WORKERS, StartFunction
from documents import TEMPLATES, event, failures, letter, message, record, sample
from emulator import Emulator

# What Lambda may ask for.
LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"]
FORMATS = ["Text", "JSON"]
WORKER_NUMBERS = range(1, WORKERS + 1)
MARKER = "Ottoline"
MARKER_NUMBER = 48151623
# The runs of an invocation are killed at its end.
A_RUN_HAS_ENDED = "a run was killed by SIGKILL"
WAYS_TO_QUOTE = ["panic", "everything", "assert", "equal", "convert", "key", "path", "label", "font"]


def marked(data: object) -> object:
    """The same data, with a marker in place of every value."""
    match data:
        case dict():
            return {name: marked(value) for name, value in data.items()}
        case list():
            return [marked(value) for value in data]
        case str():
            return f"{MARKER} {data}"
        case bool() | None:
            return data
    return MARKER_NUMBER


def with_one_marker(data: object) -> list[object]:
    """The same data again and again, each time with a marker in another of the places."""
    match data:
        case dict():
            return [{**data, name: changed} for name, value in data.items() for changed in with_one_marker(value)]
        case list():
            return [
                [*data[:index], changed, *data[index + 1 :]]
                for index, value in enumerate(data[:1])
                for changed in with_one_marker(value)
            ]
    return [MARKER, MARKER_NUMBER]


def bodies() -> list[str]:
    """Messages that have the marker in their data, and fail in many ways, or do not."""
    templates = [template.name for template in TEMPLATES.iterdir() if (template / "sample.json").exists()]
    return [
        *(message(template, marked(sample(template))) for template in templates),
        *(message(template, data) for template in templates for data in with_one_marker(sample(template))),
        *(message("quotes", {"way": way, "secret": MARKER}) for way in WAYS_TO_QUOTE),
        message("letter", {"to": MARKER}),
        message("panic", {"rows": 2**63 - 1, "secret": MARKER}),
        message("overflow", {"depth": 300_000, "secret": MARKER}),
        message("no-such", MARKER),
        message("letter", MARKER, metadata=MARKER),
        message("letter", {}, key={"data": MARKER}),
        json.dumps({"template": ["letter"], "data": MARKER}),
        message("letter", {"to": MARKER})[:-4],
        MARKER,
        json.dumps(MARKER),
        json.dumps([MARKER, MARKER]),
    ]


def events_that_are_not() -> list[object]:
    return [
        MARKER,
        [MARKER],
        {"detail": {"to": MARKER}},
        {"Records": MARKER},
        {"Records": [MARKER]},
        {"Records": [{"eventSource": "aws:s3", "s3": {"object": {"key": MARKER}}}]},
    ]


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("level", LEVELS)
def test_no_line_has_a_value_of_the_data_in_it(start_function: StartFunction, level: str, log_format: str):
    emulator = start_function(AWS_LAMBDA_LOG_LEVEL=level, AWS_LAMBDA_LOG_FORMAT=log_format)
    records = [record(f"m-{number}", body) for number, body in enumerate(bodies())]
    # Not needed, and so no reason to fail.
    odd_attributes = record("attributes", message("letter", letter(1))) | {"attributes": MARKER}
    failed = failures(emulator.invoke(event(*records, odd_attributes)))
    assert "attributes" not in failed and len(failed) > 100, "most of them are errors, which have much to say"
    for body in bodies()[-20:]:
        call_directly(emulator, body)
    for other in events_that_are_not():
        assert_refused(emulator, json.dumps(other))
    assert_refused(emulator, f'{{"Records": "{MARKER}')
    log = emulator.log.read_text()
    assert "<value of /secret>" in log, "where it stands is emitted instead"
    assert ("permanent failure" in log) and (A_RUN_HAS_ENDED in log) == (level in ("TRACE", "DEBUG"))
    for secret in (MARKER, str(MARKER_NUMBER)):
        assert [line for line in log.splitlines() if secret in line] == []


def call_directly(emulator: Emulator, payload: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", emulator.port, timeout=60)
    try:
        connection.request("POST", "/2015-03-31/functions/function/invocations", payload)
        return connection.getresponse().read()
    finally:
        connection.close()


def assert_refused(emulator: Emulator, payload: str) -> None:
    assert "errorType" in json.loads(call_directly(emulator, payload))


def no_field_twice(pairs: list[tuple[str, object]]) -> dict:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


@pytest.mark.parametrize("level", ["DEBUG", "WARN"])
def test_every_line_says_whose_it_is(start_function: StartFunction, level: str):
    emulator = start_function(AWS_LAMBDA_LOG_LEVEL=level, AWS_LAMBDA_LOG_FORMAT="JSON")
    emulator.invoke(
        event(
            record("good", message("letter", letter(1))),
            record("malformed", "{"),
            record("bad", message("broken-at-line-3", {"broken": True})),
            record("killing", message("overflow", {"depth": 300_000})),
        )
    )
    text = [line for line in emulator.log_lines() if line.startswith("{")]
    lines = [json.loads(line, object_pairs_hook=no_field_twice) for line in text]
    lines = [line for line in lines if "_aws" not in line]
    assert all({"timestamp", "level", "message"} <= line.keys() for line in lines)
    of_records = [line for line in lines if "messageId" in line]
    assert all(line["requestId"] for line in of_records)
    ended = [line for line in lines if line["message"].startswith("a run ")]
    assert (A_RUN_HAS_ENDED in {line["message"] for line in ended}) == (level == "DEBUG")
    assert all(line["requestId"] for line in ended)
    outcomes = {line["messageId"]: line for line in of_records if line["message"] in ("stored", "permanent failure")}
    rendered = {"bad", "killing"} | ({"good"} if level == "DEBUG" else set())
    assert outcomes.keys() == rendered | {"malformed"}, "one line a record"
    assert all(outcomes[id]["template"] and outcomes[id]["worker"] in WORKER_NUMBERS for id in rendered)
    said = [line for line in of_records if line["message"].startswith("the document's run wrote to stderr")]
    assert said and {line["messageId"] for line in said} == {"killing"}
    assert (outcomes["killing"]["code"], outcomes["malformed"]["level"]) == ("RunKilled", "ERROR")
