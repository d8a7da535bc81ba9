"""The local example and the tests of the sandbox on other kernels than this machine's, with Landlock and without; and
what is deployed on an older CPU.

tests/e2e/install-qemu installs what they need. By hand, with the package of another kernel, as Debian 11's 5.10:

    dpkg-deb --extract linux-image-5.10*-cloud-amd64*.deb k
    tests/e2e/run -k kernels --kernel k/boot/vmlinuz-5.10*
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from documents import REPOSITORY, outcomes
from kernel import QEMU, Ran, boot, pack

EVENTS = [REPOSITORY / "events/batch.json", REPOSITORY / "events/partly-bad.json"]
FIRST_WITH_LANDLOCK = (5, 13)


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest, target: Path) -> Path:
    for program in [QEMU, "busybox"]:
        if not shutil.which(program):
            pytest.skip(f"there is no {program} on this machine")
    if given := request.config.getoption("--kernel"):
        return given
    installed = sorted((target / "e2e-kernel/boot").glob("vmlinuz-6.1.*"))
    if not installed:
        pytest.skip("tests/e2e/install-qemu has found no kernel to boot")
    return installed[-1]


@pytest.fixture(scope="module")
def archive(kernel: Path, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    build = ["cargo", "test", "--locked", "--no-run", "--test", "sandbox", "--message-format=json"]
    said = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    built = [message for message in map(json.loads, said.splitlines()) if message.get("executable")]
    (sandbox,) = [Path(message["executable"]) for message in built if message["target"]["name"] == "sandbox"]
    local = target / "debug/examples/local"
    commands = {
        "release": ["uname", "-r"],
        "lsm": ["cat", "/sys/kernel/security/lsm"],
        **{path.name: [local, path] for path in EVENTS},
        "sandbox": [sandbox],
    }
    data = [REPOSITORY / "templates", REPOSITORY / "tests/templates", *EVENTS]
    archive = tmp_path_factory.mktemp("kernel") / "init.cpio"
    # Where Cargo lets tests leave files.
    folders = [target / "tmp"]
    pack(archive, commands, REPOSITORY, [local, sandbox, target / "debug/pressrun"], data, folders)
    yield archive
    # pytest would keep a quarter of a gigabyte for each of its last sessions.
    archive.unlink()


@pytest.fixture(scope="module", params=[True, False], ids=["with Landlock", "without Landlock"])
def landlock(request: pytest.FixtureRequest, kernel: Path) -> bool:
    version = tuple(map(int, re.findall(r"\d+", kernel.name)[:2]))
    if request.param and version < FIRST_WITH_LANDLOCK:
        pytest.skip(f"{kernel.name} has no Landlock")
    return request.param


@pytest.fixture(scope="module")
def machine(kernel: Path, archive: Path, landlock: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """What has run on that kernel."""
    log = tmp_path_factory.mktemp("machine") / "console.log"
    ran = boot(kernel, archive, "" if landlock else "lsm=capability", log)
    assert ran["release"].output.strip() == kernel.name.removeprefix("vmlinuz-")
    assert ("landlock" in ran["lsm"].output.strip().split(",")) == landlock
    return ran


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.name)
def test_the_local_example_stores_every_good_document(machine: dict[str, Ran], path: Path):
    good, bad = outcomes(path)
    ran = machine[path.name]
    assert ran.status == (1 if bad else 0), ran.output
    assert len(re.findall(r"^stored .*\.pdf$", ran.output, re.MULTILINE)) == len(good), ran.output
    assert re.findall(r"^failed .* permanent, .*: message (\S+)$", ran.output, re.MULTILINE) == bad, ran.output


def test_the_sandbox_holds(machine: dict[str, Ran], landlock: bool):
    ran = machine["sandbox"]
    assert ran.status == 0, ran.output
    ((passed, skipped),) = re.findall(r"^(\d+) passed, 0 failed, (\d+) skipped$", ran.output, re.MULTILINE)
    assert int(passed) > 0, "without Landlock there is seccomp"
    assert (int(skipped) > 0) == (not landlock), ran.output


def test_a_cpu_that_the_build_is_not_for_is_named(kernel: Path, binary: Path, target: Path, tmp_path: Path):
    if target / "lambda" not in binary.parents:
        pytest.skip("PRESSRUN_BINARY is not what cargo-lambda builds, which is for CPUs with AVX2")
    archive = tmp_path / "init.cpio"
    pack(archive, {"function": [binary]}, binary.parent, [binary], [], [])

    # It has SSE 4.2, and nothing newer.
    ran = boot(kernel, archive, "", tmp_path / "console.log", cpu="Nehalem")["function"]

    assert ran.status == 1, f"SIGILL would be 132: {ran}"
    assert ran.output.strip() == (
        "pressrun: this CPU lacks AVX2 and BMI2, as Intel's CPUs have since Haswell: "
        "build for it, with RUSTFLAGS=-Ctarget-cpu=x86-64"
    )
