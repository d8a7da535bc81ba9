"""Each alarm of template.yaml goes off when it should, and not before. The function's own metrics are those that the
function tells under the emulator; SQS's and Lambda's are reckoned from what moto's queues hold and from what
invocations answer, under the names that AWS has for them."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

import census
from cloudwatch import MINUTE, NAMESPACE, Alarm, Datum, alarms, data, datum, metric_lines, resources, template
from conftest import StartFunction
from documents import NEARLY_ALL_OF_2048_MB, REPOSITORY, event, failures, invoice, letter, message, record
from emulator import Emulator, InvocationFailed
from event_source import EventSource, new_queue, number_of, send_all
from faulty_s3 import NO_FAULT, Fault, FaultyS3

FUNCTION = "pressrun-Function"
# Of a stack whose queues are called so.
QUEUE, DEAD_LETTERS = "alarms-queue", "alarms-dead-letters"
ALARMS = alarms(**{"Function": FUNCTION, "Queue.QueueName": QUEUE, "DeadLetterQueue.QueueName": DEAD_LETTERS})
# The moment at which everything happens. It begins a period, however long.
NOW = time.time() // 3600 * 3600

# What AWS tells of queues and functions. Sources:
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
# https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
DIMENSION = {"AWS/SQS": "QueueName", "AWS/Lambda": "FunctionName", NAMESPACE: "FunctionName"}
OF_AWS = {
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"},
    "AWS/Lambda": {"Errors", "Throttles"},
}

MOVED: set[str] = set()


def moves(alarm: str) -> Callable[[Callable], Callable]:
    """Marks a test that makes an alarm go off."""
    MOVED.add(alarm)
    return lambda test: test


def test_every_alarm_has_a_test_that_makes_it_go_off():
    assert MOVED == set(ALARMS)


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_looks_at_metrics_that_there_are(name: str):
    for metric, _ in ALARMS[name].stats.values():
        assert {dimension for dimension, _ in metric.dimensions} == {DIMENSION[metric.namespace]}
        # The function's own are in test_metrics.py.
        assert metric.namespace == NAMESPACE or metric.name in OF_AWS[metric.namespace]


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_tells_the_topic_and_says_where_to_read_on(name: str):
    properties = ALARMS[name].properties
    assert properties["AlarmActions"]["Fn::If"][:2] == ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}]]
    assert properties["AlarmDescription"].endswith(f"See docs/operations.md, {name}.")
    assert f"\n### {name}\n" in (REPOSITORY / "docs/operations.md").read_text()


def test_the_queues_and_the_function_are_those_of_the_template():
    assert {"Function", "Queue", "DeadLetterQueue"} <= set(template()["Resources"])
    assert set(resources("AWS::SQS::Queue")) == {"Queue", "DeadLetterQueue", "DoneQueue"}


@pytest.fixture
def start(start_function: StartFunction) -> StartFunction:
    """Starts functions that metrics know by name."""
    known = {"AWS_LAMBDA_FUNCTION_NAME": FUNCTION, "AWS_LAMBDA_LOG_FORMAT": "JSON"}
    return lambda **environment: start_function(**known, **environment)


def emitted_by(emulator: Emulator) -> list[Datum]:
    """What the function has emitted, as if all at this moment: a sum must not depend on the clock."""
    emitted = [replace(item, at=NOW) for item in data(metric_lines(emulator.log_lines()))]
    assert emitted, "it has emitted something"
    return emitted


def again(emitted: Iterable[Datum], *minutes: int) -> list[Datum]:
    """The same, so many minutes later each."""
    return [item.later(minute * MINUTE) for item in emitted for minute in minutes]


def of_queue(sqs, url: str, name: str, at: float) -> list[Datum]:
    """What SQS tells of a queue that at this moment has what it has now."""
    visible = number_of(sqs, url, "")
    peeked = sqs.receive_message(QueueUrl=url, VisibilityTimeout=0, MessageSystemAttributeNames=["SentTimestamp"])
    sent = [int(item["Attributes"]["SentTimestamp"]) / 1000 for item in peeked.get("Messages", [])]
    age = max((at - each for each in sent), default=0)
    return [
        datum("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", name, at, visible),
        datum("AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", name, at, age),
    ]


def of_lambda(errors: int, throttles: int, at: float = NOW) -> list[Datum]:
    return [
        datum("AWS/Lambda", "Errors", "FunctionName", FUNCTION, at, errors),
        datum("AWS/Lambda", "Throttles", "FunctionName", FUNCTION, at, throttles),
    ]


def going_off(emitted: list[Datum], at: float = NOW) -> set[str]:
    return {name for name, alarm in ALARMS.items() if alarm.goes_off(emitted, at)}


def has_something_to_go_by(alarm: Alarm, emitted: list[Datum]) -> bool:
    return {metric for metric, _ in alarm.stats.values()} <= {item.metric for item in emitted}


def good_batch(first: int = 0) -> dict:
    return event(*(record(f"good-{number}", message("letter", letter(number))) for number in range(first, first + 10)))


def batch_of(body: str, times: int = 1) -> dict:
    return event(*(record(f"m-{number}", body) for number in range(times)))


def test_no_alarm_goes_off_while_all_is_well(start: StartFunction, sqs):
    queue, dead = new_queue(sqs, QUEUE), new_queue(sqs, DEAD_LETTERS)
    emulator = start(FAILED_QUEUE_URL=dead)
    send_all(sqs, queue, [{"MessageBody": message("invoice", invoice(number))} for number in range(30)])
    source = EventSource(sqs, queue, emulator.invoke)
    while source.poll():
        pass
    assert len(source.succeeded) == 30
    now = time.time()
    emitted = emitted_by(emulator) + of_lambda(errors=source.failed_invocations, throttles=0)
    emitted += [
        replace(item, at=NOW) for item in of_queue(sqs, queue, QUEUE, now) + of_queue(sqs, dead, DEAD_LETTERS, now)
    ]
    assert going_off(emitted) == set()
    # The codes of failures are emitted only with a failure.
    idle = {name for name, alarm in ALARMS.items() if not has_something_to_go_by(alarm, emitted)}
    assert idle == {"OutageAlarm"}


def test_no_alarm_goes_off_when_nothing_is_told():
    assert going_off([]) == set()


@moves("DeadLetterAlarm")
def test_a_message_that_is_dead_lettered(start: StartFunction, sqs):
    queue, dead = new_queue(sqs, QUEUE), new_queue(sqs, DEAD_LETTERS)
    send_all(sqs, queue, [{"MessageBody": message("lettre", {})}, {"MessageBody": message("letter", letter(1))}])
    assert EventSource(sqs, queue, start(FAILED_QUEUE_URL=dead).invoke).poll() == 2
    assert going_off(of_queue(sqs, dead, DEAD_LETTERS, NOW)) == {"DeadLetterAlarm"}


@moves("BacklogAlarm")
def test_messages_that_wait_for_half_an_hour(sqs):
    queue = new_queue(sqs, QUEUE)
    send_all(sqs, queue, [{"MessageBody": message("letter", letter(1))}])
    sent = time.time()
    emitted = [item for minute in range(60) for item in of_queue(sqs, queue, QUEUE, sent + minute * MINUTE)]
    assert going_off(emitted, sent + 29 * MINUTE) == set()
    assert going_off(emitted, sent + 36 * MINUTE) == {"BacklogAlarm"}


@moves("OutageAlarm")
def test_an_outage_of_s3_that_does_not_pass(start: StartFunction, moto: str):
    with FaultyS3(moto, lambda method, path: Fault(status=503) if method == "PUT" else NO_FAULT) as proxy:
        emulator = start(AWS_ENDPOINT_URL_S3=proxy.endpoint)
        assert len(failures(emulator.invoke(good_batch()))) == 10
        emulator.end()
    emitted = emitted_by(emulator)
    assert going_off(emitted) == set()
    assert going_off(again(emitted, 0, 8), NOW + 8 * MINUTE) == {"OutageAlarm"}


@moves("OutageAlarm")
def test_a_bucket_that_is_not_there(start: StartFunction):
    emulator = start(OUTPUT_BUCKET="nobodys-bucket")
    assert len(failures(emulator.invoke(good_batch()))) == 10
    assert going_off(again(emitted_by(emulator), 0, 8), NOW + 8 * MINUTE) == {"OutageAlarm"}


@moves("ErrorsAlarm")
def test_an_invocation_that_fails_as_a_whole(start: StartFunction):
    emulator = start()
    errors = 0
    try:
        emulator.invoke({"detail-type": "Scheduled Event"})
    except InvocationFailed:
        errors += 1
    assert going_off(of_lambda(errors, throttles=0)) == {"ErrorsAlarm"}


@moves("ThrottlesAlarm")
def test_throttles_that_do_not_pass():
    """Lambda's own doing, of which there is nothing here to ask."""
    throttled = of_lambda(errors=0, throttles=1)
    assert going_off(again(throttled, 0, 1), NOW + MINUTE) == set()
    assert going_off(again(throttled, 0, 1, 4), NOW + 4 * MINUTE) == {"ThrottlesAlarm"}


