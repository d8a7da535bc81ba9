"""A long document that is rendered in parts by the program that is deployed, in the memory of a small function."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pymupdf
import pytest

from cloudwatch import metric_lines
from conftest import INPUT, OUTPUT, StartFunction
from documents import event, failures, message, record, statement

LINES, SIZE = 20_000, 2_000
ENTRIES, ENTRIES_OF_A_PART = 1_700, 500

MANIFEST = f"""[tool.pressrun]
parts = {{ of = "/lines", size = {SIZE} }}
"""
MAIN = """#let data = json(sys.inputs.data)
#let part = json(sys.inputs.part)
#let pages = json(sys.inputs.pages)
#let number = context {
  let total = if pages.total == none { counter(page).final().first() } else { pages.total }
  [Page #(pages.before + here().page()) of #total]
}
#set page(footer: number)
#if part.index == 0 [= Deliveries]
#table(
  columns: (2cm, 1fr, 3cm),
  rows: 0.6cm,
  ..for (number, line) in data.lines.enumerate(start: part.first + 1) { (str(number), line.item, line.amount) },
)
#if part.index + 1 == part.count [These are #part.total deliveries.]
"""


def lines(count: int) -> dict:
    return {"lines": [{"item": f"Item {number}", "amount": f"{number}.00"} for number in range(1, count + 1)]}


@pytest.fixture
def templates_with_parts(tmp_path: Path) -> Path:
    folder = tmp_path / "templates" / "deliveries"
    folder.mkdir(parents=True)
    (folder / "typst.toml").write_text(MANIFEST)
    (folder / "main.typ").write_text(MAIN)
    (folder / "sample.json").write_text(json.dumps(lines(3)))
    return folder.parent


def test_twenty_thousand_lines_are_one_document(start_function: StartFunction, templates_with_parts: Path, s3):
    s3.put_object(Bucket=INPUT, Key="long", Body=json.dumps({"template": "deliveries", "data": lines(LINES)}))
    pointer = ["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": INPUT, "s3Key": "long"}]
    emulator = start_function(
        timeout_seconds=300,
        TEMPLATES_DIR=str(templates_with_parts),
        INPUT_BUCKET=INPUT,
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE="1024",
    )
    assert emulator.invoke(event(record("long", json.dumps(pointer)))) == {"batchItemFailures": []}

    pdf = pymupdf.open(stream=s3.get_object(Bucket=OUTPUT, Key="deliveries/long.pdf")["Body"].read())
    texts = [page.get_text().split("\n") for page in pdf]
    assert all(f"Page {number} of {len(texts)}" in text for number, text in enumerate(texts, start=1))
    items = [line for text in texts for line in text if line.startswith("Item ")]
    assert items == [f"Item {number}" for number in range(1, LINES + 1)]
    assert ["Deliveries" in text for text in texts] == [True] + [False] * (len(texts) - 1)
    assert [f"These are {LINES} deliveries." in text for text in texts] == [False] * (len(texts) - 1) + [True]

    document, *_ = (line for line in metric_lines(emulator.log_lines()) if "messageId" in line)
    assert (document["Parts"], document["Stored"]) == (LINES // SIZE, 1)


def printed(amount: str) -> str:
    """As a statement prints an amount in English."""
    return f"{abs(Decimal(amount)):,}" if Decimal(amount) >= 0 else f"\u2212{abs(Decimal(amount)):,}"


def test_a_long_statement_says_every_balance_once_and_the_closing_one_at_its_end(start_function: StartFunction, s3):
    data = statement(ENTRIES)
    emulator = start_function()
    body = message("statement", data, key="long.pdf")
    assert emulator.invoke(event(record("long", body))) == {"batchItemFailures": []}

    pdf = pymupdf.open(stream=s3.get_object(Bucket=OUTPUT, Key="long.pdf")["Body"].read())
    texts = [page.get_text() for page in pdf]
    said = "".join(texts).split("\n")
    rows = {line: said[index + 2] for index, line in enumerate(said) if line.startswith("Card payment no. ")}
    assert list(rows.items()) == [(entry["description"], printed(entry["balance"])) for entry in data["entries"]]
    assert ["Account statement" in text for text in texts] == [True] + [False] * (len(texts) - 1)
    assert texts[-1].rindex("Closing balance") > texts[-1].rindex(data["entries"][-1]["description"])
    numbers = re.findall(r"^\d+–\d+$", "\n".join(texts), re.MULTILINE)
    assert len(numbers) == len(texts)
    assert [number for number in numbers if number.endswith("–1")] == ["1–1", "2–1", "3–1", "4–1"]

    document, *_ = (line for line in metric_lines(emulator.log_lines()) if "messageId" in line)
    assert document["Parts"] == -(-ENTRIES // ENTRIES_OF_A_PART)


def test_a_wrong_balance_in_a_long_statement_fails_with_its_place_and_no_value(start_function: StartFunction):
    data = statement(ENTRIES)
    data["entries"][1234]["balance"] = "76543.21"
    emulator = start_function()
    answer = emulator.invoke(event(record("wrong", message("statement", data))))
    assert failures(answer) == ["wrong"]
    log = json.dumps(emulator.log_lines())
    assert "in part 3 of 4: " in log
    assert "/entries/1234/balance is not the balance before it plus the amount" in log
    assert "76543.21" not in log
