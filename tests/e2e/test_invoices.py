"""Invoices of every kind as their readers see them: in their language, with the words of people and not GOBL's codes."""

import json
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from documents import REPOSITORY, TEMPLATES, sample
from local_example import run_local
from printed import printed

INVOICES = sorted((REPOSITORY / "tests/invoices").glob("*.json"))
# Real ones, GOBL envelopes: they are in no repository of ours.
REAL_FOLDER = Path(os.environ.get("GOBL_INVOICES", REPOSITORY.parent / "shared/gobl"))
REAL = sorted(REAL_FOLDER.glob("*.json"))

LANGUAGES = json.loads((TEMPLATES / "packages/local/languages/1.0.0/languages.json").read_text())
CODES = json.loads((TEMPLATES / "invoice/codes.json").read_text())


def invoice(name: str) -> dict:
    return json.loads((REPOSITORY / "tests/invoices" / f"{name}.json").read_text())


# What each invoice prints, and what it must not. A line of a table or of the sums is one line here.
EXPECTED = {
    "credit-note": (
        ["Stornorechnung", "Storniert R-0199, 30. März 2026", "1 Plakate A1 −4 Stk. 18,50 19 % −74,00"]
        + ["Gutgeschriebener Betrag −117,81 €"],
        [],
    ),
    "dinar": (["1 Four-colour printing 12.5 h 4.125 0% 51.563", "Total payable KWD 62.813"], []),
    "draft": (["Entwurf · 2026", "# Beschreibung Menge Preis USt. Betrag (EUR)"], ["Einheit", "one"]),
    "exempt": (
        ["Curso de encadernação 6 h 45,00 Isento 270,00", "IVA: Artigo 9.º do CIVA", "ATCUD TESTE123-88"],
        ["M07"],
    ),
    "islands": (["Χαρτόσημο 3,60", "ΜΑΡΚ 400001234567890", "Μειωμένοι συντελεστές νήσων"], ["services", "stamp"]),
    "margin-scheme": (
        [
            "Régimen especial de los bienes usados",
            "# Descripción Cantidad Precio Importe (EUR)",
            "Total a pagar 610,00 €",
        ],
        ["Precio IVA", "Desglose", "Impuestos"],
    ),
    "overpaid": (["Solde en votre faveur 145,90 €", "Carte de crédit", "Déjà payé −800,00 €"], ["−145,90"]),
    "professional": (
        ["Parcella", "Codice Fiscale SMPCRL80A41L219X", "Codice Destinatario SDI 0000000", "Ricevuta bancaria (RIBA)"]
        + ["Regime fiscale: Regime Ordinario"]
        + ["IRPEF 20% · ritenuta 1.500,00 −300,00", "IVA: Escluse ex. art. 15 del D.P.R. 633/1972"],
        ["Unità", "U.M.", "RF01"],
    ),
    "retained-taxes": (["IRPF 15 % · retención 2.400,00 −360,00", "IRPF retención −360,00 €"], ["Unidad"]),
    "retained-taxes-brazil": (
        ["Inscrição Municipal da Empresa 1234567", "PIS (Retido) 0,65%", "COFINS (Retido) −108,00 BRL"],
        ["PISRet", "Nfse municipal reg", "retenção"],
    ),
    "retained-taxes-mexico": (
        ["RFC EJE990101AA0", "IVA Retenido −1.493,34 MXN", "Folio fiscal 00000000-0000-4000-8000-000000000000"]
        + [
            "Servicios de edición (82111800)",
            "Vales de despensa",
            "Corrección de estilo 40 h 350,00",
            "Uso del CFDI: Gastos en general",
        ]
        + ["RFC EJE800101AA0 · Nombre Luz Ejemplo · Importe 500,00"],
        ["RVAT", "HUR", "Sat uuid", "Employee"],
    ),
    "reverse-charge": (["Btw verlegd", "Opmaak en zetwerk 10 uur 80,00 Btw verlegd 800,00", "Te betalen € 800,00"], []),
    "rounding": (["Kleinbetragsrechnung", "Rundung 0,03 €", "Gesamtbetrag 6,55 €", "3 Blatt"], ["sheet"]),
    "sales-tax": (["Sales Tax 8.6% 275.00 23.65", "Delivery 40.00", "Rush handling 15.00"], [" ST "]),
    "settlement": (
        [
            "rozliczeniowa",
            "Numer KSeF 9999999999-20260414-010020A2B3C4-5D",
            "2 Projekt okładki 3 kpl. 900,00 23% 2 700,00",
        ],
        ["KSEF NUMBER", "settlement"],
    ),
    "yen": (["1 Washi, 50 sheets 3 packages 4,800 10% 14,400", "Total payable ¥17,215"], ["17,215."]),
    "zero-rate": (["1 Reading books, bound 120 pcs 6.75 0% 810.00", "VAT 0% 810.00 0.00"], []),
}


def test_no_invoice_is_forgotten():
    assert {path.stem for path in INVOICES} == EXPECTED.keys()


@pytest.mark.parametrize("path", INVOICES, ids=lambda path: path.stem)
def test_an_invoice_says_what_it_should(path: Path, tmp_path: Path):
    said = printed("invoice", path.read_text(), tmp_path)
    there, absent = EXPECTED[path.stem]
    assert [words for words in there if words not in said] == [], said
    assert [words for words in absent if words in said] == [], said