@moves("LeaksAlarm")
def test_a_press_that_has_more_memory_than_before(start: StartFunction):
    emulator = start()
    emulator.invoke(good_batch())
    assert going_off(emitted_by(emulator)) == set()
    census.make_resident(emulator.press)
    assert failures(emulator.invoke(good_batch(10))) == []
    assert going_off(emitted_by(emulator)) == {"LeaksAlarm"}
    (table,) = [line for line in emulator.log_lines() if "more than before" in line]
    assert re.search(r"\\npress +resident KiB", table), "the log says what of whose"


@moves("MemoryAlarm")
def test_a_document_that_just_fits(start: StartFunction):
    emulator = start(timeout_seconds=300, AWS_LAMBDA_FUNCTION_MEMORY_SIZE="2048", WORKERS="1")
    assert failures(emulator.invoke(good_batch())) == []
    assert going_off(emitted_by(emulator)) == set()
    assert failures(emulator.invoke(batch_of(NEARLY_ALL_OF_2048_MB))) == []
    assert going_off(emitted_by(emulator)) == {"MemoryAlarm"}


@moves("RunsKilledAlarm")
@pytest.mark.parametrize(
    ("body", "render_ms", "metric"),
    [
        (message("endless", {"endless": True}), "500", "RunsKilledForTime"),
        (message("overflow", {"depth": 300_000}), "10000", "RunsCrashed"),
    ],
    ids=["endless", "overflow"],
)
def test_runs_that_are_killed_too_often(start: StartFunction, body: str, render_ms: str, metric: str):
    emulator = start(MAX_RENDER_MS=render_ms)
    assert len(failures(emulator.invoke(batch_of(body, times=5)))) == 5
    assert going_off(emitted_by(emulator)) == set(), "five are borne"
    assert len(failures(emulator.invoke(batch_of(body)))) == 1
    emitted = emitted_by(emulator)
    assert sum(value for item in emitted if item.metric.name == metric for value in item.values) == 6
    assert going_off(emitted) == {"RunsKilledAlarm"}


@moves("PressesReplacedAlarm")
def test_a_press_that_is_killed_from_outside_again_and_again(start: StartFunction):
    emulator = start()
    for number in range(4):
        assert failures(emulator.invoke(good_batch(number * 10))) == []
        assert ("PressesReplacedAlarm" in going_off(emitted_by(emulator))) == (number == 3)
        census.kill(emulator.press)
    assert going_off(emitted_by(emulator)) == {"PressesReplacedAlarm"}
