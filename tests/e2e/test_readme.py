"""README's own commands, as they stand there. A new one fails here until it is run, or a reason is given."""

import os
import re
import shutil
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
CHECK = "cargo run --release --example local -- check"
SEND_MESSAGE = """\
aws sqs send-message --queue-url "$QUEUE_URL" --message-body '{"template": "invoice", "data": '"$(cat templates/invoice/sample.json)"'}'"""
NOT_RUN_HERE = {
    "cargo test": ".ci/run runs it, before these tests",
    "cargo run --release --example local -- new letter": "test_templates.py runs it, in a folder of its own",
    "sam build": "test_sam.py runs it",
    "sam deploy --guided": "needs AWS",
    test_cargo_lambda.WATCH: "test_cargo_lambda.py runs it",
    test_cargo_lambda.INVOKE: "test_cargo_lambda.py runs it",
    "TYPST_PACKAGE_PATH=templates/packages TYPST_FONT_PATHS=templates/fonts TYPST_IGNORE_SYSTEM_FONTS=true "
    "typst watch templates/invoice/main.typ": "test_templates.py does the same with the compiler's library",
    "apt-get download fonts-noto-core && dpkg-deb -x fonts-noto-core_*.deb noto": "needs Debian's packages",
    "cp noto/usr/share/fonts/truetype/noto/NotoNaskhArabic-Regular.ttf templates/fonts/": "needs the former",
    'aws sqs start-message-move-task --source-arn "$DEAD_LETTER_QUEUE_ARN" --destination-arn "$QUEUE_ARN"': "moto has it not",
    "tests/e2e/run": "runs this",
    "tests/e2e/run -k soak --soak 20000": "takes long; a smaller one is test_soak.py's",
}


SEND_BACK = [
    'aws sqs receive-message --queue-url "$DEAD_LETTER_QUEUE_URL" --message-attribute-names All '
    "--visibility-timeout 600 > failed.json",
    "jq '.Messages[0].MessageAttributes | map_values(.StringValue)' failed.json",
    "jq -r '.Messages[0].Body' failed.json > body.json",
    'aws sqs send-message --queue-url "$QUEUE_URL" --message-body file://body.json',
    'aws sqs delete-message --queue-url "$DEAD_LETTER_QUEUE_URL" '
    "--receipt-handle \"$(jq -r '.Messages[0].ReceiptHandle' failed.json)\"",
]


def commands() -> list[str]:
    """What stands in README's sh blocks, a command a line, without what is said of it."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [re.sub(r"\s+# .*", "", line) for line in lines if line]


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
    assert sorted(commands()) == sorted([*RUN, CHECK, SEND_MESSAGE, *SEND_BACK, *NOT_RUN_HERE])


@pytest.mark.parametrize("command", RUN)
def test_the_command_makes_pdfs(command: str):
    ran = shell(command, {})
    assert ran.returncode == 0, ran.stderr
    paths = re.findall(r"out/.*\.pdf$", ran.stdout, re.MULTILINE)
    assert paths
    for path in paths:
        aws.assert_is_pdf((REPOSITORY / path).read_bytes())


def test_all_templates_are_checked():
    ran = shell(CHECK, {})
    assert ran.returncode == 0, ran.stdout
    assert [line.split()[:2] for line in ran.stdout.splitlines()[1:]] == [
        ["ok", "invoice"],
        ["ok", "report"],
        ["ok", "statement"],
    ]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_a_failed_message_is_sent_back(sqs, moto: str, tmp_path: Path):
    queues = [sqs.create_queue(QueueName=name)["QueueUrl"] for name in ("readme-failed", "readme-again")]
    sqs.send_message(
        QueueUrl=queues[0],
        MessageBody='{"template": "invoice"}',
        MessageAttributes={"ErrorCode": {"DataType": "String", "StringValue": "InvalidMessage"}},
    )
    environment = CREDENTIALS | {"DEAD_LETTER_QUEUE_URL": queues[0], "QUEUE_URL": queues[1]}
    # The CLI's first version does not look at AWS_ENDPOINT_URL_SQS.
    script = "\n".join(SEND_BACK).replace("aws sqs", f"aws --endpoint-url {moto} sqs")
    ran = shell(f"set -e; cd {tmp_path}\n{script}", environment)
    assert ran.returncode == 0 and '"ErrorCode": "InvalidMessage"' in ran.stdout, ran.stderr
    (sent,) = sqs.receive_message(QueueUrl=queues[1])["Messages"]
    assert sent["Body"].strip() == '{"template": "invoice"}'
    assert "Messages" not in sqs.receive_message(QueueUrl=queues[0])


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
