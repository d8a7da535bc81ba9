"""What Lambda's event source mapping for SQS does: receives, invokes, deletes what succeeded, and leaves what
failed to the visibility timeout and the redrive policy."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from emulator import InvocationFailed

MOST_MESSAGES = 10


@dataclass
class EventSource:
    sqs: object
    queue_url: str
    invoke: Callable[[dict], dict]
    batch_size: int = MOST_MESSAGES
    # Of a hundred batches, how many bring a message that has been delivered before, and succeeded.
    duplicates_in_hundred: int = 0
    # Whether a batch's records come in any order, as from a standard queue.
    is_reordered: bool = False
    randomness: random.Random = field(default_factory=lambda: random.Random(1))
    # Waits this long for messages. 0 asks once.
    wait_seconds: int = 0
    # What has happened.
    received: int = 0
    duplicated: int = 0
    succeeded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    failed_invocations: int = 0

    def __post_init__(self) -> None:
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])
        self.queue_arn = attributes["Attributes"]["QueueArn"]
        self.delivered_before: list[dict] = []

    def poll(self) -> int:
        """Handles one batch; how many messages it received."""
        duplicates = self.duplicates()
        records = self.receive(self.batch_size - len(duplicates))
        if not records:
            return 0
        self.received += len(records)
        self.duplicated += len(duplicates)
        batch = records + duplicates
        if self.is_reordered:
            self.randomness.shuffle(batch)
        failed = self.failures(batch)
        succeeded = [record for record in records if record["messageId"] not in failed]
        self.failed += sorted(failed)
        self.succeeded += [record["messageId"] for record in succeeded]
        self.delete(succeeded)
        self.delivered_before += succeeded
        return len(records)

    def receive(self, most: int) -> list[dict]:
        answer = self.sqs.receive_message(
            QueueUrl=self.queue_url,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=self.wait_seconds,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [self.record(message) for message in answer.get("Messages", [])]

    def record(self, message: dict) -> dict:
        """A message as the function sees it."""
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": {
                name: message_attribute(attribute) for name, attribute in message.get("MessageAttributes", {}).items()
            },
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self.queue_arn,
            "awsRegion": self.queue_arn.split(":")[3],
        }

    def duplicates(self) -> list[dict]:
        """SQS delivers at least once: now and then a message comes again although it was deleted."""
        is_due = self.randomness.randrange(100) < self.duplicates_in_hundred
        if not (is_due and self.delivered_before):
            return []
        again = self.randomness.choice(self.delivered_before)
        count = int(again["attributes"]["ApproximateReceiveCount"]) + 1
        return [again | {"attributes": again["attributes"] | {"ApproximateReceiveCount": str(count)}}]

    def failures(self, batch: list[dict]) -> set[str]:
        """The ids that failed. A batch whose answer Lambda would not understand has failed whole."""
        ids = {record["messageId"] for record in batch}
        try:
            answer = self.invoke({"Records": batch})
        except InvocationFailed:
            self.failed_invocations += 1
            return ids
        failures = answer.get("batchItemFailures") or []
        failed = {failure.get("itemIdentifier") for failure in failures}
        return failed if failed.issubset(ids) else ids

    def delete(self, records: list[dict]) -> None:
        if records:
            entries = [
                {"Id": str(index), "ReceiptHandle": record["receiptHandle"]} for index, record in enumerate(records)
            ]
            answer = self.sqs.delete_message_batch(QueueUrl=self.queue_url, Entries=entries)
            assert not answer.get("Failed"), answer["Failed"]


def message_attribute(attribute: dict) -> dict:
    """A message's attribute, spelt as Lambda does."""
    spelt = {"StringValue": "stringValue", "BinaryValue": "binaryValue", "DataType": "dataType"}
    lists = {"stringListValues": [], "binaryListValues": []}
    return {spelt[name]: value for name, value in attribute.items() if name in spelt} | lists


def new_queue(sqs, name: str, **attributes: str) -> str:
    """The URL of a new queue, FIFO when the name ends so."""
    fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
    return sqs.create_queue(QueueName=name, Attributes=fifo | attributes)["QueueUrl"]


def queue_with_dead_letters(sqs, name: str, visibility_seconds: int, max_receive_count: int) -> tuple[str, str]:
    """The URLs of a new queue and of its dead-letter queue."""
    suffix = ".fifo" if name.endswith(".fifo") else ""
    dead = new_queue(sqs, f"{name.removesuffix(suffix)}-dead{suffix}")
    dead_arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = f'{{"deadLetterTargetArn": "{dead_arn}", "maxReceiveCount": {max_receive_count}}}'
    return new_queue(sqs, name, VisibilityTimeout=str(visibility_seconds), RedrivePolicy=redrive), dead


def drain(source: EventSource, timeout_seconds: float) -> None:
    """Polls until the queue is empty, so until what fails has gone to the dead-letter queue."""
    give_up = time.monotonic() + timeout_seconds
    while source.poll() or count(source.sqs, source.queue_url):
        assert time.monotonic() < give_up, f"{count(source.sqs, source.queue_url)} messages are left"


def send_all(sqs, queue_url: str, messages: list[dict]) -> list[str]:
    """Sends messages, given as `send_message` takes them, in order; their ids in the same order."""
    ids: dict[int, str] = {}
    for start in range(0, len(messages), MOST_MESSAGES):
        batch = messages[start : start + MOST_MESSAGES]
        entries = [{"Id": str(start + index)} | message for index, message in enumerate(batch)]
        answer = sqs.send_message_batch(QueueUrl=queue_url, Entries=entries)
        assert not answer.get("Failed"), answer["Failed"]
        ids |= {int(sent["Id"]): sent["MessageId"] for sent in answer["Successful"]}
    return [ids[number] for number in range(len(messages))]


def count(sqs, queue_url: str) -> int:
    """How many messages a queue holds, those in flight and delayed included. The visible ones are asked for last:
    a message that becomes visible meanwhile is counted twice, and never missed."""
    return sum(number_of(sqs, queue_url, *kinds) for kinds in (["NotVisible", "Delayed"], [""]))


def number_of(sqs, queue_url: str, *kinds: str) -> int:
    wanted = [f"ApproximateNumberOfMessages{kind}" for kind in kinds]
    attributes = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=wanted)["Attributes"]
    return sum(int(attributes[name]) for name in wanted)


def take_all(sqs, queue_url: str) -> list[dict]:
    """Receives and deletes every message that a queue has now."""
    taken = []
    while messages := sqs.receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=MOST_MESSAGES,
        MessageSystemAttributeNames=["All"],
        MessageAttributeNames=["All"],
    ).get("Messages"):
        taken += messages
        for message in messages:
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
    return taken
