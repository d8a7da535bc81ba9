"""A large table that is rendered in one piece by the program that is deployed, in the memory of a small function."""

import json

from cloudwatch import metric_lines
from conftest import OUTPUT, StartFunction
from documents import event, message, record

ROWS = 20_000
MEGABYTES = 1536


def test_twenty_thousand_rows_fit_into_a_gigabyte_and_a_half(start_function: StartFunction, s3):
    emulator = start_function(
        timeout_seconds=300,
        WORKERS="1",
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE=str(MEGABYTES),
        AWS_LAMBDA_LOG_FORMAT="JSON",
    )
    table = message("table", {"rows": ROWS, "page-total": False})
    assert emulator.invoke(event(record("long", table))) == {"batchItemFailures": []}
    assert s3.head_object(Bucket=OUTPUT, Key="table/long.pdf")["ContentLength"] > 1_000_000
    lines = [json.loads(line) for line in emulator.log_lines() if line.startswith("{")]
    (stored,) = [line for line in lines if line.get("messageId") == "long" and line.get("message") == "stored"]
    assert stored["cacheEvictions"] > 0
    (peak,) = [line["RunPeakMemory"] for line in metric_lines(emulator.log_lines()) if "RunPeakMemory" in line]
    assert peak < MEGABYTES * 1024 * 1024
