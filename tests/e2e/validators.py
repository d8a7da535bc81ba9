"""What validators say of a PDF."""

import page

# What Typst and page-validation both know, under the validator's names. PDF/A-4 has no validator here.
PROFILES = {
    "a-1b": "1b",
    "a-1a": "1a",
    "a-2b": "2b",
    "a-2u": "2u",
    "a-2a": "2a",
    "a-3b": "3b",
    "a-3u": "3u",
    "a-3a": "3a",
    "ua-1": "ua1",
}


def rules_broken(pdf: bytes, *standards: str) -> list[str]:
    """The rules of the standards that the PDF breaks."""
    reports = [page.validate_pdf_bytes(pdf, profile=PROFILES[standard]) for standard in standards]
    return [f"{failure.rule_id}: {failure.message}" for report in reports for failure in report.failures]
