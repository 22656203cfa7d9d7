"""The baseline: the service's statements run by PostgreSQL's own pgbench and psql."""

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from service.database.embedded import BINARIES
from service.database.statements import LIST_APPOINTMENTS, UPSERT_APPOINTMENT, Statement

# New appointments that do not overlap: no two of an organisation are on the same day. pgbench variables are
# numbers, so organisations are numbers, and a day is written as 20001231.
UPSERT_SCRIPT = r"""
\set slot (:sent * :clients + :client_id) / 1000
\set sent :sent + 1
\set organisation (:sent * :clients + :client_id) % 1000
\set external_id (:client_id + 1) * 1000000000 + :sent
\set start (2000 + :slot / 324) * 10000 + (:slot % 324 / 27 + 1) * 100 + :slot % 27 + 1
\set end :start + 1
\set updated_at 20000101
"""
UPSERT_VARIABLES = {
    "$1::text[]": "array[:organisation]::text[]",
    "$2::text[]": "array[:external_id]::text[]",
    "$3::timestamptz[]": "array[:start]::timestamptz[]",
    "$4::timestamptz[]": "array[:end]::timestamptz[]",
    "$5::timestamptz[]": "array[:updated_at]::timestamptz[]",
    "$6::timestamptz[]": "array[:updated_at]::timestamptz[]",
    "$7::bool[]": "array[false]::bool[]",
    "$8::uuid[]": "array[lpad(:external_id::text, 32, '0')]::uuid[]",
    "$9::int4[]": "array[organisation_bucket(:organisation::text)]::int4[]",  # about 1 µs of the server
}
NO_FILTERS = {
    "$9::bool": "false",
    "$6::text": "null::text",
    "$8::text": "null::text",
    **{f"${number}::timestamptz": "null::timestamptz" for number in (3, 4, 5, 7)},
}
SESSION = "-c plan_cache_mode=force_generic_plan -c jit=off -c timezone=UTC"  # the service's session settings


def list_variables(organisation: str, rows: str) -> dict[str, str]:
    key = {"$1::int4": f"organisation_bucket({organisation}::text)", "$2::text": f"{organisation}::text"}
    return NO_FILTERS | key | {"$10::int8": f"{rows}::int8"}


def upsert_rate(database_url: str, clients: int, seconds: float) -> float:
    """Accepted appointments per second, counted in the table: a busy verdict is a transaction, but accepts nothing."""
    elapsed = pgbench(database_url, UPSERT_SCRIPT + script(UPSERT_APPOINTMENT, UPSERT_VARIABLES), clients, seconds)[1]
    with psycopg.connect(database_url) as session:
        row = session.execute("select count(*) from appointment_versions").fetchone()
    assert row
    return float(row[0]) / elapsed


def list_rate(database_url: str, clients: int, seconds: float) -> float:
    """Lists of organisation `1000` per second."""
    text = "\\set organisation 1000\n" + script(LIST_APPOINTMENTS, list_variables(":organisation", "1001"))
    transactions, elapsed = pgbench(database_url, text, clients, seconds)
    return transactions / elapsed


def copy_rate(database_url: str, organisation: str, rows: int) -> float:
    """Rows per second of `\\copy`, the fastest way to read the JSON of a list with psql."""
    text = script(LIST_APPOINTMENTS, list_variables(f"'{organisation}'", "null"))
    copied = " ".join(text.replace(";", "").split())
    command = [
        str(BINARIES / "psql"),
        "--no-psqlrc",
        "--command",
        f"\\copy (select appointment from ({copied}) as l) to '/dev/null'",
    ]
    started = time.perf_counter()
    environment = os.environ | {"PGOPTIONS": SESSION}
    done = subprocess.run([*command, database_url], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    assert done.stdout.strip() == f"COPY {rows}", done.stdout
    return rows / seconds


def script(statement: Statement, variables: dict[str, str]) -> str:
    """The statement's text from sql/ with its parameters replaced."""
    text = re.sub("^--.*\n| --.*$", "", statement.text, flags=re.MULTILINE)
    for parameter, variable in variables.items():
        assert parameter in text, parameter
        text = text.replace(parameter, variable)
    assert "$" not in text
    return text


def pgbench(database_url: str, text: str, clients: int, seconds: float) -> tuple[int, float]:
    """The number of transactions and the seconds they took."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "script.sql"
        file.write_text(text, encoding="utf-8")
        options = ["--no-vacuum", "--protocol=prepared", "--define=sent=0", f"--define=clients={clients}"]
        command = [str(BINARIES / "pgbench"), *options, f"--client={clients}", f"--time={max(1, round(seconds))}"]
        done = subprocess.run(
            [*command, f"--file={file}", database_url],
            env=os.environ | {"PGOPTIONS": SESSION},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    transactions = re.search(r"actually processed: (\d+)", done.stdout)
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    assert transactions, done.stdout
    assert rate, done.stdout
    return int(transactions[1]), int(transactions[1]) / float(rate[1])
