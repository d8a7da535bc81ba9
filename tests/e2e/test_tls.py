"""TLS from end to end: the real client of the function, and an S3 and an SQS with a certificate of the test's own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import aws
from certificates import ServerCertificate, server_certificate
from conftest import INPUT, OUTPUT, StartFunction
from documents import event, failures, letter, message, record


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ServerCertificate:
    return server_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def moto_with_tls(certificate: ServerCertificate) -> Iterator[str]:
    with aws.server(tls=certificate) as endpoint:
        yield endpoint


def endpoints(endpoint: str) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_ENDPOINT_URL_SQS": endpoint}


def test_documents_are_read_stored_and_announced_over_tls(
    start_function: StartFunction, moto_with_tls: str, certificate: ServerCertificate
):
    with aws.buckets(moto_with_tls, [OUTPUT, INPUT], certificate.authority) as s3:
        sqs = aws.client("sqs", moto_with_tls, certificate.authority)
        done = sqs.create_queue(QueueName="done")["QueueUrl"]
        trust = {"SSL_CERT_FILE": str(certificate.authority), "DONE_QUEUE_URL": done}
        emulator = start_function(**endpoints(moto_with_tls), **trust)
        s3.put_object(Bucket=INPUT, Key="large", Body=message("letter", letter(2)).encode())
        pointer = ["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": INPUT, "s3Key": "large"}]
        records = [record("letter-1", message("letter", letter(1))), record("letter-2", json.dumps(pointer))]
        assert failures(emulator.invoke(event(*records))) == []
        assert aws.message_ids(s3, OUTPUT) == ["letter-1", "letter-2"]
        announced = sqs.receive_message(QueueUrl=done, MaxNumberOfMessages=10)["Messages"]
        assert sorted(json.loads(each["Body"])["messageId"] for each in announced) == ["letter-1", "letter-2"]


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    start_function: StartFunction, moto_with_tls: str, certificate: ServerCertificate, tmp_path: Path
):
    other = server_certificate(tmp_path)
    with aws.buckets(moto_with_tls, [OUTPUT, INPUT], certificate.authority) as s3:
        emulator = start_function(**endpoints(moto_with_tls), SSL_CERT_FILE=str(other.authority))
        assert failures(emulator.invoke(event(record("letter-1", message("letter", letter(1)))))) == ["letter-1"]
        assert aws.keys(s3, OUTPUT) == []
    assert any("StorageUnavailable" in line for line in emulator.log_lines())
