"""The commands of README, CONTRIBUTING and docs, as they stand there. A new one fails here until it is run, or a reason
is given."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aws
import census
import test_cargo_lambda
from cloudwatch import metric_lines, template
from conftest import OUTPUT, StartFunction
from documents import NEARLY_ALL_OF_2048_MB, REPOSITORY, TEMPLATES, event, letter, message, record, sample
from emulator import CREDENTIALS
from event_source import EventSource, count, new_queue, queue_with_dead_letters, send_all
from faulty_s3 import NO_FAULT, Fault, FaultyS3

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OPERATIONS = REPOSITORY / "docs/operations.md"
# All but `leak`, whose command draws its picture too, and `binaries`, which has to be told of two programs.
BENCHMARKS = sorted({path.stem for path in (REPOSITORY / "benches").glob("*.rs")} - {"binaries", "leak"})
# What each leaves behind, as a pattern of its output.
RUN = {
    "cargo run --example local -- events/batch.json": r"out/.*\.pdf$",
    "cargo run --example local -- --template invoice templates/invoice/sample.json": r"out/.*\.pdf$",
    "cargo run --example local -- --timings timings events/batch.json": r"out/.*\.pdf$",
}
# In a copy of the templates, since the first makes one.
RUN_IN_A_COPY = [
    "cargo run --example local -- new letter",
    "cargo run --example local -- check",
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
# What the commands of docs/operations.md say, by the alarm that they begin at, in their order.
OPERATE = {
    "": ["LogGroup", ""],
    "DeadLetterAlarm": [
        r'^\["\S+","\S+","UnknownTemplate","',
        '"permanent failure","code":"UnknownTemplate"',
    ],
    "BacklogAlarm": ["ApproximateNumberOfMessagesNotVisible", r"^\d.*\tletter\t", "Enabled"],
    "OutageAlarm": [r" 1 StorageUnavailable\t"],
    "ErrorsAlarm": ['"status":"timeout"', r"[2-9] permanent failure"],
    "ThrottlesAlarm": ['"ReservedConcurrentExecutions": 7', None],
    "LeaksAlarm": [r"^press +resident KiB"],
    "MemoryAlarm": [r'"MemoryUsed":[89]\d', '"stored","template":"greedy"'],
    "RunsKilledAlarm": [r"1 RunKilled\toverflow\t"],
    "PressesReplacedAlarm": [r'"PressesReplaced":1,"Leaks":[^0]', "there is more than before"],
}
MOTO_CANNOT = {"aws lambda get-account-settings --query AccountLimit.ConcurrentExecutions"}
IN_CI = ".ci/run runs it, before these tests"
BENCHMARK = "takes long, and needs a machine with nothing else to do"
PROFILE = "needs perf, and a build of its own"
NOT_RUN_HERE = {
    "cargo test": IN_CI,
    "cargo test a_malformed_record_fails_alone": "a part of the one before",
    "cargo test nine_endless_documents": "a part of it too",
    "cargo build": "tests/e2e/run builds more",
    "cargo bench --bench long_documents -- tables": BENCHMARK,
    "cargo fmt --check": IN_CI,
    "cargo clippy --all-targets -- -D warnings": ".ci/run lints while it builds the tests",
    ".ci/spelling-and-licences": ".ci/run runs it",
    "cargo deny check advisories": "needs the network",
    "cargo test --test it snapshots": "a part of cargo test",
    "UPDATE_EXPECT=1 cargo test --test it snapshots": "writes files of the repository",
    ".ci/run": "runs this",
    "sam build": "test_sam.py runs it",
    "scripts/build-optimized": "takes twice as long as the build that it replaces",
    "cargo bench --bench binaries -- plain/bootstrap optimized/bootstrap": BENCHMARK,
    "sam deploy --guided": "needs AWS",
    "QUEUE_URL=$(aws cloudformation describe-stacks --stack-name pressrun "
    "--query \"Stacks[0].Outputs[?OutputKey=='QueueUrl'].OutputValue\" --output text)": "needs AWS",
    'aws lambda invoke --function-name "$FUNCTION_NAME" --cli-binary-format raw-in-base64-out '
    "--payload file://events/direct.json answer.json": "needs AWS; test_runtime_interface_emulator.py sends the same",
    test_cargo_lambda.WATCH: "test_cargo_lambda.py runs it",
    test_cargo_lambda.INVOKE: "test_cargo_lambda.py runs it",
    'aws sqs start-message-move-task --source-arn "$DEAD_LETTER_QUEUE_ARN" --destination-arn "$QUEUE_ARN"': "moto cannot",
    "TYPST_PACKAGE_PATH=templates/packages TYPST_FONT_PATHS=templates/fonts TYPST_IGNORE_SYSTEM_FONTS=true "
    "typst watch templates/invoice/main.typ": "needs Typst's own program; test_templates.py compiles as it does",
    "apt-get download fonts-noto-core && dpkg-deb -x fonts-noto-core_*.deb noto": "needs Debian's packages",
    "cp noto/usr/share/fonts/truetype/noto/NotoNaskhArabic-Regular.ttf templates/fonts/": "goes with the one before",
    "cargo run --example local -- watch invoice": "test_local.py watches",
    "cargo run --example local -- watch invoice my-data.json": "test_local.py watches",
    "sed -i -E 's/^# (standards|e-invoice)/\\1/' templates/invoice/typst.toml": "test_e_invoices.py runs it",
    "cargo run --example local -- check invoice": "test_e_invoices.py runs it",
    "tests/e2e/run": "runs this",
    "tests/e2e/run -k alarms": "runs a part of this",
    "tests/e2e/run -k soak --soak 20000": "takes long; a smaller one is test_soak.py's",
    "tests/e2e/run -k kernels --kernel k/boot/vmlinuz-5.10*": "needs that kernel; test_kernels.py boots another",
    "cargo bench": BENCHMARK,
    "cargo bench --bench leak -- --svg docs/leak.svg": BENCHMARK,
    **{f"cargo bench --bench {name}": BENCHMARK for name in BENCHMARKS},
    "cargo install flamegraph": PROFILE,
    "CARGO_PROFILE_DEV_OPT_LEVEL=2 cargo flamegraph --profile dev --bench one_page --no-inline --min-width 0.3 "
    '-c "record -e cpu-clock -F 499 --call-graph dwarf,32768" -o docs/invoice-flames.svg -- invoices': PROFILE,
    "CARGO_PROFILE_RELEASE_DEBUG=line-tables-only cargo build --release --example local": PROFILE,
    "perf record --call-graph dwarf target/release/examples/local events/batch.json": PROFILE,
    "perf report": PROFILE,
}


def commands(text: str) -> list[str]:
    """What stands in a text's sh blocks, a command a line, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines() if line]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


