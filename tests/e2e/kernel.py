"""Another Linux under qemu, without KVM, and what programs of this machine do on it."""

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

QEMU = "qemu-system-x86_64"
# It takes half a minute where nothing else is at work.
TIMEOUT_SECONDS = 300
# The archive is unpacked into it.
MEMORY = "2G"
INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
ip link set lo up
cd {folder}
{commands}
echo "== done"
poweroff -f
"""
# Through a pipe, since on a terminal there would be a progress bar.
COMMAND = "({command}; printf '\\n== {name} %s\\n' $?) 2>&1 | cat"


@dataclass
class Ran:
    status: int
    output: str


def pack(
    archive: Path,
    commands: dict[str, list[str | Path]],
    folder: Path,
    programs: list[Path],
    others: list[Path],
    empty_folders: list[Path],
) -> None:
    """Makes an initramfs that runs those commands in that folder. All paths are the same in it as here."""
    root = archive.with_suffix(".root")
    for path in ["bin", "dev", "etc", "proc", "sys", "tmp"]:
        (root / path).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    # Something to read, for who should not.
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    lines = [COMMAND.format(name=name, command=shlex.join(map(str, command))) for name, command in commands.items()]
    (root / "init").write_text(INIT.format(folder=shlex.quote(str(folder)), commands="\n".join(lines)))
    (root / "init").chmod(0o755)

    linked = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    libraries = {Path(path) for path in re.findall(r"^\t(?:\S+ => )?(/\S+) \(", linked, re.MULTILINE)}
    for path in [*programs, *libraries, *others]:
        there = root / path.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, there)
    for path in empty_folders:
        (root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
    # Two thirds of them are symbols, and nobody debugs them there.
    subprocess.run(["strip", *(root / program.relative_to("/") for program in programs)], check=True)

    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with archive.open("wb") as output:
        command = ["busybox", "cpio", "-o", "-H", "newc"]
        subprocess.run(command, cwd=root, input=names.encode(), stdout=output, stderr=subprocess.DEVNULL, check=True)
    shutil.rmtree(root)


def boot(kernel: Path, archive: Path, parameters: str, log: Path, cpu: str = "max") -> dict[str, Ran]:
    """Boots that kernel with that archive, on a CPU that qemu knows by that name. How each of its commands ended comes back, by name."""
    command = [
        *(QEMU, "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2", "-m", MEMORY),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", kernel, "-initrd", archive, "-append", f"console=ttyS0 quiet panic=-1 {parameters}"),
    ]
    with log.open("wb") as output:
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=TIMEOUT_SECONDS, check=True
            )
            failed = None
        except subprocess.SubprocessError as error:
            failed = error
    said = log.read_text(errors="replace")
    assert failed is None and "\n== done\n" in said, f"{failed}\n{said}"
    blocks = re.split(r"^== (\S+) (\d+)\n", said, flags=re.MULTILINE)[:-1]
    return {name: Ran(int(status), output) for output, name, status in zip(*[iter(blocks)] * 3, strict=True)}
