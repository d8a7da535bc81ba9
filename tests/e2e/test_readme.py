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
from documents import REPOSITORY, TEMPLATES, message, sample
from emulator import CREDENTIALS
from event_source import EventSource, count, new_queue, queue_with_dead_letters, send_all

# What each leaves behind, as a pattern of its output.
RUN = {
    "cargo run --release --example local -- events/batch.json": r"out/.*\.pdf$",
    "cargo run --release --example local -- --template invoice templates/invoice/sample.json": r"out/.*\.pdf$",
    "cargo run --release --example local -- --trace traces events/batch.json": r"out/.*\.pdf$",
}
# In a copy of the templates, since the first makes one.
RUN_IN_A_COPY = [
    "cargo run --release --example local -- new letter",
    "cargo run --release --example local -- check",
]
SEND_MESSAGE = """\
aws sqs send-message --queue-url "$QUEUE_URL" --message-body '{"template": "invoice", "data": '"$(cat templates/invoice/sample.json)"'}'"""
MEND = """\
aws sqs receive-message --queue-url "$DEAD_LETTER_QUEUE_URL" --message-attribute-names All --visibility-timeout 600 > failed.json
jq '.Messages[0].MessageAttributes | map_values(.StringValue)' failed.json
jq -r '.Messages[0].Body' failed.json > body.json
aws sqs send-message --queue-url "$QUEUE_URL" --message-body file://body.json
aws sqs delete-message --queue-url "$DEAD_LETTER_QUEUE_URL" --receipt-handle "$(jq -r '.Messages[0].ReceiptHandle' failed.json)"\
""".splitlines()
NOT_RUN_HERE = {
    "cargo test": ".ci/run runs it, before these tests",
    "sam build": "test_sam.py runs it",
    "sam deploy --guided": "needs AWS",
    test_cargo_lambda.WATCH: "test_cargo_lambda.py runs it",
    test_cargo_lambda.INVOKE: "test_cargo_lambda.py runs it",
    'aws sqs start-message-move-task --source-arn "$DEAD_LETTER_QUEUE_ARN" --destination-arn "$QUEUE_ARN"': "moto cannot",
    "TYPST_PACKAGE_PATH=templates/packages TYPST_FONT_PATHS=templates/fonts TYPST_IGNORE_SYSTEM_FONTS=true "
    "typst watch templates/invoice/main.typ": "needs Typst's own program; test_templates.py compiles as it does",
    "apt-get download fonts-noto-core && dpkg-deb -x fonts-noto-core_*.deb noto": "needs Debian's packages",
    "cp noto/usr/share/fonts/truetype/noto/NotoNaskhArabic-Regular.ttf templates/fonts/": "goes with the one before",
    "tests/e2e/run": "runs this",
    "tests/e2e/run -k soak --soak 20000": "takes long; a smaller one is test_soak.py's",
}


def commands() -> list[str]:
    """What stands in README's sh blocks, a command a line, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines() if line]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


def shell(command: str, environment: dict[str, str], folder: Path = REPOSITORY) -> str:
    """What a command says that has succeeded."""
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"]} | environment
    ran = subprocess.run(
        ["bash", "-euc", command],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def aws_cli(command: str, moto: str) -> str:
    """The command for moto: the CLI's first version does not look at AWS_ENDPOINT_URL_SQS."""
    return command.replace("aws sqs", f"aws --endpoint-url {moto} sqs")


def test_every_command_is_run_or_has_a_reason():
    assert sorted(commands()) == sorted([*RUN, *RUN_IN_A_COPY, SEND_MESSAGE, *MEND, *NOT_RUN_HERE])


@pytest.mark.parametrize("command", RUN)
def test_the_command_makes_pdfs(command: str):
    paths = re.findall(RUN[command], shell(command, {}), re.MULTILINE)
    assert paths
    for path in paths:
        aws.assert_is_pdf((REPOSITORY / path).read_bytes())


def test_a_new_template_is_in_order(tmp_path: Path):
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    for command in RUN_IN_A_COPY:
        shell(command, {"TEMPLATES_DIR": str(tmp_path / "templates")})
    assert (tmp_path / "templates/letter/main.typ").exists()


def test_the_message_that_is_sent_becomes_a_pdf(start_function: StartFunction, s3, sqs, moto: str):
    queue = new_queue(sqs, "readme")
    shell(aws_cli(SEND_MESSAGE, moto), CREDENTIALS | {"QUEUE_URL": queue})
    source = EventSource(sqs, queue, start_function().invoke)
    assert source.poll() == 1 and source.failed == []
    (key,) = aws.keys(s3, OUTPUT)
    assert aws.pdf(s3, OUTPUT, key)["Metadata"]["template"] == "invoice"


@pytest.mark.skipif(not shutil.which("jq"), reason="README's commands want jq")
def test_a_failed_message_is_mended_and_sent_back(start_function: StartFunction, s3, sqs, moto: str, tmp_path: Path):
    queue, dead_letters = queue_with_dead_letters(sqs, "mend", visibility_seconds=30, most_receives=3)
    send_all(sqs, queue, [{"MessageBody": message("invioce", sample("invoice"))}])
    source = EventSource(sqs, queue, start_function(FAILED_QUEUE_URL=dead_letters).invoke)
    assert source.poll() == 1 and count(sqs, queue) == 0 and count(sqs, dead_letters) == 1

    receive, why, take, *send_back = MEND
    script = [receive, why, take, "sed -i s/invioce/invoice/ body.json", *send_back]
    environment = CREDENTIALS | {"QUEUE_URL": queue, "DEAD_LETTER_QUEUE_URL": dead_letters}
    said = shell(aws_cli("\n".join(script), moto), environment, tmp_path)
    assert '"ErrorCode": "UnknownTemplate"' in said
    assert source.poll() == 1 and source.failed == []
    (key,) = aws.keys(s3, OUTPUT)
    assert aws.pdf(s3, OUTPUT, key)["Metadata"]["template"] == "invoice"
    assert count(sqs, queue) == count(sqs, dead_letters) == 0
