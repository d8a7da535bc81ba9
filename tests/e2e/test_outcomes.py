"""Every record gets the outcome it deserves, with a queue for what has failed and one for what is done, and with
an S3 that fails one call in ten."""

import json
import random
import threading
from dataclasses import dataclass, field

import aws
from conftest import INPUT, OUTPUT, StartFunction
from documents import FAILING, KILLING, invoice, letter, message
from event_source import EventSource, count, drain, new_queue, queue_with_dead_letters, send_all, take_all
from faulty_s3 import NO_FAULT, Fault, FaultyS3

MESSAGES = 1_000
# More than any good message needs while one call in ten fails.
MOST_RECEIVES = 10
VISIBILITY_SECONDS = 30

MOODS = [
    Fault(status=500),
    Fault(status=503),
    Fault(reset_before=True),
    Fault(reset_after=True),
    Fault(truncated_to=0),
    Fault(delay_seconds=0.5),
]


@dataclass
class Moody:
    """One call in ten fails."""

    randomness: random.Random = field(default_factory=lambda: random.Random(3))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, method: str, path: str) -> Fault:
        with self.lock:
            return self.randomness.choice(MOODS) if self.randomness.randrange(10) == 0 else NO_FAULT


def body(s3, number: int) -> str:
    if number == 500:
        return KILLING[0]
    if number % 10 == 3:
        return FAILING[number // 10 % len(FAILING)]
    key = f"documents/{number:04}.pdf"
    if number % 25 == 4:
        # Too large for SQS, as far as the function knows.
        s3.put_object(Bucket=INPUT, Key=f"{number}", Body=message("invoice", invoice(number), key=key))
        pointer = {"s3BucketName": INPUT, "s3Key": f"{number}"}
        return json.dumps(["software.amazon.payloadoffloading.PayloadS3Pointer", pointer])
    return message("letter", letter(number), key=key)


def is_bad(number: int) -> bool:
    return number == 500 or number % 10 == 3


def test_every_message_ends_where_it_belongs_while_s3_fails(start_function: StartFunction, moto: str, s3, sqs):
    queue, dead_letters = queue_with_dead_letters(sqs, "moody", VISIBILITY_SECONDS, MOST_RECEIVES)
    failed, done = new_queue(sqs, "moody-failed"), new_queue(sqs, "moody-done")
    sent = [body(s3, number) for number in range(MESSAGES)]
    own = {"Customer": {"DataType": "String", "StringValue": "Søster & Søn"}}
    ids: list[str] = []
    with FaultyS3(moto, Moody().choose) as proxy:
        emulator = start_function(AWS_ENDPOINT_URL_S3=proxy.endpoint, FAILED_QUEUE_URL=failed, DONE_QUEUE_URL=done)
        source = EventSource(
            sqs,
            queue,
            emulator.invoke,
            duplicates_in_hundred=30,
            is_reordered=True,
            randomness=random.Random(8),
        )
        # Moto takes the longer for a message the more it holds.
        for start in range(0, MESSAGES, 100):
            messages = [{"MessageBody": text, "MessageAttributes": own} for text in sent[start : start + 100]]
            ids += send_all(sqs, queue, messages)
            for _ in range(10):
                source.poll()
        drain(source, timeout_seconds=600)
        emulator.end()
    assert source.failed_invocations == 0
    assert source.duplicated > 10 and len(list(proxy.faults())) > 50, "there was something to bear"

    good = {f"documents/{number:04}.pdf": ids[number] for number in range(MESSAGES) if not is_bad(number)}
    bad = {ids[number]: sent[number] for number in range(MESSAGES) if is_bad(number)}
    stored = {key: aws.pdf(s3, OUTPUT, key)["Metadata"]["message-id"] for key in aws.keys(s3, OUTPUT)}
    assert stored == good, "every good message has its object, and nothing else is there"

    parked = take_all(sqs, failed)
    assert {text(item, "MessageId") for item in parked} == set(bad), "every bad one is in the failed queue"
    for item in parked:
        assert item["Body"] == bad[text(item, "MessageId")], "as it was sent"
        assert item["MessageAttributes"]["Customer"] == own["Customer"]
        assert text(item, "ErrorCode") and text(item, "ErrorMessage") and json.loads(text(item, "Diagnostics"))
    announced = [json.loads(item["Body"]) for item in take_all(sqs, done)]
    assert {item["key"]: item["messageId"] for item in announced} == good, "every stored document was announced"
    assert count(sqs, dead_letters) == count(sqs, queue) == 0, "and none was lost"


def text(item: dict, attribute: str) -> str:
    return item["MessageAttributes"][attribute]["StringValue"]


GROUPS, OF_A_GROUP = 8, 15


class FailsAtFirst:
    """S3 takes certain PDFs only in a second invocation: as often as the SDK tries in one, it fails."""

    TRIES = 3

    def __init__(self, keys: set[str]):
        self.left = {f"/{OUTPUT}/{key}": self.TRIES for key in keys}
        self.stored: list[str] = []
        self.lock = threading.Lock()

    def choose(self, method: str, path: str) -> Fault:
        key = path.partition("?")[0]
        with self.lock:
            if method == "PUT" and self.left.get(key):
                self.left[key] -= 1
                return Fault(status=503)
            if method == "PUT":
                self.stored.append(key.removeprefix(f"/{OUTPUT}/"))
        return NO_FAULT


def test_the_messages_of_a_group_stay_in_order_while_some_fail(start_function: StartFunction, moto: str, s3, sqs):
    queue, dead_letters = queue_with_dead_letters(sqs, "ordered.fifo", VISIBILITY_SECONDS, MOST_RECEIVES)
    failed = new_queue(sqs, "ordered-failed.fifo")
    keys = {(number % GROUPS, number): f"{number % GROUPS}/{number:03}.pdf" for number in range(GROUPS * OF_A_GROUP)}
    bad = {number for number in range(GROUPS * OF_A_GROUP) if number % 13 == 5}
    fails_at_first = {key for (group, number), key in keys.items() if group % 2 == 0 and number // GROUPS == 4}
    messages = [
        {
            "MessageBody": "not JSON" if number in bad else message("letter", letter(number), key=key),
            "MessageGroupId": str(group),
            "MessageDeduplicationId": str(number),
        }
        for (group, number), key in keys.items()
    ]
    moods = FailsAtFirst({key for key in fails_at_first if int(key[2:5]) not in bad})
    with FaultyS3(moto, moods.choose) as proxy:
        emulator = start_function(AWS_ENDPOINT_URL_S3=proxy.endpoint, FAILED_QUEUE_URL=failed)
        ids = send_all(sqs, queue, messages)
        drain(EventSource(sqs, queue, emulator.invoke), timeout_seconds=300)
        emulator.end()
    assert moods.left and not any(moods.left.values()), "those that were to fail have failed"
    parked = take_all(sqs, failed)
    for group in range(GROUPS):
        stored = [key for key in moods.stored if key.startswith(f"{group}/")]
        assert stored == [key for (its, number), key in keys.items() if its == group and number not in bad]
        of_group = [item for item in parked if item["Attributes"]["MessageGroupId"] == str(group)]
        assert [text(item, "MessageId") for item in of_group] == [
            ids[number] for (its, number) in keys if its == group and number in bad
        ]
    assert count(sqs, dead_letters) == count(sqs, queue) == 0
