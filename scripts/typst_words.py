#!/usr/bin/env python3
"""Writes src/render/typst_words.txt: the words that Typst's own diagnostics are made of.

A diagnostic may quote a value, and a value may be a word that Typst uses itself. This list is how the two are told
apart. It has the words of the sentences among the string literals of Typst and of the parsers whose errors Typst
passes on. Run it when Typst is updated, after `cargo fetch`:

    scripts/typst_words.py
"""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "src" / "render" / "typst_words.txt"

# Those whose texts can stand in a diagnostic.
CRATES = """
    typst typst-eval typst-kit typst-layout typst-library typst-pdf typst-realize typst-syntax typst-utils
    krilla serde_json serde_core toml toml_edit toml_parser serde_yaml csv csv-core ciborium roxmltree usvg image png
    hayagriva biblatex citationberg wasmi wasmi_core
"""

# Names of Typst's types, which diagnostics use as words.
TYPES = """
    alignment angle arguments array auto boolean bytes color content datetime decimal dictionary direction duration
    float fraction function gradient integer label length location module none path plugin ratio regex relative
    selector state str string stroke styles symbol tiling type version
"""

# Where pressrun's own errors of files come from, which Typst passes on too.
OURS = ["src/render/files.rs", "src/render/world.rs"]

LITERAL = re.compile(r'(?<!\w)(?:"((?:[^"\\]|\\.)*)")', re.DOTALL)
WORD = re.compile(r"[A-Za-z]+")


def sentences(source: str):
    """Yields the string literals that are more than one word."""
    source = source.split("#[cfg(test)]")[0]
    code = "\n".join(
        line for line in source.splitlines() if not line.lstrip().startswith("//")
    )
    for literal in LITERAL.findall(code):
        if " " in literal.strip() and len(literal) < 400:
            yield re.sub(r"\\.", " ", re.sub(r"\{[^{}]*\}", " ", literal))


def main() -> None:
    metadata = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--format-version=1", "--locked", "--offline"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    crates = CRATES.split()
    folders = {
        p["name"]: Path(p["manifest_path"]).parent
        for p in metadata["packages"]
        if p["name"] in crates
    }
    words = set(TYPES.split())
    for folder in folders.values():
        for file in sorted((folder / "src").rglob("*.rs")):
            if "test" in file.stem:
                continue
            for sentence in sentences(file.read_text(encoding="utf-8")):
                words.update(word.lower() for word in WORD.findall(sentence))
    for file in OURS:
        for sentence in sentences((ROOT / file).read_text(encoding="utf-8")):
            words.update(word.lower() for word in WORD.findall(sentence))
    TARGET.write_text("\n".join(sorted(words)) + "\n", encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {len(words)} words")


if __name__ == "__main__":
    main()
