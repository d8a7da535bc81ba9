"""What a document says once it is printed, as pdftotext reads it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import typst

from documents import TEMPLATES


def printed(template: str, data: str, folder: Path, **settings: str) -> str:
    """The words of a document line by line, one space between them; settings go below [tool.NAME] of typst.toml."""
    if shutil.which("pdftotext") is None:
        pytest.skip("there is no pdftotext; tests/e2e/install-pdf-tools installs it")
    copy = folder / template
    shutil.copytree(TEMPLATES / template, copy, dirs_exist_ok=True)
    (copy / "data.json").write_text(data)
    if settings:
        manifest = copy / "typst.toml"
        lines = "".join(f'{name} = "{value}"\n' for name, value in settings.items())
        section = f"[tool.{template}]\n"
        manifest.write_text((TEMPLATES / template / "typst.toml").read_text().replace(section, section + lines))
    pdf = typst.compile(
        str(copy / "main.typ"),
        root=str(copy),
        font_paths=[str(TEMPLATES / "fonts")],
        ignore_system_fonts=True,
        package_path=str(TEMPLATES / "packages"),
        sys_inputs={"data": "data.json"},
    )
    command = ["pdftotext", "-layout", "-enc", "UTF-8", "-", "-"]
    text = subprocess.run(command, input=pdf, capture_output=True, check=True).stdout.decode()
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)
