"""S3 and SQS on loopback: moto's server in a process of its own, and boto3 to talk to it.

As a program, it is that server: `aws.py HOST PORT [CERTIFICATE KEY]`.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

import census
from certificates import ServerCertificate
from emulator import CREDENTIALS, free_port

# Without retries, since a test that asks twice does not know what it has done.
CLIENT = Config(
    region_name=CREDENTIALS["AWS_REGION"],
    retries={"total_max_attempts": 1},
    s3={"addressing_style": "path"},
)


def client(service: str, endpoint: str, authority: Path | None = None):
    return boto3.client(
        service,
        endpoint_url=endpoint,
        verify=str(authority) if authority else None,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        config=CLIENT,
    )


@contextmanager
def server(port: int | None = None, tls: ServerCertificate | None = None) -> Iterator[str]:
    """Yields the server's URL."""
    port = port or free_port()
    files = [str(tls.chain), str(tls.key)] if tls else []
    process = subprocess.Popen([sys.executable, __file__, "127.0.0.1", str(port), *files], stderr=subprocess.DEVNULL)
    endpoint = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    try:
        wait_for(endpoint, process, tls.authority if tls else None)
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def wait_for(endpoint: str, process: subprocess.Popen | None = None, authority: Path | None = None) -> None:
    def answers() -> bool:
        assert process is None or process.poll() is None, "moto's server has ended"
        try:
            client("s3", endpoint, authority).list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    census.until("moto's server answers", answers, timeout_seconds=60)


@contextmanager
def buckets(endpoint: str, names: Iterable[str], authority: Path | None = None) -> Iterator:
    """Yields a client of an S3 that has these buckets until then."""
    s3 = client("s3", endpoint, authority)
    for bucket in names:
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": CREDENTIALS["AWS_REGION"]})
    yield s3
    for bucket in names:
        delete_all(s3, bucket)
        s3.delete_bucket(Bucket=bucket)


def keys(s3, bucket: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def assert_is_pdf(body: bytes) -> None:
    assert body.startswith(b"%PDF-") and body.rstrip().endswith(b"%%EOF"), body[:100]


def pdf(s3, bucket: str, key: str) -> dict:
    """An object that is a whole PDF: what S3 says of it."""
    found = s3.get_object(Bucket=bucket, Key=key)
    assert found["ContentType"] == "application/pdf", found["ContentType"]
    assert_is_pdf(found["Body"].read())
    return found


def message_ids(s3, bucket: str) -> list[str]:
    """The messages whose PDFs are in a bucket, each as often as it is there."""
    return sorted(pdf(s3, bucket, key)["Metadata"]["message-id"] for key in keys(s3, bucket))


def delete_all(s3, bucket: str) -> None:
    left = [{"Key": key} for key in keys(s3, bucket)]
    # As many as S3 takes at once.
    for start in range(0, len(left), 1_000):
        s3.delete_objects(Bucket=bucket, Delete={"Objects": left[start : start + 1_000], "Quiet": True})


def serve(host: str, port: int, certificate: str | None = None, key: str | None = None) -> None:
    from moto.server import main

    keep_order_in_fifo_queues()
    never_ask_how_old_a_message_is()
    understand_filter_patterns()
    tls = ["--ssl-cert", certificate, "--ssl-key", key] if certificate and key else []
    main(["-H", host, "-p", str(port), *tls])


def keep_order_in_fifo_queues() -> None:
    """Moto forgets that a message is no longer pending only when it meets it, and so hands out a later
    message of the group first."""
    from moto.sqs.models import SQSBackend

    receive = SQSBackend.receive_message

    def receive_in_order(self, queue_name, *arguments, **named):
        pending = self.get_queue(queue_name).pending_messages
        for message in [message for message in pending if message.visible]:
            pending.discard(message)
        return receive(self, queue_name, *arguments, **named)

    SQSBackend.receive_message = receive_in_order


def never_ask_how_old_a_message_is() -> None:
    """Moto asks for each message that it hands out, and counts the whole queue six times for the answer."""
    from moto.sqs.models import SQSBackend

    SQSBackend.is_message_valid_based_on_retention_period = lambda self, queue_name, message: True


def understand_filter_patterns() -> None:
    """Moto takes a pattern that asks for fields of JSON for one that everything matches."""
    from moto.logs.utils import UnsupportedFilterPattern

    UnsupportedFilterPattern.matches = lambda self, message: not self.term or matches(self.term, message)


def matches(pattern: str, message: str) -> bool:
    """Whether a log event is what a pattern such as `{ $.a = "b" && $.c > 0 || $.d != 1 }` asks for."""
    asked = re.fullmatch(r"\{ (.*) \}", pattern)
    assert asked, f"{pattern} is not as AWS writes patterns"
    try:
        line = json.loads(message)
    except ValueError:
        return False
    return any(all(holds(term, line) for term in terms.split(" && ")) for terms in asked[1].split(" || "))


def holds(term: str, line: object) -> bool:
    selector, operator, literal = re.fullmatch(r"\$\.([\w.]+) (=|!=|>) (.+)", term).groups()
    wanted, found = json.loads(literal), line
    for name in selector.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if found is None or isinstance(found, str) != isinstance(wanted, str):
        return False
    return {"=": found == wanted, "!=": found != wanted}.get(operator, operator == ">" and found > wanted)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
