"""What the function tells CloudWatch: each line is what AWS asks for, and each metric is on the dashboard, in the
docs and has moved."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

import aws
import census
from cloudwatch import NAMESPACE, alarms, data, metric_lines, metrics_on_the_dashboard, widgets
from conftest import WORKERS
from documents import FAILING, KILLING, REPOSITORY, TEMPLATES, event, invoice, letter, message, record
from emulator import Emulator
from event_source import new_queue
from faulty_s3 import NO_FAULT, Fault, FaultyS3

FUNCTION = "pressrun-Function"
OUTPUT, INPUT = "metrics-output", "metrics-input"
SCHEMA = json.loads((Path(__file__).parent / "emf.schema.json").read_text())

# What the schema does not say, but the page that it stands on, and the one on log events. Sources:
# https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
# https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutLogEvents.html
MOST_METRICS, MOST_VALUES, MOST_DIMENSIONS, LONGEST_DIMENSION_VALUE = 100, 100, 30, 1_024
# Some of AWS's pages still say that a log event has 256 KB at most, not 1 MB.
LONGEST_LINE_BYTES = 256 * 1024
EARLIEST_SECONDS, LATEST_SECONDS = 14 * 24 * 3600, 2 * 3600


@dataclass
class Stage:
    """Where functions are made to tell everything that they can."""

    binary: Path
    templates: Path
    moto: str
    folder: Path

    @contextmanager
    def function(self, timeout_seconds: int = 60, **environment: str) -> Iterator[Emulator]:
        folder = self.folder / f"function-{time.monotonic_ns()}"
        folder.mkdir()
        variables = {
            "OUTPUT_BUCKET": OUTPUT,
            "INPUT_BUCKET": INPUT,
            "TEMPLATES_DIR": str(self.templates),
            "WORKERS": str(WORKERS),
            "AWS_ENDPOINT_URL_S3": self.moto,
            "AWS_ENDPOINT_URL_SQS": self.moto,
            "AWS_LAMBDA_FUNCTION_NAME": FUNCTION,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
        }
        emulator = Emulator(self.binary, folder, variables | environment, timeout_seconds)
        try:
            yield emulator
        finally:
            emulator.end()


@pytest.fixture(scope="module")
def stage(binary: Path, templates: Path, moto: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with aws.buckets(moto, [OUTPUT, INPUT]) as s3:
        yield Stage(binary, templates, moto, tmp_path_factory.mktemp("metrics"))
        aws.delete_all(s3, INPUT)


@pytest.fixture(scope="module")
def lines(stage: Stage) -> list[dict]:
    """What functions have emitted to which everything happens that can."""
    log = good_bad_and_killing(stage) + s3_and_sqs_that_fail(stage) + killed_from_outside(stage) + out_of_time(stage)
    lines = metric_lines(log)
    assert lines, "they have emitted something"
    return lines


def good_bad_and_killing(stage: Stage) -> list[str]:
    *overflow_and_greedy, endless = KILLING
    with stage.function() as emulator:
        good = [message("invoice", invoice(number)) for number in range(3)]
        # It does not fit with its memo cache.
        good.append(message("table", {"rows": 800, "page-total": False}))
        good.append(message("rows", {"title": "In parts", "rows": [{"text": str(row)} for row in range(50)]}))
        bodies = [*good, *FAILING, *overflow_and_greedy, message("letter", letter(1), key="taken.pdf")]
        emulator.invoke(event(*(record(f"m-{number}", body) for number, body in enumerate(bodies))))
        taken = message("letter", letter(2), key="taken.pdf", if_exists="fail")
        emulator.invoke(event(record("taken", taken)))
    with stage.function(MAX_RENDER_MS="500") as impatient:
        impatient.invoke(event(record("endless", endless)))
    return emulator.log_lines() + impatient.log_lines()


def s3_and_sqs_that_fail(stage: Stage) -> list[str]:
    def choose(method: str, path: str) -> Fault:
        status = {"throttled": 503, "denied": 403}.get(path.partition("?")[0].rpartition("/")[2])
        return Fault(status=status) if status else NO_FAULT

    pointer = {"s3BucketName": INPUT, "s3Key": "throttled"}
    unread = json.dumps(["software.amazon.payloadoffloading.PayloadS3Pointer", pointer])
    records = [
        record("unread", unread),
        record("denied", message("letter", letter(1), key="denied")),
        in_group("first", message("letter", letter(2), key="throttled")),
        in_group("second", message("letter", letter(3))),
        record("unannounced", message("letter", letter(4))),
    ]
    with FaultyS3(stage.moto, choose) as proxy:
        nobody = new_queue(aws.client("sqs", stage.moto), "metrics-done") + "-of-nobody"
        with stage.function(AWS_ENDPOINT_URL_S3=proxy.endpoint, DONE_QUEUE_URL=nobody) as emulator:
            emulator.invoke(event(*records))
    return emulator.log_lines()


def in_group(message_id: str, body: str) -> dict:
    of_fifo = record(message_id, body)
    of_fifo["eventSourceARN"] += ".fifo"
    of_fifo["attributes"]["MessageGroupId"] = "group"
    return of_fifo


def killed_from_outside(stage: Stage) -> list[str]:
    """The press between invocations, and each run that works on a document."""
    with stage.function(WORKERS="1") as emulator:
        emulator.invoke(event(record("first", message("letter", letter(1)))))
        census.kill(emulator.press)
        emulator.invoke(event(record("second", message("letter", letter(2)))))
        invoking = threading.Thread(
            target=lambda: emulator.invoke(event(record("lost", message("endless", {"endless": True}))))
        )
        invoking.start()
        while invoking.is_alive():
            for run in census.runs_of(emulator.function):
                # More than warming takes.
                if census.cpu_seconds(run) > 0.3:
                    census.kill(run)
            invoking.join(timeout=0.01)
    return emulator.log_lines()


def out_of_time(stage: Stage) -> list[str]:
    # Each has a share of the time only, since the other waits beside it.
    with stage.function(timeout_seconds=3, MAX_RENDER_MS="60000", WORKERS="1") as emulator:
        endless = message("endless", {"endless": True})
        emulator.invoke(event(record("late", endless), record("later", endless)))
    return emulator.log_lines()


def test_every_line_is_what_aws_asks_for(lines: list[dict]):
    validator = Draft7Validator(SCHEMA)
    for line in lines:
        errors = [error.message for error in validator.iter_errors(line)]
        assert errors == [], line
        expect_within_limits(line)


def expect_within_limits(line: dict) -> None:
    assert len(json.dumps(line)) <= LONGEST_LINE_BYTES
    age = time.time() - line["_aws"]["Timestamp"] / 1000
    assert -LATEST_SECONDS <= age <= EARLIEST_SECONDS
    for directive in line["_aws"]["CloudWatchMetrics"]:
        assert directive["Namespace"] == NAMESPACE
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert 0 < len(names) <= MOST_METRICS and len(names) == len(set(names))
        for name in names:
            values = line[name] if isinstance(line[name], list) else [line[name]]
            assert 0 < len(values) <= MOST_VALUES, name
            assert all(type(value) in (int, float) for value in values), name
        for dimensions in directive["Dimensions"]:
            assert len(dimensions) <= MOST_DIMENSIONS and len(dimensions) == len(set(dimensions))
            for dimension in dimensions:
                assert isinstance(line[dimension], str) and 0 < len(line[dimension]) <= LONGEST_DIMENSION_VALUE


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line.pop("_aws"),
        lambda line: line["_aws"].update(Timestamp="today"),
        lambda line: line["_aws"]["CloudWatchMetrics"][0].update(Dimensions=[]),
        lambda line: line["_aws"]["CloudWatchMetrics"][0]["Metrics"][0].update(Unit="Milesconds"),
        lambda line: line["_aws"]["CloudWatchMetrics"][0]["Metrics"][0].pop("Name"),
    ],
    ids=["no metadata", "no time", "no dimensions", "no such unit", "no name"],
)
def test_the_schema_finds_what_is_wrong(lines: list[dict], spoil: Callable[[dict], object]):
    spoilt = json.loads(json.dumps(lines[0]))
    spoil(spoilt)
    assert not Draft7Validator(SCHEMA).is_valid(spoilt)


def emitted(lines: list[dict]) -> set[str]:
    return {item.metric.name for item in data(lines)}


def test_every_metric_is_told_with_a_unit_and_has_moved(lines: list[dict]):
    units: dict[str, str] = {}
    for line in lines:
        for directive in line["_aws"]["CloudWatchMetrics"]:
            for metric in directive["Metrics"]:
                assert units.setdefault(metric["Name"], metric["Unit"]) == metric["Unit"]
    still = {
        name
        for name in units
        if not any(value for item in data(lines) if item.metric.name == name for value in item.values)
    }
    # test_alarms.py makes that one move: it makes a press grow.
    assert still <= {"Leaks"}
    assert {name for name in units if units[name] == "None"} == set()


def test_each_metric_is_of_the_function_and_documents_of_their_template_too(lines: list[dict]):
    deployed = {path.name for path in TEMPLATES.iterdir()} | {
        "letter",
        "endless",
        "greedy",
        "table",
        "rows",
        "overflow",
        "panic",
        "broken-at-line-3",
    }
    for item in data(lines):
        dimensions = dict(item.metric.dimensions)
        assert dimensions.pop("FunctionName") == FUNCTION
        template = dimensions.pop("Template", "-")
        assert dimensions == {}
        assert template == "-" or template in deployed, "names that a message makes up are not for dimensions"
    by_dimensions = {frozenset(name for name, _ in item.metric.dimensions) for item in data(lines)}
    assert by_dimensions == {frozenset({"FunctionName"}), frozenset({"FunctionName", "Template"})}


def test_every_record_is_either_stored_or_failed_and_says_whose_it_is(lines: list[dict]):
    of_documents = [line for line in lines if "messageId" in line]
    of_invocations = [line for line in lines if "Records" in line]
    assert len(of_documents) == sum(line["Records"] for line in of_invocations)
    assert len(of_documents) + len(of_invocations) == len(lines)
    for line in of_documents:
        assert line["Stored"] + line["Failed"] == 1 and line["requestId"]
        assert int(line.get("worker", "1")) in range(1, WORKERS + 1), "the number of a place for a run"
    assert all("worker" in line for line in of_documents if line["Stored"])
    assert all(line["requestId"] for line in of_invocations)


def test_the_alarms_and_the_dashboard_name_metrics_that_are_emitted_and_all_of_them(lines: list[dict]):
    emitted_names = emitted(lines)
    on_dashboard = {name for namespace, name in metrics_on_the_dashboard() if namespace == NAMESPACE}
    assert on_dashboard == emitted_names
    names = {"Function": "f", "Queue.QueueName": "q", "DeadLetterQueue.QueueName": "d"}
    alarmed = {metric for alarm in alarms(**names).values() for metric, _ in alarm.stats.values()}
    assert {metric.name for metric in alarmed if metric.namespace == NAMESPACE} <= emitted_names


def test_the_dashboard_shows_every_alarm_and_nothing_over_another():
    (shown,) = [widget["properties"]["alarms"] for widget in widgets() if widget["type"] == "alarm"]
    names = {"Function": "f", "Queue.QueueName": "q", "DeadLetterQueue.QueueName": "d"}
    assert sorted(shown) == sorted(f"${{{name}.Arn}}" for name in alarms(**names))
    taken = [
        (x, y)
        for widget in widgets()
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) == 23


def test_the_docs_explain_every_metric(lines: list[dict]):
    operations = (REPOSITORY / "docs/operations.md").read_text()
    (chapter,) = re.findall(r"^## Metrics\n(.*?)^## ", operations, re.MULTILINE | re.DOTALL)
    # Those with the name of an error's code are in the tables of outcomes.
    assert emitted(lines) <= set(re.findall(r"`(\w+)`", operations))
    of_invocations = emitted([line for line in lines if "Records" in line])
    assert of_invocations <= set(re.findall(r"`(\w+)`", chapter))


@pytest.mark.parametrize("level", ["TRACE", "INFO", "WARN", "FATAL"])
def test_lambdas_own_filter_never_drops_a_metric(stage: Stage, level: str):
    with stage.function(AWS_LAMBDA_LOG_LEVEL=level) as emulator:
        emulator.invoke(event(record(f"level-{level}", message("letter", letter(1)))))
    emitted = metric_lines(emulator.log_lines())
    assert len(emitted) == 2
    for line in emitted:
        # Lambda drops what is below the level, and takes a line for INFO that does not say.
        # https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html
        assert line["level"] == level
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", line["timestamp"])


def test_metrics_are_told_beside_a_log_of_text_too(stage: Stage):
    with stage.function(AWS_LAMBDA_LOG_FORMAT="Text") as emulator:
        emulator.invoke(event(record("text", message("letter", letter(1)))))
    assert len(metric_lines(emulator.log_lines())) == 2
