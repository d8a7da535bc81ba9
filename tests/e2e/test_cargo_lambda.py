"""cargo-lambda: the docs' `watch` and `invoke`, and what `build` makes for Lambda."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aws
import census
from conftest import OUTPUT
from documents import EVENTS, REPOSITORY, failures, outcomes
from emulator import CREDENTIALS, expect_gone, free_port, listens

# As docs/testing.md has them.
WATCH = "OUTPUT_BUCKET=output AWS_ENDPOINT_URL_S3=http://127.0.0.1:9090 cargo lambda watch"
INVOKE = "cargo lambda invoke pressrun --data-file events/batch.json"
# provided.al2023's C library.
NEWEST_GLIBC = (2, 34)
# What is there beside it of what a Rust program may be linked with.
IN_PROVIDED_AL2023 = {
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
}


def environment(target: Path) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return (
        os.environ | CREDENTIALS | {"PATH": scripts + os.pathsep + os.environ["PATH"], "CARGO_TARGET_DIR": str(target)}
    )


def at(port: int) -> str:
    return f" --invoke-address 127.0.0.1 --invoke-port {port}"


@pytest.fixture(scope="module")
def watch(moto: str, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The docs' `cargo lambda watch`, on a free port and with moto's S3."""
    # It would also build, but nobody would know how long to wait.
    subprocess.run(["cargo", "build", "--locked"], cwd=REPOSITORY, env=environment(target), check=True)
    port = free_port()
    log = tmp_path_factory.mktemp("watch") / "watch.log"
    command = WATCH.replace("http://127.0.0.1:9090", moto) + at(port)
    with log.open("wb") as output:
        watching = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            cwd=REPOSITORY,
            env=environment(target),
            stdout=output,
            stderr=output,
        )
    try:
        census.until("it listens", lambda: listens(port) or watching.poll() is not None)
        assert watching.poll() is None, log.read_text()
        yield port
    finally:
        family = census.descendants(watching.pid)
        watching.send_signal(signal.SIGINT)
        watching.wait(timeout=60)
        expect_gone(family)


def test_a_build_runs_on_provided_al2023(target: Path):
    command = ["cargo", "lambda", "build", "--locked", "--release", "--bin", "pressrun"]
    subprocess.run(command, cwd=REPOSITORY, env=environment(target), check=True)
    binary = target / "lambda/pressrun/bootstrap"
    said = subprocess.run(["objdump", "-T", binary], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", said)}
    assert versions and max(versions) <= NEWEST_GLIBC
    libraries = subprocess.run(["objdump", "-p", binary], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED\s+(\S+)", libraries))
    assert needed <= IN_PROVIDED_AL2023, needed


def test_a_direct_call_is_answered_with_what_was_stored(watch: int, s3, target: Path):
    command = INVOKE.replace("events/batch.json", "events/direct.json") + at(watch)
    ran = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, env=environment(target), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert aws.keys(s3, OUTPUT) == [json.loads(ran.stdout)["key"]]


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.name)
def test_invoke_stores_every_good_document(watch: int, s3, target: Path, path: Path):
    command = INVOKE.replace("events/batch.json", f"events/{path.name}") + at(watch)
    ran = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, env=environment(target), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    good, bad = outcomes(path)
    assert failures(json.loads(ran.stdout)) == bad
    assert aws.message_ids(s3, OUTPUT) == sorted(good)
