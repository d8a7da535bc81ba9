"""A base image for `sam local` where Lambda's own is not there and cannot be pulled: a shell, a C library and
what else this machine has of what SAM and the function need, under the name that SAM asks for."""

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from samcli.local.docker.lambda_image import LambdaImage, Runtime

BASE_IMAGE = f"{LambdaImage._INVOKE_REPO_PREFIX}/{Runtime.get_image_name_tag('provided.al2023', 'x86_64')}"
LABEL = "pressrun-stand-in"
# What SAM runs while it adds its emulator to an image.
PROGRAMS = ["sh", "mv", "cp", "rm", "chmod", "mkdir"]
# What a Rust program is linked with, beside the C library.
LIBRARIES = ["libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"]
FOLDERS = ["tmp", "opt", "var/task"]


def docker(*arguments: str, **options) -> str:
    ran = subprocess.run(["docker", *arguments], capture_output=True, check=False, **options)
    assert ran.returncode == 0, f"docker {' '.join(arguments)}: {ran.stderr.decode()}"
    return ran.stdout.decode().strip()


def is_there(image: str) -> bool:
    return bool(docker("image", "ls", "--quiet", image))


def make() -> None:
    changes = ["ENV LAMBDA_TASK_ROOT=/var/task", "WORKDIR /var/task", f"LABEL {LABEL}=yes"]
    options = [argument for change in changes for argument in ("--change", change)]
    docker("import", *options, "-", BASE_IMAGE, input=files())


def remove() -> None:
    """Takes away the image and every image made of it: they inherit its label."""
    ours = ("--filter", f"label={LABEL}")
    for image in docker(
        "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "dangling=false", *ours
    ).split():
        docker("image", "rm", "--force", image)
    docker("image", "prune", "--force", *ours)


def files() -> bytes:
    """The image's files, as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for place, path in sorted({**programs(), **libraries(), **certificates()}.items()):
            tar.add(path.resolve(), arcname=place.lstrip("/"))
    return archive.getvalue()


def programs() -> dict[str, Path]:
    found = {}
    for name in PROGRAMS:
        program = shutil.which(name)
        assert program, f"{name} is not on this machine"
        found[f"/bin/{name}"] = Path(program)
        needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        found |= {library: Path(library) for library in re.findall(r"(/\S+) \(0x", needed)}
    return found


def libraries() -> dict[str, Path]:
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    paths = dict(re.findall(r"^\s+(\S+) \(libc6,x86-64[^)]*\) => (\S+)$", known, re.MULTILINE))
    return {paths[name]: Path(paths[name]) for name in LIBRARIES if name in paths}


def certificates() -> dict[str, Path]:
    path = Path("/etc/ssl/certs/ca-certificates.crt")
    return {str(path): path} if path.exists() else {}
