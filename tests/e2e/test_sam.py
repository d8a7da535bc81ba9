"""The repository's own template.yaml with the SAM CLI: checked, built, and run in containers.

Needs a Docker engine. No image is pulled: where Lambda's is not there, a stand-in is made for the time of the tests.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config

import aws
import census
import stand_in_image
from documents import DIRECT, EVENTS, REPOSITORY, TEST_TEMPLATES, event, failures, invoice, message, outcomes, record
from emulator import CREDENTIALS, free_port
from stand_in_image import docker

NAME = "pressrun-e2e"
S3_PORT = 9000
# What `sam local` makes of !Ref OutputBucket and !Ref InputBucket is no name for a bucket.
BUCKETS = {"OUTPUT_BUCKET": "output", "INPUT_BUCKET": "input"}
# And no queue is within the containers' reach.
NO_QUEUES = {"FAILED_QUEUE_URL": "", "DONE_QUEUE_URL": ""}


def sam_environment(target: Path) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    path = {"PATH": scripts + os.pathsep + os.environ["PATH"], "CARGO_TARGET_DIR": str(target)}
    return os.environ | CREDENTIALS | path | {"SAM_CLI_TELEMETRY": "0"}


def sam(target: Path, *arguments: str) -> subprocess.CompletedProcess:
    ran = subprocess.run(
        ["sam", *arguments],
        cwd=REPOSITORY,
        env=sam_environment(target),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, f"sam {' '.join(arguments)}:\n{ran.stdout}\n{ran.stderr}"
    return ran


@pytest.fixture(scope="module")
def build(target: Path) -> Path:
    """What `sam build` makes of the repository."""
    folder = target / "e2e/sam-build"
    sam(target, "build", "--beta-features", "--build-dir", str(folder))
    return folder


@pytest.fixture(scope="module")
def engine() -> None:
    """A Docker engine, with a base image for the function."""
    if not shutil.which("docker"):
        pytest.skip("there is no Docker on this machine")
    asked = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"there is no Docker engine: {asked.stderr.strip()}")


@pytest.fixture(scope="module")
def base_image(engine: None) -> Iterator[None]:
    """Lambda's, or a stand-in, which is taken away again with all that SAM has made of it."""
    stand_in_image.remove()
    if not stand_in_image.is_there(stand_in_image.BASE_IMAGE):
        stand_in_image.make()
    yield
    stand_in_image.remove()


@pytest.fixture(scope="module")
def s3_of_containers(base_image: None) -> Iterator[str]:
    """An S3 in a container, on a network that the function's containers join; its URL here."""
    remove_leftovers()
    docker("network", "create", NAME)
    # moto's server in this very Python, with the libraries of this machine.
    shared = {"/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(Path(__file__).parent)}
    mounts = [f"--volume={path}:{path}:ro" for path in sorted(shared) if Path(path).exists()]
    server = [sys.executable, str(Path(aws.__file__)), "0.0.0.0", str(S3_PORT)]
    published = f"--publish=127.0.0.1::{S3_PORT}"
    options = ["--detach", f"--name={NAME}-s3", f"--network={NAME}", "--network-alias=s3", published, *mounts]
    try:
        docker("run", *options, stand_in_image.BASE_IMAGE, *server)
        endpoint = "http://" + docker("port", f"{NAME}-s3", str(S3_PORT)).splitlines()[0]
        aws.wait_for(endpoint)
        yield endpoint
    finally:
        remove_leftovers()


def remove_leftovers() -> None:
    for what in (["rm", "--force", "--volumes", f"{NAME}-s3"], ["network", "rm", "--force", NAME]):
        subprocess.run(["docker", *what], capture_output=True, check=False)


@pytest.fixture
def s3(s3_of_containers: str):
    with aws.buckets(s3_of_containers, BUCKETS.values()) as client:
        yield client


def local_options(folder: Path, tmp_path: Path, **parameters: object) -> list[str]:
    """For `sam local`: this build, without the network, and with the container's S3."""
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps({"Parameters": BUCKETS | NO_QUEUES | CREDENTIALS}))
    overrides = {"S3EndpointUrl": f"http://s3:{S3_PORT}"} | parameters
    return [
        *("--template", str(folder / "template.yaml"), "--skip-pull-image", "--docker-network", NAME),
        *("--env-vars", str(variables)),
        *("--parameter-overrides", *(f"{name}={value}" for name, value in overrides.items())),
    ]


