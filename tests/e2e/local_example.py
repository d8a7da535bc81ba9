"""The local example, which tests/e2e/run has built."""

import json
import subprocess
from functools import cache
from pathlib import Path

from documents import REPOSITORY


@cache
def target_directory() -> Path:
    """Cargo's."""
    metadata = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
    said = subprocess.run(metadata, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return Path(json.loads(said)["target_directory"])


def run_local(*arguments: str | Path, folder: Path, templates: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it in a folder, which is where it looks for in/ and leaves out/."""
    environment = {"TEMPLATES_DIR": str(templates)} if templates else {}
    command = [target_directory() / "debug/examples/local", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
