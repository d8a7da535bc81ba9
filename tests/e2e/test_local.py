"""The local example, as somebody uses it who writes a template."""

import io
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pypdf
import pytest

from documents import message, record
from local_example import run_local, target_directory

READS = '#let data = json(sys.inputs.at("data", default: "/sample.json"))\n#data.text\n'


def pages(pdf: bytes) -> list[str]:
    return [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the template `note`, an ordinary Typst project, and one that is half done."""
    for name, main in {"note": READS, "half": "#nothing"}.items():
        (tmp_path / "templates" / name).mkdir(parents=True)
        (tmp_path / "templates" / name / "main.typ").write_text(main)
        (tmp_path / "templates" / name / "sample.json").write_text('{"text": "sample"}')
    return tmp_path


def of_note(key: str, number: int) -> dict:
    return record(f"m-{number}", message("note", {"text": f"number {number}"}, key=key))


def test_every_key_has_a_file_of_its_own_and_is_named(folder: Path):
    keys = ["a.pdf", "a.pdf/b.pdf", "c//d.pdf", "c/./d.pdf", "c/d.pdf", f"{'é' * 152}/e.pdf", f"{'é' * 153}/e.pdf"]
    event = {"Records": [of_note(key, number) for number, key in enumerate(keys)]}
    (folder / "event.json").write_text(json.dumps(event))
    for _ in range(2):
        ran = run_local("event.json", folder=folder)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        paths = [line.split(" ms  ")[1] for line in ran.stdout.splitlines() if line.startswith("stored ")]
        assert len(set(paths)) == len(keys)
        printed = {pages((folder / path).read_bytes())[0].strip() for path in paths}
        assert printed == {f"number {number}" for number in range(len(keys))}


def test_data_come_from_files_with_a_byte_order_mark_from_folders_and_from_standard_input(folder: Path):
    (folder / "data").mkdir()
    (folder / "data/one.json").write_bytes(b'\xef\xbb\xbf{"text": "one"}')
    (folder / "data/two.json").write_text('{"text": "two"}')
    (folder / "data/notes.txt").write_text("no data")
    (folder / "other").mkdir()
    (folder / "other/one.json").write_text('{"text": "another one"}')
    (folder / "broken.json").write_text("{")
    command = [target_directory() / "debug/examples/local", "--template", "note"]
    arguments = ["data", "other/one.json", "broken.json", "missing.json", "-"]
    ran = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={},
        input='{"text": "typed"}',
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, "two of them are no data"
    assert "broken.json is not JSON" in ran.stderr and "missing.json: " in ran.stderr
    out = folder / "out/note"
    printed = {path.name: pages(path.read_bytes())[0].strip() for path in out.iterdir()}
    assert printed == {"one.pdf": "one", "two.pdf": "two", "one-2.pdf": "another one", "stdin.pdf": "typed"}


def test_a_half_done_template_blocks_only_itself(folder: Path):
    (folder / "data.json").write_text('{"text": "x"}')
    assert run_local("--template", "note", "data.json", folder=folder).returncode == 0
    blocked = run_local("--template", "half", "data.json", folder=folder)
    assert blocked.returncode == 2 and "half/main.typ:1:1" in blocked.stderr
    checked = run_local("check", folder=folder)
    assert checked.returncode == 1 and "half/main.typ:1:1" in checked.stdout


def test_without_a_viewer_it_says_so(folder: Path):
    (folder / "data.json").write_text('{"text": "x"}')
    ran = run_local("--open", "--template", "note", "data.json", folder=folder)
    assert ran.returncode == 0 and "out/note/data.pdf is not opened: " in ran.stdout


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_document_is_rendered_again_at_each_change(folder: Path):
    (folder / "data.json").write_text('{"text": "first"}')
    pdf = folder / "out/note/data.pdf"
    log = folder / "log"

    def shows(text: str) -> bool:
        return pdf.exists() and pages(pdf.read_bytes())[0].strip() == text

    with log.open("w") as said:
        command = [target_directory() / "debug/examples/local", "watch", "note", "data.json"]
        watching = subprocess.Popen(command, cwd=folder, env={}, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    try:
        until(lambda: shows("first"))
        # As editors save: a new file takes the place of the old one.
        (folder / "new").write_text('{"text": "second"}')
        os.replace(folder / "new", folder / "data.json")
        until(lambda: shows("second"))
        main = folder / "templates/note/main.typ"
        main.write_text(READS + "#panic(data.text)")
        until(lambda: "note/main.typ:3:1" in log.read_text())
        assert "panicked with: <value of /text>" in log.read_text().replace('"', "") and shows("second")
        main.write_text(READS + "and more")
        until(lambda: shows("second and more"))
        count = log.read_text().count(" ms  ")
        time.sleep(1)
        assert log.read_text().count(" ms  ") == count, "it renders without a change"
    finally:
        watching.kill()
        watching.wait()
