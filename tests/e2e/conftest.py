"""What the tests share: the program under test, S3 and SQS on loopback, and the function under the emulator."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import aws
from documents import TEMPLATES, TEST_TEMPLATES
from emulator import Emulator
from local_example import target_directory

OUTPUT = "output"
INPUT = "input"
# How many runs every function has at the same time, whatever the machine. They are forks of one press.
WORKERS = 2


# A shell lets its background jobs ignore SIGINT, and they all that they start. SAM and cargo-lambda end by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", type=int, default=2_000, metavar="N", help="render this many documents in the soak test")
    parser.addoption("--update-snapshots", action="store_true", help="take what templates print now for right")
    parser.addoption("--kernel", type=Path, metavar="VMLINUZ", help="boot this kernel instead of Debian's 6.1")


@pytest.fixture(scope="session")
def binary() -> Path:
    """The program under test; tests/e2e/run has built it."""
    return Path(os.environ["PRESSRUN_BINARY"])


@pytest.fixture(scope="session")
def target() -> Path:
    """Cargo's target directory."""
    return target_directory()


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The templates that pressrun comes with, and the unruly ones of its tests, in one folder."""
    folder = tmp_path_factory.mktemp("templates")
    shutil.copytree(TEMPLATES, folder, dirs_exist_ok=True)
    shutil.copytree(TEST_TEMPLATES, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of an S3 and an SQS."""
    with aws.server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(moto: str):
    """A client of an S3 with two empty buckets."""
    with aws.buckets(moto, [OUTPUT, INPUT]) as client:
        yield client


@pytest.fixture
def sqs(moto: str):
    return aws.client("sqs", moto)


StartFunction = Callable[..., Emulator]


@pytest.fixture
def start_function(binary: Path, templates: Path, moto: str, s3, tmp_path: Path) -> Iterator[StartFunction]:
    """Starts functions under the emulator. Each must be gone, with all its processes, in the end."""
    started: list[Emulator] = []

    def start(timeout_seconds: int = 60, **environment: str) -> Emulator:
        variables = {
            "OUTPUT_BUCKET": OUTPUT,
            "INPUT_BUCKET": INPUT,
            "TEMPLATES_DIR": str(templates),
            "WORKERS": str(WORKERS),
            "AWS_ENDPOINT_URL_S3": moto,
            "AWS_ENDPOINT_URL_SQS": moto,
        }
        started.append(Emulator(binary, tmp_path, variables | environment, timeout_seconds))
        return started[-1]

    yield start
    for emulator in started:
        emulator.end()
