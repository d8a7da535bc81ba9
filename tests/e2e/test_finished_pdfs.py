"""Finished PDFs as others see them: validators, signatures, and the readers that people use."""

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pikepdf
import pymupdf
import pypdf
import pypdfium2
import pytest
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from pyhanko.pdf_utils.reader import PdfFileReader
from pyhanko.sign import fields, signers
from pyhanko.sign.validation import validate_pdf_signature

import certificates
from pdf_maker import NAMES, Invoice, rendered
from validators import PROFILES, rules_broken

# The share of a sample's bytes that may be left.
MOST_OF_IT = {"invoice": 0.52, "statement": 0.52, "report": 0.65}
E_INVOICE = "e-invoice"
COMPACT = pytest.mark.parametrize("compact", [True, False], ids=["compacted", "plain"])
TEMPLATE = pytest.mark.parametrize("template", NAMES)


@COMPACT
@pytest.mark.parametrize("standard", PROFILES)
@TEMPLATE
def test_a_template_conforms_to_every_standard_that_has_a_validator(template: str, standard: str, compact: bool):
    assert rules_broken(rendered(template, standard, compact=compact), standard) == []


def test_the_validator_sees_what_conforms_to_no_standard():
    pdf = rendered("invoice", "1.7")
    assert all(rules_broken(pdf, standard) for standard in PROFILES if standard != "ua-1")


@pytest.mark.parametrize("standard", ["1.4", "a-1b", "a-1a"])
def test_a_version_without_object_streams_is_not_compacted(standard: str):
    pdf = rendered("invoice", standard)
    assert pdf == rendered("invoice", standard, compact=False)
    assert pdf.endswith(b"\n%%EOF\n")


@TEMPLATE
def test_a_sample_has_half_the_bytes(template: str):
    plain, compacted = rendered(template, compact=False), rendered(template)
    print(f"{template}: {len(compacted)} of {len(plain)} bytes, {len(compacted) / len(plain):.3f}")
    assert len(compacted) <= MOST_OF_IT[template] * len(plain)


def of_kind(template: str, kind: str, *, compact: bool = True) -> bytes:
    """The PDF of a standard, or of an e-invoice."""
    if kind == E_INVOICE:
        return rendered(template, "a-3b", compact=compact, invoice=Invoice())
    return rendered(template, kind, compact=compact)


def said_of(pdf: bytes, *command: str, folder: Path) -> str:
    (folder / "document.pdf").write_bytes(pdf)
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("qpdf", "--check", "document.pdf"),
        ("pdftotext", "-layout", "document.pdf", "-"),
        ("pdfinfo", "-struct-text", "document.pdf"),
        ("pdfdetach", "-list", "document.pdf"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("kind", ["1.5", "1.7", "2.0", "a-3a", "a-4", E_INVOICE])
@TEMPLATE
def test_a_tool_says_the_same_of_a_pdf_compacted_or_not(
    template: str, kind: str, command: tuple[str, ...], tmp_path: Path
):
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}; tests/e2e/install-pdf-tools installs it")
    plain, compacted = of_kind(template, kind, compact=False), of_kind(template, kind)
    assert said_of(plain, *command, folder=tmp_path) == said_of(compacted, *command, folder=tmp_path)


def seen_by_pdfium(pdf: bytes) -> object:
    """What Chrome shows."""
    with pypdfium2.PdfDocument(pdf) as document:
        pages = [document[index] for index in range(len(document))]
        texts = [each.get_textpage().get_text_range() for each in pages]
        pixels = [each.render().to_numpy().tobytes() for each in pages]
        names = [document.get_attachment(index).get_name() for index in range(document.count_attachments())]
        return texts, pixels, names, [item.get_title() for item in document.get_toc()]


def seen_by_mupdf(pdf: bytes) -> object:
    with pymupdf.open(stream=pdf, filetype="pdf") as document:
        links = [[(link["kind"], link.get("uri"), link.get("page")) for link in each.get_links()] for each in document]
        return [each.get_text() for each in document], links, document.embfile_names(), document.get_toc()


def seen_by_pypdf(pdf: bytes) -> object:
    reader = pypdf.PdfReader(io.BytesIO(pdf), strict=True)
    links = [len(each.get("/Annots", [])) for each in reader.pages]
    metadata = reader.xmp_metadata.stream.get_data()
    return [each.extract_text() for each in reader.pages], links, dict(reader.attachments), metadata


def seen_by_pikepdf(pdf: bytes) -> object:
    with pikepdf.open(io.BytesIO(pdf)) as document:
        assert document.check_pdf_syntax() == []
        pages = [each.Contents.read_bytes() for each in document.pages]
        tags = count_tags(document.Root.get("/StructTreeRoot"))
        return pages, tags, {name: spec.get_file().read_bytes() for name, spec in document.attachments.items()}


def count_tags(root: pikepdf.Object | None) -> int:
    """The elements of the structure tree."""
    waiting, count = [root] if root is not None else [], 0
    while waiting:
        element = waiting.pop()
        count += 1
        kids = element.get("/K", [])
        kids = kids if isinstance(kids, pikepdf.Array) else [kids]
        waiting += [kid for kid in kids if isinstance(kid, pikepdf.Dictionary) and "/S" in kid]
    return count


READERS = [seen_by_pdfium, seen_by_mupdf, seen_by_pypdf, seen_by_pikepdf]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("kind", ["1.7", "2.0", "a-3a", E_INVOICE])
@TEMPLATE
def test_a_reader_sees_the_same_in_a_pdf_compacted_or_not(template: str, kind: str, reader: Callable[[bytes], object]):
    seen = reader(of_kind(template, kind, compact=False))
    assert seen == reader(of_kind(template, kind))
    assert all(seen[0])
    assert ("factur-x.xml" in repr(seen)) == (kind == E_INVOICE)


@COMPACT
def test_a_finished_pdf_can_be_signed(compact: bool, tmp_path: Path):
    pdf = rendered("invoice", "a-3b", compact=compact)
    signer, trust = certificates.signer_and_trust(tmp_path)
    writer = IncrementalPdfFileWriter(io.BytesIO(pdf))
    fields.append_signature_field(writer, fields.SigFieldSpec("Signature"))
    signed = signers.sign_pdf(writer, signers.PdfSignatureMetadata(field_name="Signature"), signer=signer)
    assert signed.getvalue().startswith(pdf)
    reader = PdfFileReader(io.BytesIO(signed.getvalue()))
    status = validate_pdf_signature(reader.embedded_signatures[0], trust)
    assert status.bottom_line, status.pretty_print_details()
    assert status.coverage.name == "ENTIRE_FILE"
