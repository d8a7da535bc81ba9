"""A real SQS API behind the function: every record gets the verdict it deserves, while S3 fails now and then."""

import json
import random
import threading
from collections import Counter
from itertools import cycle

import aws
from conftest import OUTPUT, StartFunction
from documents import FAILING, invoice, letter, message
from event_source import EventSource, count, drain, new_queue, queue_with_dead_letters, send_all, take_all
from faulty_s3 import NO_FAULT, Fault, FaultyS3

MESSAGES = 1_000
SENT_AT_ONCE = 100
VISIBILITY_SECONDS = 5
MOST_RECEIVES = 10
# As often as the SDK tries: so the record fails for now.
TRIES_OF_THE_SDK = 3
CODES_OF_FAILING = {"InvalidMessage", "UnknownTemplate", "TypstError", "InvalidData", "TypstPanicked"}


class Moods:
    """One request in ten fails, and one key in fifty is refused as often as the SDK tries it."""

    def __init__(self, seed: int):
        self.randomness = random.Random(seed)
        self.lock = threading.Lock()
        self.refused: Counter[str] = Counter()
        self.stored: list[str] = []

    def choose(self, method: str, path: str) -> Fault:
        with self.lock:
            path = path.split("?")[0]
            if method == "PUT" and hash_of(path) % 50 == 0 and self.refused[path] < TRIES_OF_THE_SDK:
                self.refused[path] += 1
                return Fault(status=503)
            fault = self.now_and_then()
            if method == "PUT" and (fault == NO_FAULT or fault.reset_after):
                self.stored.append(path.removeprefix(f"/{OUTPUT}/"))
            return fault

    def now_and_then(self) -> Fault:
        if self.randomness.randrange(10):
            return NO_FAULT
        return self.randomness.choice(
            [Fault(status=500), Fault(status=503), Fault(reset_before=True), Fault(reset_after=True)]
        )


def hash_of(text: str) -> int:
    """The same in every process."""
    return sum(position * byte for position, byte in enumerate(text.encode(), start=1))


def body(number: int) -> str:
    key = f"documents/{number:05}.pdf"
    return (
        message("invoice", invoice(number), key=key) if number % 10 == 7 else message("letter", letter(number), key=key)
    )


def test_no_message_is_lost_and_none_makes_two_objects(start_function: StartFunction, moto: str, s3, sqs):
    queue, dead_letters = queue_with_dead_letters(sqs, "verdicts", VISIBILITY_SECONDS, MOST_RECEIVES)
    failed_queue, done_queue = new_queue(sqs, "verdicts-failed"), new_queue(sqs, "verdicts-done")
    bad_ones = cycle(FAILING)
    bad = set(range(5, MESSAGES, 10))
    bodies = [next(bad_ones) if number in bad else body(number) for number in range(MESSAGES)]
    with FaultyS3(moto, Moods(7).choose) as proxy:
        function = start_function(
            AWS_ENDPOINT_URL_S3=proxy.endpoint, FAILED_QUEUE_URL=failed_queue, DONE_QUEUE_URL=done_queue
        )
        source = EventSource(
            sqs, queue, function.invoke, duplicates_in_hundred=20, is_reordered=True, randomness=random.Random(7)
        )
        ids: list[str] = []
        for start in range(0, MESSAGES, SENT_AT_ONCE):
            ids += send_all(sqs, queue, [{"MessageBody": text} for text in bodies[start : start + SENT_AT_ONCE]])
            while source.poll():
                pass
        drain(source, patience_seconds=300)

    assert source.failed and source.duplicated, "something was delivered again"
    assert source.failed_invocations == 0, "no batch fails for one record"
    good = {f"documents/{number:05}.pdf": ids[number] for number in range(MESSAGES) if number not in bad}
    stored = {key: aws.pdf(s3, OUTPUT, key)["Metadata"]["message-id"] for key in aws.keys(s3, OUTPUT)}
    assert stored == good, "every good message has its object, and nothing else is there"
    announced = {
        told["key"]: told["messageId"] for told in (json.loads(item["Body"]) for item in take_all(sqs, done_queue))
    }
    assert announced == good
    given_up = take_all(sqs, failed_queue)
    assert {said(item, "MessageId") for item in given_up} == {ids[number] for number in bad}
    assert {item["Body"] for item in given_up} == set(FAILING)
    assert {said(item, "ErrorCode") for item in given_up} <= CODES_OF_FAILING
    assert all(said(item, "ErrorMessage") for item in given_up)
    assert take_all(sqs, dead_letters) == [] and count(sqs, queue) == 0


def said(message: dict, attribute: str) -> str:
    return message["MessageAttributes"][attribute]["StringValue"]


def test_a_message_group_keeps_its_order_while_s3_fails(start_function: StartFunction, moto: str, s3, sqs):
    groups, documents = range(6), range(20)
    queue = new_queue(sqs, "order.fifo", VisibilityTimeout=str(VISIBILITY_SECONDS))
    failed_queue = new_queue(sqs, "order-failed.fifo")
    moods = Moods(3)
    with FaultyS3(moto, moods.choose) as proxy:
        function = start_function(AWS_ENDPOINT_URL_S3=proxy.endpoint, FAILED_QUEUE_URL=failed_queue)
        source = EventSource(sqs, queue, function.invoke)
        messages = [
            {
                # One of each group is bad, and holds nobody up.
                "MessageBody": FAILING[1]
                if number == 5
                else message("letter", letter(number), key=f"{group}/{number:02}"),
                "MessageGroupId": str(group),
                "MessageDeduplicationId": f"{group}-{number}",
            }
            for number in documents
            for group in groups
        ]
        send_all(sqs, queue, messages)
        drain(source, patience_seconds=300)

    assert source.failed, "S3 has failed records"
    for group in groups:
        keys = [key for key in moods.stored if key.startswith(f"{group}/")]
        in_order = list(dict.fromkeys(keys))
        assert in_order == [f"{group}/{number:02}" for number in documents if number != 5]
        # A key may be written again at once, when the answer got lost, but never after a later one.
        assert keys == sorted(keys)
    assert len(take_all(sqs, failed_queue)) == len(groups)