@pytest.mark.parametrize("path", INVOICES, ids=lambda path: path.stem)
def test_an_invoice_adds_up(path: Path):
    """Else it would show what no invoice looks like."""
    document = json.loads(path.read_text())["doc"]
    sums = {name: Decimal(amount) for name, amount in document["totals"].items() if isinstance(amount, str)}
    lines = sum(Decimal(line["total"]) for line in document["lines"])
    charges = sum((Decimal(charge["amount"]) for charge in document.get("charges", [])), Decimal(0))
    assert sums["sum"] == lines
    assert sums["total"] == lines + charges
    assert sums["total_with_tax"] == sums["total"] + sums["tax"]
    settled = sums["total_with_tax"] - sums.get("retained_tax", 0) + sums.get("rounding", 0)
    assert sums["payable"] == settled
    if "due" in sums:
        assert sums["due"] == settled - sums["advance"]


def test_the_schema_takes_them(tmp_path: Path):
    ran = run_local("--template", "invoice", *INVOICES, *REAL, folder=tmp_path, templates=TEMPLATES)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_message_says_the_language(tmp_path: Path):
    data = invoice("draft")
    data["doc"]["lang"] = "nl"
    assert "Concept · 2026" in printed("invoice", json.dumps(data), tmp_path, language="fr")


def test_the_template_says_the_language_of_messages_that_do_not(tmp_path: Path):
    data = json.dumps(invoice("draft"))
    assert "Brouillon · 2026" in printed("invoice", data, tmp_path, language="fr")


def test_a_seller_whose_country_reads_several_languages_must_say_which(tmp_path: Path):
    data = invoice("draft")
    data["doc"]["$regime"] = "BE"
    assert "Draft · 2026" in printed("invoice", json.dumps(data), tmp_path)


def test_old_documents_have_no_regime(tmp_path: Path):
    data = invoice("draft")
    del data["doc"]["$regime"]
    assert "Entwurf · 2026" in printed("invoice", json.dumps(data), tmp_path)


def test_an_invoice_without_any_number_is_a_draft(tmp_path: Path):
    data = sample("invoice")
    del data["doc"]["series"], data["doc"]["code"]
    assert "Draft" in printed("invoice", json.dumps(data), tmp_path)


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from texts(member)


# The fields that hold codes.
CODE_FIELDS = {"$tags", "cat", "key", "point", "prices_include", "prv", "rate", "tags", "type", "unit"}


def codes(value: object, field: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, member in value.items():
            if name == "code" and "rates" in value:
                yield member
            yield from codes(member, name)
    elif isinstance(value, list):
        for member in value:
            yield from codes(member, field)
    elif field in CODE_FIELDS:
        yield str(value)


def labels(value: object) -> set[str]:
    return {text.lower() for text in texts(value)}


# Some are what people say: VAT, kg, SIRET.
WORDS = labels(LANGUAGES) | labels({language: CODES[language] for language in LANGUAGES if language in CODES})
NAMES = {code: name for kind in CODES["en"].values() for code, name in kind.items()} | CODES["unece"]
NAMED = {code for code, name in NAMES.items() if code not in re.findall(r"\w+", name)}


def raw_codes(data: dict, said: str) -> list[str]:
    """Codes that stand where there should be words: as they are, or with their hyphens taken out."""
    own_words = "\n".join(texts(data)).lower()
    found = []
    for code in set(codes(data)):
        if code.lower() in WORDS:
            continue
        if (re.search("[-+]", code) or code in NAMED) and re.search(rf"(?<![\w-]){re.escape(code)}(?![\w-])", said):
            found.append(code)
        spoken = re.sub(r"[-+_]+", " ", re.sub(r"^[a-z]{2}-", "", code))
        known = spoken in own_words or any(spoken in words for words in WORDS)
        if " " in spoken and not known and spoken in said.lower():
            found.append(spoken)
    return found


@pytest.mark.parametrize("path", [*INVOICES, *REAL], ids=lambda path: path.stem)
def test_no_code_stands_where_there_should_be_words(path: Path, tmp_path: Path):
    said = printed("invoice", path.read_text(), tmp_path)
    assert raw_codes(json.loads(path.read_text()), said) == [], said


@pytest.mark.parametrize("path", [*INVOICES, *REAL], ids=lambda path: path.stem)
@pytest.mark.parametrize("language", LANGUAGES)
def test_it_is_an_invoice_in_every_language(path: Path, language: str, tmp_path: Path):
    data = json.loads(path.read_text())
    data["doc"]["lang"] = language
    said = printed("invoice", json.dumps(data), tmp_path)
    assert raw_codes(data, said) == [], said


@pytest.mark.skipif(not REAL, reason="GOBL_INVOICES names no folder with GOBL's example invoices")
def test_there_are_real_invoices():
    assert len(REAL) >= 34


@pytest.mark.skipif(not REAL, reason="GOBL_INVOICES names no folder with GOBL's example invoices")
@pytest.mark.parametrize(
    ("country", "title"), [("pl", "faktura"), ("gr", "τιμολόγιο"), ("fr", "facture"), ("sg", "invoice")]
)
def test_real_invoices_are_in_their_sellers_language(country: str, title: str, tmp_path: Path):
    for path in REAL:
        if path.name.startswith(f"{country}-"):
            assert title in printed("invoice", path.read_text(), tmp_path).lower(), path.name
