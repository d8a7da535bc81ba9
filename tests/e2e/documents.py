"""Data for documents, different each time, good and bad, and the records that ask for them."""

import json
import re
from decimal import Decimal
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TEMPLATES = REPOSITORY / "templates"
TEST_TEMPLATES = REPOSITORY / "tests/templates"


@cache
def sample_text(template: str) -> str:
    return (TEMPLATES / template / "sample.json").read_text()


def sample(template: str) -> dict:
    return json.loads(sample_text(template))


def invoice(number: int) -> dict:
    """An invoice of one page and ten lines that there has not been before."""
    data = sample("invoice")
    document = data["doc"]
    document["code"] = f"B-{number:06}"
    document["customer"]["name"] = f"Customer {number * 7} & Daughters"
    for index, line in enumerate(document["lines"]):
        line["quantity"] = str(1 + (number + index) % 97)
        line["item"]["name"] = f"Item {(number * 31 + index) % 9973} of series {number % 89}"
        line["item"]["price"] = f"{(number + index * 13) % 500}.{number % 100:02}"
        line["total"] = f"{(number * 17 + index) % 5000}.{(number * 3) % 100:02}"
    return data


def statement(rows: int, number: int = 0) -> dict:
    """A statement with this many rows: some 42 a page. It has the balances and sums that one in parts needs."""
    data = sample("statement")
    data["holder"]["name"] = f"Customer {number}"
    balance = Decimal(data["opening_balance"])
    money_in, money_out = Decimal("0.00"), Decimal("0.00")
    data["entries"] = []
    for index in range(rows):
        amount = Decimal(f"{'' if index % 3 == 0 else '-'}{(index * 37 + number) % 900}.{index % 100:02}")
        balance += amount
        money_in += max(amount, 0)
        money_out += min(amount, 0)
        data["entries"].append(
            {
                "date": f"2026-{1 + index * 12 // rows:02}-{1 + index % 28:02}",
                "description": f"Card payment no. {number + index}, branch {index % 211}",
                "amount": str(amount),
                "balance": str(balance),
            }
        )
    sums = {"money_in": money_in, "money_out": money_out, "closing_balance": balance}
    return data | {key: str(sum_) for key, sum_ in sums.items()}


def report(times: int, number: int = 0) -> dict:
    """A report whose sections are the sample's, that many times over: about 4.2 pages a time."""
    data = sample("report")
    data["subtitle"] = f"Edition {number}"
    sections = json.dumps(data["sections"])
    data["sections"] = [
        section
        for copy in range(times)
        for section in json.loads(re.sub(r'("(?:id|ref)": "[^"]*)"', rf'\1-{copy}"', sections))
    ]
    return data


def letter(number: int) -> dict:
    return {"to": f"customer {number}"}


def message(template: str, data: object, **fields: object) -> str:
    """The body of a message."""
    return json.dumps({"template": template, "data": data, **fields})


def record(message_id: str, body: str) -> dict:
    """A record as the event source hands it to the function."""
    return {
        "messageId": message_id,
        "receiptHandle": f"handle-of-{message_id}",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1782988200000"},
        "messageAttributes": {},
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:documents",
        "awsRegion": "eu-central-1",
    }


def event(*records: dict) -> dict:
    return {"Records": list(records)}


# An event that is itself a message.
DIRECT = REPOSITORY / "events/direct.json"
EVENTS = sorted(path for path in (REPOSITORY / "events").glob("*.json") if path != DIRECT)


def ids(records: list[dict]) -> list[str]:
    return [record["messageId"] for record in records]


def outcomes(path: Path) -> tuple[list[str], list[str]]:
    """The ids of the good and of the bad records of an event in events/."""
    sent = json.loads(path.read_text())["Records"]
    good = 1 if path.name == "partly-bad.json" else len(sent)
    return ids(sent[:good]), ids(sent[good:])


def failures(answer: dict) -> list[str]:
    """The ids of the records that a function says have failed."""
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


# What a document can do wrong without costing more than itself.
FAILING = [
    '{"template": "letter", ',
    message("lettre", {"to": "nobody"}),
    message("letter", {"to": "a typo"}, keys="a/b.pdf"),
    message("letter", {"from": "somebody"}),
    message("broken-at-line-3", {"broken": True}),
    message("invoice", {"doc": {"lines": [17]}}),
    message("panic", {"rows": 2**63 - 1}),
]

# What ends the process that renders it.
KILLING = [
    message("overflow", {"depth": 300_000}),
    message("greedy", {"megabytes": None}),
    message("endless", {"endless": True}),
]

# A document that takes more than 70 % of that much memory, together with the rest of a function with one worker.
NEARLY_ALL_OF_2048_MB = message("greedy", {"megabytes": 1_690})
