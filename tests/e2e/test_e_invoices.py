"""Factur-X and ZUGFeRD as others see them: the validators of PDF/A, the XSDs, and EN 16931's own rules."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import facturx
import pytest

from documents import REPOSITORY, TEMPLATES
from local_example import target_directory
from pdf_maker import NAMES, XML, Invoice, NotRenderedError, rendered
from validators import rules_broken

SCHEMATRONS = Path(facturx.__file__).parent / "xsd_and_schematron"
EN_16931 = b"urn:cen.eu:en16931:2017"
STANDARDS = [("a-3b",), ("a-3u",), ("a-3a",), ("a-3a", "ua-1")]
LEVELS = {
    "MINIMUM": ("urn:factur-x.eu:1p0:minimum", "data"),
    "BASIC WL": ("urn:factur-x.eu:1p0:basicwl", "data"),
    "BASIC": ("urn:cen.eu:en16931:2017#compliant#urn:factur-x.eu:1p0:basic", "alternative"),
    "EN 16931": ("urn:cen.eu:en16931:2017", "source"),
    "EXTENDED": ("urn:cen.eu:en16931:2017#conformant#urn:factur-x.eu:1p0:extended", "alternative"),
    "XRECHNUNG": ("urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0", "alternative"),
}
COMPACT = pytest.mark.parametrize("compact", [True, False], ids=["compacted", "plain"])


def e_invoice(*standards: str, template: str = "invoice", compact: bool = True, invoice: Invoice | None = None):
    return rendered(template, *(standards or ("a-3b",)), compact=compact, invoice=invoice or Invoice())


def with_guideline(guideline: str) -> bytes:
    return XML.replace(b">" + EN_16931 + b"<", f">{guideline}<".encode())


@COMPACT
@pytest.mark.parametrize("standards", STANDARDS, ids="+".join)
@pytest.mark.parametrize("template", NAMES)
def test_an_e_invoice_conforms_to_its_standards(template: str, standards: tuple[str, ...], compact: bool):
    assert rules_broken(e_invoice(*standards, template=template, compact=compact), *standards) == []


@COMPACT
def test_the_xml_comes_out_as_it_went_in(compact: bool):
    name, xml = facturx.get_xml_from_pdf(e_invoice(compact=compact), check_xsd=True, check_schematron=False)
    assert (name, xml) == ("factur-x.xml", XML)


@pytest.mark.parametrize("level", LEVELS)
def test_the_metadata_says_which_level_it_is(level: str):
    guideline, relationship = LEVELS[level]
    name = "xrechnung.xml" if level == "XRECHNUNG" else "factur-x.xml"
    invoice = Invoice(with_guideline(guideline), name, relationship=relationship)
    pdf = e_invoice(template="statement", invoice=invoice)
    assert rules_broken(pdf, "a-3b") == []
    properties = dict(re.findall(rb"<fx:(\w+)>([^<]*)</fx:\1>", pdf))
    assert properties == {
        b"ConformanceLevel": level.encode(),
        b"DocumentFileName": name.encode(),
        b"DocumentType": b"INVOICE",
        b"Version": b"3.0" if level == "XRECHNUNG" else b"1.0",
    }


def blanked(pdf: bytes, pattern: bytes) -> bytes:
    """The PDF with spaces instead of what the pattern finds, so that all offsets stay right."""
    damaged, count = re.subn(pattern, lambda found: b" " * len(found[0]), pdf)
    assert count == 1
    return damaged


@COMPACT
def test_the_validator_finds_a_missing_extension_schema(compact: bool):
    schema = rb"<rdf:li rdf:parseType=\"Resource\"><pdfaSchema:schema>Factur-X.*?</pdfaSchema:property></rdf:li>"
    assert rules_broken(blanked(e_invoice(compact=compact), schema), "a-3b")


@COMPACT
def test_the_validator_finds_a_misspelt_property(compact: bool):
    pdf = e_invoice(compact=compact)
    misspelt = pdf.replace(b"fx:ConformanceLevel>", b"fx:ConformanceLevle>")
    assert misspelt != pdf
    assert rules_broken(misspelt, "a-3b")


def broken_business_rules(xml: Path) -> list[str]:
    """The rules of EN 16931 that the XML breaks. In a process of its own, for Saxon aborts after a fork."""
    program = Path(__file__).parent / "schematron.py"
    stylesheet = SCHEMATRONS / "facturx-en16931/FACTUR-X_EN16931.xslt"
    ran = subprocess.run([sys.executable, program, stylesheet, xml], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.parametrize("fault", [False, True], ids=["good", "with a wrong total"])
def test_the_business_rules_find_the_same_before_and_after(fault: bool, tmp_path: Path):
    total = b"<ram:DuePayableAmount>3791.25<"
    assert total in XML
    xml = XML.replace(total, b"<ram:DuePayableAmount>1.00<") if fault else XML
    pdf = e_invoice(template="statement", invoice=Invoice(xml))
    _, after = facturx.get_xml_from_pdf(pdf, check_xsd=True, check_schematron=False)
    (tmp_path / "before.xml").write_bytes(xml)
    (tmp_path / "after.xml").write_bytes(after)
    broken = broken_business_rules(tmp_path / "before.xml")
    assert broken == broken_business_rules(tmp_path / "after.xml")
    assert bool(broken) == fault


REFUSED = {
    "not attached": (Invoice(attached_as="invoice.xml"), "is not attached"),
    "wrong relationship": (Invoice(relationship="supplement"), "relationship"),
    "data is for MINIMUM and BASIC WL": (Invoice(relationship="data"), "relationship"),
    "no media type": (Invoice(media_type="application/xml"), "mime-type"),
    "no XML": (Invoice(b"{}"), "not well-formed"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_template_that_makes_no_valid_one_does_not_start(fault: str):
    invoice, said = REFUSED[fault]
    with pytest.raises(NotRenderedError, match=said):
        e_invoice(template="statement", invoice=invoice)


def test_another_standard_is_refused():
    with pytest.raises(NotRenderedError, match=r"an e-invoice is a PDF/A-3"):
        e_invoice("2.0")


def test_the_docs_lead_to_a_valid_one(tmp_path: Path):
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    docs = (REPOSITORY / "docs/e-invoices.md").read_text()
    script = re.search(r"^```sh\n(.*?)^```", docs, re.MULTILINE | re.DOTALL)[1]
    local = str(target_directory() / "debug/examples/local")
    script = script.replace("cargo run --example local --", local)
    ran = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^ok +invoice .* a-3b, e-invoice: EN 16931$", ran.stdout, re.MULTILINE), ran.stdout
    assert rules_broken((tmp_path / "out/invoice/sample.pdf").read_bytes(), "a-3b") == []
