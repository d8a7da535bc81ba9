"""A queue, the function and S3 together: every message ends where it belongs, whatever happens on the way."""

import os
import random
import signal
import threading
from itertools import cycle

import aws
from conftest import OUTPUT, StartFunction
from documents import FAILING, invoice, letter, message, statement
from emulator import Emulator
from event_source import MOST_MESSAGES, EventSource, count, drain, queue_with_dead_letters, send_all, take_all
from faulty_s3 import NO_FAULT, Fault, FaultyS3

MESSAGES = 2_000
# Moto takes the longer for a message the more it holds.
SENT_AT_ONCE = 100
VISIBILITY_SECONDS = 5
MOST_RECEIVES = 4
# When S3 gets so many PDFs, this process is killed.
KILLS = {500: "function", 800: "run", 1_100: "press", 1_400: "function"}


def bodies() -> tuple[list[str], set[int]]:
    """The messages, and which of them are bad: one in a hundred."""
    bad_ones = cycle(FAILING)
    numbers = range(MESSAGES)
    bad = set(range(50, MESSAGES, 100))
    return [next(bad_ones) if number in bad else good_body(number) for number in numbers], bad


def good_body(number: int) -> str:
    key = f"documents/{number:05}.pdf"
    if number % 20 == 7:
        return message("invoice", invoice(number), key=key)
    if number % 100 == 11:
        return message("statement", statement(60, number), key=key)
    return message("letter", letter(number), key=key)


class Killer:
    """Kills a process when S3 gets a certain PDF, so in the middle of an invocation. The PDF is stored all the same."""

    def __init__(self, emulator: Emulator):
        self.emulator = emulator
        self.pdfs = 0
        self.lock = threading.Lock()

    def choose(self, method: str, path: str) -> Fault:
        with self.lock:
            self.pdfs += method == "PUT"
            if method == "PUT" and self.pdfs in KILLS:
                self.kill(KILLS[self.pdfs])
        return NO_FAULT

    def kill(self, whom: str) -> None:
        process = self.emulator.runs[0] if whom == "run" else getattr(self.emulator, whom)
        os.kill(process, signal.SIGKILL)


def test_every_message_ends_where_it_belongs(start_function: StartFunction, moto: str, s3, sqs):
    queue, dead_letters = queue_with_dead_letters(sqs, "documents", VISIBILITY_SECONDS, MOST_RECEIVES)
    sent, bad = bodies()
    ids: list[str] = []
    with FaultyS3(moto) as proxy:
        emulator = start_function(AWS_ENDPOINT_URL_S3=proxy.endpoint)
        proxy.choose = Killer(emulator).choose
        source = EventSource(sqs, queue, emulator.invoke, duplicates_in_hundred=20, randomness=random.Random(7))
        for start in range(0, MESSAGES, SENT_AT_ONCE):
            ids += send_all(sqs, queue, [{"MessageBody": body} for body in sent[start : start + SENT_AT_ONCE]])
            for _ in range(SENT_AT_ONCE // MOST_MESSAGES):
                source.poll()
        drain(source, timeout_seconds=300)
        emulator.end()

    assert source.failed_invocations == 2, "only the function's own death fails a whole batch"
    assert source.duplicated > 20, "duplicates were delivered"
    good = {f"documents/{number:05}.pdf": ids[number] for number in range(MESSAGES) if number not in bad}
    stored = {key: aws.pdf(s3, OUTPUT, key)["Metadata"]["message-id"] for key in aws.keys(s3, OUTPUT)}
    assert stored == good, "every good message has its object, and nothing else is there"
    dead = take_all(sqs, dead_letters)
    assert sorted(item["MessageId"] for item in dead) == sorted(ids[number] for number in bad)
    assert {item["Body"] for item in dead} == set(FAILING)
    assert count(sqs, queue) == 0
