"""The words of each template in each language, as they were when somebody last looked at them."""

import json
from pathlib import Path

import pytest

from documents import TEMPLATES, sample
from printed import printed

SNAPSHOTS = Path(__file__).parent / "snapshots"
LANGUAGES = list(json.loads((TEMPLATES / "packages/local/languages/1.0.0/languages.json").read_text()))


def in_language(template: str, language: str) -> dict:
    data = sample(template)
    if template == "invoice":
        data["doc"]["lang"] = language
    elif template == "statement":
        data["language"] = language
    return data


CASES = [(template, language) for template in ["invoice", "statement"] for language in LANGUAGES] + [("report", "en")]


@pytest.mark.parametrize(("template", "language"), CASES)
def test_the_words_are_those_that_were_looked_at(
    template: str, language: str, tmp_path: Path, pytestconfig: pytest.Config
):
    said = printed(template, json.dumps(in_language(template, language)), tmp_path)
    snapshot = SNAPSHOTS / f"{template}.{language}.txt"
    if pytestconfig.getoption("--update-snapshots"):
        SNAPSHOTS.mkdir(exist_ok=True)
        snapshot.write_text(said)
    known = snapshot.read_text() if snapshot.exists() else ""
    # Versions of pdftotext differ in what they take for one line.
    assert sorted(said.split()) == sorted(known.split()), (
        "if the new words are right: tests/e2e/run --update-snapshots -k wording, and look at the diff"
    )


def test_no_snapshot_is_left_over():
    assert sorted(path.name for path in SNAPSHOTS.iterdir()) == sorted(
        f"{name}.{language}.txt" for name, language in CASES
    )