def test_the_template_is_valid(target: Path):
    sam(target, "validate", "--lint")


def test_a_build_has_the_function_and_a_layer_with_the_templates(build: Path):
    assert os.access(build / "Function/bootstrap", os.X_OK)
    layer = {path.name for path in (build / "TemplatesLayer/templates").iterdir()}
    assert layer == {path.name for path in (REPOSITORY / "templates").iterdir()}


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.name)
def test_invoke_stores_every_good_document(build: Path, s3, target: Path, tmp_path: Path, path: Path):
    ran = sam(target, "local", "invoke", "Function", "--event", str(path), *local_options(build, tmp_path))
    good, bad = outcomes(path)
    assert failures(json.loads(ran.stdout)) == bad
    assert aws.message_ids(s3, BUCKETS["OUTPUT_BUCKET"]) == sorted(good)


def test_a_direct_call_is_answered_with_what_was_stored(build: Path, s3, target: Path, tmp_path: Path):
    ran = sam(target, "local", "invoke", "Function", "--event", str(DIRECT), *local_options(build, tmp_path))
    assert aws.keys(s3, BUCKETS["OUTPUT_BUCKET"]) == [json.loads(ran.stdout)["key"]]


@contextmanager
def start_lambda(target: Path, log: Path, options: list[str]) -> Iterator[object]:
    """`sam local start-lambda`, and a client of it."""
    port = free_port()
    command = ["sam", "local", "start-lambda", "--port", str(port), "--warm-containers", "EAGER", *options]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=REPOSITORY, env=sam_environment(target), stdout=output, stderr=output)
    try:
        census.until("SAM listens", lambda: b"Running on" in log.read_bytes() or server.poll() is not None, 120)
        assert server.poll() is None, log.read_text()
        once = Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1}, read_timeout=120)
        yield boto3.client("lambda", endpoint_url=f"http://127.0.0.1:{port}", region_name="eu-central-1", config=once)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    assert not function_containers(), "SAM has removed its containers"


def function_containers() -> list[str]:
    names = docker("ps", "--all", f"--filter=network={NAME}", "--format={{.Names}}").split()
    return [name for name in names if name != f"{NAME}-s3"]


def invoke(function, sent: dict) -> dict:
    answer = function.invoke(FunctionName="Function", Payload=json.dumps(sent))
    payload = answer["Payload"].read()
    assert answer["StatusCode"] == 200 and "FunctionError" not in answer, payload
    return json.loads(payload)


def test_a_warm_container_answers_boto3(build: Path, s3, target: Path, tmp_path: Path):
    with start_lambda(target, tmp_path / "sam.log", local_options(build, tmp_path)) as function:
        for path in EVENTS * 2:
            aws.delete_all(s3, BUCKETS["OUTPUT_BUCKET"])
            good, bad = outcomes(path)
            assert failures(invoke(function, json.loads(path.read_text()))) == bad
            assert aws.message_ids(s3, BUCKETS["OUTPUT_BUCKET"]) == sorted(good)


def test_a_memory_eater_fails_alone_under_the_containers_real_limit(build: Path, s3, target: Path, tmp_path: Path):
    with_greedy = tmp_path / "sam-build"
    shutil.copytree(build, with_greedy)
    shutil.copytree(TEST_TEMPLATES / "greedy", with_greedy / "TemplatesLayer/templates/greedy")
    good = [record(f"good-{number}", message("invoice", invoice(number))) for number in range(9)]
    greedy = record("greedy", message("greedy", {"megabytes": None}))
    log = tmp_path / "sam.log"
    with start_lambda(target, log, local_options(with_greedy, tmp_path, MemorySize=512)) as function:
        (container,) = function_containers()
        assert docker("inspect", "--format={{.HostConfig.Memory}}", container) == str(512 * 1024 * 1024)
        for _ in range(3):
            aws.delete_all(s3, BUCKETS["OUTPUT_BUCKET"])
            assert failures(invoke(function, event(*good[:5], greedy, *good[5:]))) == ["greedy"]
            assert aws.message_ids(s3, BUCKETS["OUTPUT_BUCKET"]) == sorted(f"good-{number}" for number in range(9))
        assert function_containers() == [container], "the function has lived through it"
    assert '"MemoryLimit"' in log.read_text()
