"""README's own commands, as they stand there. A new one fails here until it is run, or a reason is given."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aws
import test_cargo_lambda
from conftest import OUTPUT, StartFunction
from documents import REPOSITORY
from emulator import CREDENTIALS
from event_source import EventSource

RUN = [
    "cargo run --release --example local -- events/batch.json",
    "cargo run --release --example local -- --template invoice templates/invoice/sample.json",
]
SEND_MESSAGE = """\
aws sqs send-message --queue-url "$QUEUE_URL" --message-body '{"template": "invoice", "data": '"$(cat templates/invoice/sample.json)"'}'"""
NOT_RUN_HERE = {
    "cargo test": ".ci/run runs it, before these tests",
    "sam build": "test_sam.py runs it",
    "sam deploy --guided": "needs AWS",
    test_cargo_lambda.WATCH: "test_cargo_lambda.py runs it",
    test_cargo_lambda.INVOKE: "test_cargo_lambda.py runs it",
    "tests/e2e/run": "runs this",
    "tests/e2e/run -k soak --soak 20000": "takes long; a smaller one is test_soak.py's",
}


def commands() -> list[str]:
    """What stands in README's sh blocks, a command a line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def shell(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"]} | environment
    return subprocess.run(
        ["bash", "-c", command],
        check=False,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_every_command_is_run_or_has_a_reason():
    assert sorted(commands()) == sorted([*RUN, SEND_MESSAGE, *NOT_RUN_HERE])


@pytest.mark.parametrize("command", RUN)
def test_the_command_makes_pdfs(command: str):
    ran = shell(command, {})
    assert ran.returncode == 0, ran.stderr
    paths = re.findall(r"out/.*\.pdf$", ran.stdout, re.MULTILINE)
    assert paths
    for path in paths:
        aws.assert_is_pdf((REPOSITORY / path).read_bytes())


def test_the_message_that_is_sent_becomes_a_pdf(start_function: StartFunction, s3, sqs, moto: str):
    queue = sqs.create_queue(QueueName="readme")["QueueUrl"]
    # The CLI's first version does not look at AWS_ENDPOINT_URL_SQS.
    command = SEND_MESSAGE.replace("aws sqs", f"aws --endpoint-url {moto} sqs")
    sent = shell(command, CREDENTIALS | {"QUEUE_URL": queue})
    assert sent.returncode == 0, sent.stderr
    source = EventSource(sqs, queue, start_function().invoke)
    assert source.poll() == 1 and source.failed == []
    (key,) = aws.keys(s3, OUTPUT)
    assert aws.pdf(s3, OUTPUT, key)["Metadata"]["template"] == "invoice"