def operating() -> dict[str, list[str]]:
    """The commands that lead from an alarm to its cause, by alarm."""
    chapter = re.search(r"^## From an alarm.*?(?=^## )", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)[0]
    first, *parts = re.split(r"^### (\w+Alarm)$", chapter, flags=re.MULTILINE)
    return {"": commands(first)} | {name: commands(part) for name, part in zip(parts[::2], parts[1::2], strict=True)}


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
    return re.sub(r"\baws (sqs|logs|lambda|cloudformation)\b", rf"aws --endpoint-url {moto} \1", command)


def test_every_command_is_run_or_has_a_reason():
    operate = [command for of_alarm in operating().values() for command in of_alarm]
    known = {*RUN, *RUN_IN_A_COPY, SEND_MESSAGE, *MEND, *operate, *NOT_RUN_HERE}
    there_are = {command for page in PAGES for command in commands(page.read_text())}
    assert there_are - known == set(), "in the docs, but neither run nor with a reason"
    assert known - there_are == set(), "run or with a reason, but not in the docs"


def test_every_link_between_the_pages_leads_somewhere():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
        for target in targets:
            path, _, heading = target.partition("#")
            if "://" in target:
                continue
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.name}: {target}"
            assert not heading or heading in headings(there), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    """A page's headings, as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


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
    queue = new_queue(sqs, "docs")
    shell(aws_cli(SEND_MESSAGE, moto), CREDENTIALS | {"QUEUE_URL": queue})
    source = EventSource(sqs, queue, start_function().invoke)
    assert source.poll() == 1 and source.failed == []
    (key,) = aws.keys(s3, OUTPUT)
    assert aws.pdf(s3, OUTPUT, key)["Metadata"]["template"] == "invoice"


@pytest.mark.skipif(not shutil.which("jq"), reason="the commands want jq")
def test_a_failed_message_is_mended_and_sent_back(start_function: StartFunction, s3, sqs, moto: str, tmp_path: Path):
    queue, dead_letters = queue_with_dead_letters(sqs, "mend", visibility_seconds=30, max_receive_count=3)
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


# What Lambda itself says of an invocation whose time was over. Source:
# https://docs.aws.amazon.com/lambda/latest/dg/telemetry-schema-reference.html
TIMED_OUT = {
    "time": "2026-07-01T12:00:00.000Z",
    "type": "platform.report",
    "record": {
        "requestId": "6d68ca91-49c9-448d-89b8-7ca3e6dc66aa",
        "status": "timeout",
        "metrics": {"durationMs": 60000.0, "billedDurationMs": 60000, "memorySizeMB": 3538, "maxMemoryUsedMB": 512},
    },
}


@pytest.mark.skipif(not shutil.which("jq"), reason="the commands want jq")
def test_the_commands_lead_from_each_alarm_to_its_cause(
    start_function: StartFunction, s3, sqs, moto: str, subtests: pytest.Subtests
):
    queue, dead = new_queue(sqs, "operate"), new_queue(sqs, "operate-dead")
    bodies = [message("lettre", {}), message("overflow", {"depth": 300_000}), message("letter", letter(1))]
    bodies += [message("letter", letter(2), key="throttled"), NEARLY_ALL_OF_2048_MB]
    ids = send_all(sqs, queue, [{"MessageBody": body} for body in bodies])
    variables = {"FAILED_QUEUE_URL": dead, "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "2048", "WORKERS": "1"}
    with FaultyS3(moto, lambda method, path: Fault(status=503) if "throttled" in path else NO_FAULT) as proxy:
        variables |= {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_ENDPOINT_URL_S3": proxy.endpoint}
        emulator = start_function(timeout_seconds=300, **variables)
        assert EventSource(sqs, queue, emulator.invoke).poll() == len(bodies)
        census.make_resident(emulator.press)
        emulator.invoke(event(record("last", message("letter", letter(3)))))
        emulator.end()
    lines = [line for line in emulator.log_lines() if line.startswith("{")]
    put_log(aws.client("logs", moto), [*lines, json.dumps(TIMED_OUT)])
    make_event_source(moto, queue)
    make_stack(aws.client("cloudformation", moto))

    of_invocations = [line for line in metric_lines(lines) if "Records" in line]
    environment = {
        "QUEUE_URL": queue,
        "DEAD_LETTER_QUEUE_URL": dead,
        "LOG_GROUP": "operate",
        "FUNCTION_NAME": "operate",
        "MESSAGE_ID": ids[0],
    }
    request = {"MemoryAlarm": of_invocations[0]["requestId"], "PressesReplacedAlarm": of_invocations[-1]["requestId"]}
    log = next(command for command in operating()[""] if command.startswith("log()"))
    assert operating().keys() == OPERATE.keys()
    for alarm, of_alarm in operating().items():
        for command, pattern in zip(of_alarm, OPERATE[alarm], strict=True):
            if command in MOTO_CANNOT:
                continue
            with subtests.test(alarm, command=command):
                script = aws_cli(f"{log}\n{command}", moto)
                said = shell(script, CREDENTIALS | environment | {"REQUEST_ID": request.get(alarm, "")})
                assert re.search(pattern, said, re.MULTILINE), said


def put_log(logs, lines: list[str]) -> None:
    logs.create_log_group(logGroupName="operate")
    logs.create_log_stream(logGroupName="operate", logStreamName="one")
    now = time.time_ns() // 1_000_000
    events = [{"timestamp": now, "message": line} for line in lines]
    logs.put_log_events(logGroupName="operate", logStreamName="one", logEvents=events)


def make_event_source(moto: str, queue_url: str) -> None:
    """A function that reads the queue, as far as Lambda's API knows, with reserved concurrency."""
    role = aws.client("iam", moto).create_role(RoleName="operate", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    attributes = aws.client("sqs", moto).get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    functions = aws.client("lambda", moto)
    code = {"ZipFile": b"nothing"}
    functions.create_function(FunctionName="operate", Role=role, Runtime="provided.al2023", Handler="b", Code=code)
    functions.create_event_source_mapping(
        FunctionName="operate", EventSourceArn=attributes["Attributes"]["QueueArn"], BatchSize=10
    )
    functions.put_function_concurrency(FunctionName="operate", ReservedConcurrentExecutions=7)


def make_stack(cloudformation) -> None:
    """A stack with the outputs of template.yaml's."""
    outputs = {name: {"Value": name.lower()} for name, said in template()["Outputs"].items() if "Condition" not in said}
    body = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}, "Outputs": outputs}
    cloudformation.create_stack(StackName="pressrun", TemplateBody=json.dumps(body))
