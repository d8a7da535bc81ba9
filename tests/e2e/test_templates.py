"""Templates as their users meet them: previewed by plain Typst, read by validators, filled with odd text."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pikepdf
import pymupdf
import pypdf
import pytest
import typst

from documents import TEMPLATES, statement
from validators import rules_broken

NAMES = ["invoice", "report", "statement"]
# Where a word of any letters may break: a space without width.
BREAK = "\u200b"


@pytest.fixture(scope="session")
def local(target: Path) -> Path:
    """The local example; tests/e2e/run has built it."""
    return target / "debug/examples/local"


def render_locally(local: Path, folder: Path, template: str, data: str, templates: Path = TEMPLATES) -> bytes:
    (folder / "data.json").write_text(data)
    arguments = [local, "--template", template, "data.json"]
    environment = {"TEMPLATES_DIR": str(templates)}
    ran = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return (folder / f"out/{template}/data.pdf").read_bytes()


def render_by_plain_typst(template: str) -> bytes:
    """As the preview in docs/templates.md does."""
    return typst.compile(
        str(TEMPLATES / template / "main.typ"),
        font_paths=[str(TEMPLATES / "fonts")],
        ignore_system_fonts=True,
        package_path=str(TEMPLATES / "packages"),
    )


def pages(pdf: bytes) -> list[str]:
    return [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages]


def sample(template: str) -> str:
    return (TEMPLATES / template / "sample.json").read_text()


@pytest.mark.parametrize("template", NAMES)
def test_the_preview_shows_what_pressrun_renders(local: Path, tmp_path: Path, template: str):
    ours = pages(render_locally(local, tmp_path, template, sample(template)))
    assert ours == pages(render_by_plain_typst(template))
    assert all(ours)


def with_manifest(folder: Path, template: str, standards: list[str], extra: str = "") -> Path:
    """A copy of the templates in which one conforms to these standards."""
    copy = folder / "templates"
    shutil.copytree(TEMPLATES, copy)
    manifest = copy / template / "typst.toml"
    text = manifest.read_text()
    section = f"[tool.pressrun]\nstandards = {json.dumps(standards)}\n"
    manifest.write_text(text.replace("[tool.pressrun]\n", section) + extra)
    return copy


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.parametrize("standards", [["a-4"], ["2.0"]])
def test_what_no_validator_here_knows_is_at_least_whole(
    local: Path, tmp_path: Path, template: str, standards: list[str]
):
    templates = with_manifest(tmp_path, template, standards)
    pdf = render_locally(local, tmp_path, template, sample(template), templates)
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        assert opened.check_pdf_syntax() == []
        if standards != ["2.0"]:
            assert opened.Root.Lang and opened.Root.MarkInfo.Marked


def test_an_invoice_can_carry_its_data(local: Path, tmp_path: Path):
    templates = with_manifest(tmp_path, "invoice", ["a-3b"])
    manifest = templates / "invoice/typst.toml"
    manifest.write_text(manifest.read_text().replace("attach-data = false", "attach-data = true"))
    pdf = render_locally(local, tmp_path, "invoice", sample("invoice"), templates)
    attached = pypdf.PdfReader(io.BytesIO(pdf)).attachments
    assert json.loads(attached["invoice.json"][0]) == json.loads(sample("invoice"))
    assert rules_broken(pdf, "a-3b") == []


def invoice_of(lines: int) -> str:
    data = json.loads(sample("invoice"))
    few = data["doc"]["lines"]
    data["doc"]["lines"] = [few[index % len(few)] | {"i": index + 1} for index in range(lines)]
    return json.dumps(data)


def page_numbers(pdf: bytes) -> list[str]:
    return re.findall(r"\d+–\d+|Page \d+ of \d+", "".join(pages(pdf)))


def in_small_parts(local: Path, folder: Path, template: str, count: int, standards: list[str], totals: str) -> bytes:
    """An invoice of so many lines, of which a part has 40, or a statement of so many rows, of which it has 60."""
    templates = with_manifest(folder, template, standards)
    manifest = templates / template / "typst.toml"
    size = {"invoice": 40, "statement": 60}[template]
    text, changed = re.subn(r"(?<=, size = )\d+", str(size), manifest.read_text())
    assert changed == 1
    manifest.write_text(text.replace("page-totals = false", f"page-totals = {totals}"))
    data = invoice_of(count) if template == "invoice" else json.dumps(statement(count))
    return render_locally(local, folder, template, data, templates)


@pytest.mark.parametrize(
    ("template", "totals", "count", "expected"),
    [
        ("invoice", "false", 40, ["Page 1 of 3", "Page 2 of 3", "Page 3 of 3"]),
        ("invoice", "false", 60, ["1–1", "1–2", "1–3", "2–1", "2–2"]),
        ("invoice", "true", 60, [f"Page {number} of 5" for number in range(1, 6)]),
        ("statement", "false", 60, ["Page 1 of 2", "Page 2 of 2"]),
        ("statement", "false", 130, ["1–1", "1–2", "2–1", "2–2", "3–1"]),
        ("statement", "true", 130, [f"Page {number} of 5" for number in range(1, 6)]),
    ],
)
def test_pages_of_a_document_in_parts_have_numbers(
    local: Path, tmp_path: Path, template: str, totals: str, count: int, expected: list[str]
):
    assert page_numbers(in_small_parts(local, tmp_path, template, count, [], totals)) == expected


@pytest.mark.parametrize(("template", "count"), [("invoice", 90), ("statement", 150)])
def test_a_document_in_parts_conforms_to_what_it_promises(local: Path, tmp_path: Path, template: str, count: int):
    pdf = in_small_parts(local, tmp_path, template, count, ["a-3a", "ua-1"], "false")
    assert page_numbers(pdf)[-1].startswith("3–")
    assert rules_broken(pdf, "a-3a", "ua-1") == []


def test_words_of_a_statement_stay_in_their_columns(local: Path, tmp_path: Path):
    """Whole where a line has room for them, and in pieces where none has."""
    data = json.loads(sample("statement"))
    data["entries"][1] |= {"description": "W" * 300, "reference": "%" * 70}
    data["entries"][3] |= {"description": "Payment", "reference": "RF 475PX00148231"}
    pdf = render_locally(local, tmp_path, "statement", json.dumps(data))
    with pymupdf.open(stream=pdf) as document:
        words = [(left, right, word) for left, _, right, _, word, *_ in document[0].get_text("words")]
    starts = {word: left for left, _, word in words if word in ["Description", "Reference", "Amount"]}
    for letter, count, first, after in [("W", 300, "Description", "Reference"), ("%", 70, "Reference", "Amount")]:
        lines = [(left, right, word) for left, right, word in words if set(word.replace(BREAK, "")) == {letter}]
        assert sum(word.count(letter) for *_, word in lines) == count
        assert all(starts[first] - 1 < left and right < starts[after] for left, right, _ in lines)
    assert "475PX00148231" in [word for *_, word in words]


# What would do something if it were ever read as Typst, a path or a direction.
ODD_TEXTS = [
    "#panic()",
    "$x$",
    "@label <label>",
    "../../etc/passwd",
    "*bold* _it_ `raw`",
    "= Heading",
    '#include "data.json"',
    "https://example.org/?a=b",
    "-- --- ... ~ \\ 'q'",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_what_looks_like_code_is_printed_as_text(local: Path, tmp_path: Path, text: str):
    data = json.loads(sample("invoice"))
    data["doc"]["lines"][0]["item"]["name"] = text
    (page,) = pages(render_locally(local, tmp_path, "invoice", json.dumps(data)))
    assert text in page


def test_an_override_of_direction_is_not_printed(local: Path, tmp_path: Path):
    data = json.loads(sample("invoice"))
    data["doc"]["lines"][0]["item"]["name"] = "before \u202eafter"
    (page,) = pages(render_locally(local, tmp_path, "invoice", json.dumps(data)))
    assert "before" in page


def test_a_new_template_works_and_is_checked(local: Path, tmp_path: Path):
    (tmp_path / "templates").mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([local, *arguments], cwd=tmp_path, env={}, capture_output=True, text=True, check=False)

    assert run("new", "letter").returncode == 0
    checked = run("check")
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"^ok +letter +1 +\d+\.\d", checked.stdout, re.MULTILINE)
    assert "is there already" in run("new", "letter").stderr
    assert "cannot be a template's name" in run("new", "../letter").stderr

    main = tmp_path / "templates/letter/main.typ"
    main.write_text(main.read_text().replace("data.title", "data.titel"))
    checked = run("check")
    assert checked.returncode == 1
    assert re.search(r"^error +letter", checked.stdout, re.MULTILINE)
    assert "letter/main.typ:8:8" in checked.stdout and "titel" in checked.stdout


def test_files_of_messages_are_read_from_folders(local: Path, tmp_path: Path):
    (tmp_path / "templates").mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([local, *arguments], cwd=tmp_path, env={}, capture_output=True, text=True, check=False)

    run("new", "letter")
    folder = tmp_path / "templates/letter"
    with (folder / "main.typ").open("a") as main:
        main.write('#read("/files/name.txt")\n')
    (folder / "files").mkdir()
    (folder / "files/name.txt").write_text("of the sample")
    (tmp_path / "in/customers").mkdir(parents=True)
    (tmp_path / "in/customers/42.txt").write_text("of the customer")
    data = json.loads((folder / "sample.json").read_text())
    message = {"template": "letter", "data": data, "key": "letter/42.pdf", "files": {"name.txt": "customers/42.txt"}}
    record = {"messageId": "m-1", "body": json.dumps(message)}
    (tmp_path / "event.json").write_text(json.dumps({"Records": [record]}))
    ran = run("--template", "letter", "templates/letter/sample.json")
    assert ran.returncode == 0, ran.stderr
    ran = run("event.json")
    assert ran.returncode == 0, ran.stderr
    assert "of the sample" in pages((tmp_path / "out/letter/sample.pdf").read_bytes())[0]
    assert "of the customer" in pages((tmp_path / "out/letter/42.pdf").read_bytes())[0]
