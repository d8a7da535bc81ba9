"""PDFs of the shipped templates, in any standard, compacted or not, as e-invoices or not."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from documents import TEMPLATES, event, message, record, sample
from local_example import run_local

XML = (TEMPLATES / "invoice/files/factur-x.xml").read_bytes()
NAMES = ["invoice", "report", "statement"]


@dataclass(frozen=True)
class Invoice:
    """The XML of an e-invoice, and how a template attaches it."""

    xml: bytes = XML
    # As the manifest and the message say it.
    name: str = "factur-x.xml"
    attached_as: str | None = None
    relationship: str = "alternative"
    media_type: str = "text/xml"


class NotRenderedError(Exception):
    """pressrun refuses the template, or the document."""


@cache
def rendered(template: str, *standards: str, compact: bool = True, invoice: Invoice | None = None) -> bytes:
    """The PDF of the template's sample, as a message asks for it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        templates = folder / "templates"
        for part in ["fonts", "packages", template]:
            shutil.copytree(TEMPLATES / part, templates / part)
        section = f"[tool.pressrun]\nstandards = {json.dumps(standards)}\ncompact = {json.dumps(compact)}\n"
        files = {}
        if invoice:
            section += f"e-invoice = {json.dumps(invoice.name)}\n"
            attach(templates / template, invoice)
            (folder / "in").mkdir()
            (folder / "in/invoice.xml").write_bytes(invoice.xml)
            files = {invoice.name: "invoice.xml"}
        manifest = templates / template / "typst.toml"
        manifest.write_text(manifest.read_text().replace("[tool.pressrun]\n", section))
        body = message(template, sample(template), key="a.pdf", files=files)
        (folder / "event.json").write_text(json.dumps(event(record("m-1", body))))
        ran = run_local("event.json", folder=folder, templates=templates)
        if ran.returncode != 0:
            raise NotRenderedError(ran.stderr)
        return (folder / "out/a.pdf").read_bytes()


def attach(template: Path, invoice: Invoice) -> None:
    """Puts the sample's XML into a template, and has the template attach it unless it does that by itself."""
    (template / "files").mkdir(exist_ok=True)
    (template / "files" / invoice.name).write_bytes(invoice.xml)
    if template.name == "invoice" and invoice == Invoice():
        return
    call = (
        f'pdf.attach("{invoice.attached_as or invoice.name}", read("/files/{invoice.name}", encoding: none), '
        f'mime-type: "{invoice.media_type}", relationship: "{invoice.relationship}", description: "The invoice")\n'
    )
    main = template / "main.typ"
    main.write_text(f"{main.read_text()}\n#{call}")
