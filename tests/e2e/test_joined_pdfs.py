"""Joined PDFs as others see them: a document whose parts begin where pages begin equals the undivided one."""

import io
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pikepdf
import pymupdf
import pypdfium2
import pytest
import typst

from local_example import target_directory
from test_finished_pdfs import seen_by_pikepdf, seen_by_pypdf
from validators import PROFILES, rules_broken

SECTIONS = Path(__file__).with_name("sections.typ")
PARTS = 3
# Every standard that the sections of a template may ask for, and versions.
STANDARDS = ["1.4", "1.7", "2.0", "a-4", *PROFILES]
STANDARD = pytest.mark.parametrize("standard", STANDARDS)
FORM = pytest.mark.parametrize("form", ["compacted", "plain"])


def compiled(standard: str, first: int, count: int) -> bytes:
    """The sections of a document from one on."""
    inputs = {"first": str(first), "count": str(count)}
    return typst.compile(str(SECTIONS), format="pdf", sys_inputs=inputs, pdf_standards=[standard])


@cache
def undivided(standard: str) -> bytes:
    return compiled(standard, 0, PARTS)


@cache
def joined(standard: str, form: str, folder: Path) -> bytes:
    """The same, in as many parts as it has sections."""
    parts = [folder / f"{standard}-{part}.pdf" for part in range(PARTS)]
    for part, path in enumerate(parts):
        path.write_bytes(compiled(standard, part, 1))
    out = folder / f"{standard}.{form}.pdf"
    subprocess.run([target_directory() / "debug/examples/join", out, *parts], check=True, capture_output=True)
    return out.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("joined")


def said_of(pdf: bytes, *command: str, folder: Path) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}; tests/e2e/install-pdf-tools installs it")
    (folder / "document.pdf").write_bytes(pdf)
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@FORM
@pytest.mark.parametrize("standard", PROFILES)
def test_a_joined_file_conforms_to_every_standard_that_has_a_validator(standard: str, form: str, folder: Path):
    assert rules_broken(joined(standard, form, folder), standard) == []


@FORM
@STANDARD
def test_qpdf_finds_nothing_wrong(standard: str, form: str, folder: Path):
    said = said_of(joined(standard, form, folder), "qpdf", "--check", "document.pdf", folder=folder)
    assert "No syntax or stream encoding errors found" in said


@STANDARD
@pytest.mark.parametrize(
    "command",
    [("pdfinfo", "-struct-text"), ("pdftotext", "-layout"), ("pdfinfo", "-dests"), ("pdfinfo", "-url")],
    ids=lambda command: "".join(command),
)
def test_poppler_says_the_same_of_the_undivided_document(standard: str, command: tuple[str, str], folder: Path):
    output = ["-"] if command[0] == "pdftotext" else []
    whole, parts = (
        said_of(pdf, *command, "document.pdf", *output, folder=folder)
        for pdf in [undivided(standard), joined(standard, "compacted", folder)]
    )
    assert without_numbers(parts) == without_numbers(whole)


def without_numbers(said: str) -> str:
    """What is said of tags, without the numbers of objects and those in identifiers, which are others."""
    said = re.sub(r"Object \d+ 0", "Object", said)
    return re.sub(r"(\d{4}\.)?(U|Note )\d+", r"\2", said)


def seen_by_mupdf(pdf: bytes) -> object:
    with pymupdf.open(stream=pdf, filetype="pdf") as document:
        links = [
            [(link["kind"], link.get("uri"), link.get("page"), str(link.get("to"))) for link in each.get_links()]
            for each in document
        ]
        outline = [
            (level, title, page, str(where.get("to"))) for level, title, page, where in document.get_toc(simple=False)
        ]
        labels = [each.get_label() for each in document]
        names = sorted(document.resolve_names().items(), key=str)
        return (
            [each.get_text() for each in document],
            links,
            outline,
            labels,
            names,
            document.language,
            document.metadata,
        )


def seen_by_pdfium(pdf: bytes) -> object:
    with pypdfium2.PdfDocument(pdf) as document:
        pixels = [document[index].render().to_numpy().tobytes() for index in range(len(document))]
        outline = [(item.level, item.get_title(), item.get_dest().get_index()) for item in document.get_toc()]
        return pixels, outline, [document.get_page_label(index) for index in range(len(document))]


@STANDARD
@pytest.mark.parametrize("reader", [seen_by_mupdf, seen_by_pdfium], ids=lambda reader: reader.__name__)
def test_a_reader_sees_the_same_as_in_the_undivided_document(standard: str, reader, folder: Path):
    whole = reader(undivided(standard))
    assert all(whole[0])
    assert reader(joined(standard, "compacted", folder)) == whole


@STANDARD
def test_strict_readers_find_all_tags_and_links(standard: str, folder: Path):
    whole, parts = undivided(standard), joined(standard, "compacted", folder)
    assert seen_by_pikepdf(parts)[1] == seen_by_pikepdf(whole)[1]
    assert seen_by_pypdf(parts)[:2] == seen_by_pypdf(whole)[:2]


@STANDARD
def test_a_joined_file_has_one_of_what_a_document_has_one_of(standard: str, folder: Path):
    with pikepdf.open(io.BytesIO(joined(standard, "compacted", folder))) as pdf:
        kinds = [
            str(each.get("/Type")) for each in pdf.objects if isinstance(each, pikepdf.Dictionary | pikepdf.Stream)
        ]
        assert [kinds.count(kind) for kind in ["/Catalog", "/Metadata", "/StructTreeRoot", "/Outlines"]] == [1] * 4
        assert len(pdf.pages) == PARTS * 3
