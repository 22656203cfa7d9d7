"""The calls of many clients to several processes are linearizable, and the checker finds a violation as soon as a rule
is removed from the service. HISTORY_CALLS sets the number of calls."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import ROOT
from tests.cluster import not_on_citus
from tests.databases import assert_invariants, query
from tests.histories.clients import Record, clients, record_final_state
from tests.processes import running_service, wait_until, writes_by_bucket

CALLS = int(os.environ.get("HISTORY_CALLS", "1200"))

# Makes transactions overlap: each becomes visible to the others only some time after its statement.
SLOW_COMMIT = """
    create function wait() returns trigger language plpgsql as 'begin perform pg_sleep(0.01); return null; end';
    create constraint trigger slow_commit after insert on appointment_versions deferrable initially deferred
        for each row execute function wait()"""


@contextmanager
def recorded(database_url: str, directory: Path, calls: int = CALLS, **settings: str) -> Iterator[Record]:
    """The record of clients that call two services of two processes each."""
    settings |= {"DATABASE_URL": database_url, "WORKERS": "2"}
    with running_service(directory / "1", **settings) as one, running_service(directory / "2", **settings) as other:
        with clients([one.url, other.url]) as record:
            wait_until(lambda: record.count() >= calls, seconds=calls / 4)
        record_final_state(record, one.url)
        yield record


def test_calls_to_four_processes_are_linearizable(database_url: str, tmp_path: Path) -> None:
    with recorded(database_url, tmp_path) as record:
        record.assert_linearizable()
        assert record.refusals == []
        answers = [call.answer for call in record.answered()]
        assert min(answers.count(verdict) for verdict in ("ok", "conflict", "ignored-stale")) > CALLS / 30
    assert_invariants(database_url)


def program_without(directory: Path, file: str, old: str, new: str) -> Path:
    """A copy of the program in which `old`, found once in the file, is replaced by `new`."""
    copy = directory / "program"
    for name in ("service", "sql", "migrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert text.count(old) == 1, file
    (copy / file).write_text(text.replace(old, new))
    return copy


def replace_in_function(database_url: str, old: str, new: str) -> None:
    """Replaces `old`, found once in the function that writes by bucket."""
    [[definition]] = query(database_url, "select pg_get_functiondef('put_appointments'::regproc)")
    assert str(definition).count(old) == 1
    query(database_url, str(definition).replace(old, new))


@not_on_citus
def test_checker_finds_a_missing_lock_and_constraint(database_url: str, tmp_path: Path) -> None:
    if writes_by_bucket():
        program = ROOT
        replace_in_function(
            database_url, "perform pg_advisory_xact_lock(hashtextextended(asked.org_id, 0))", "perform 1"
        )
        # The key of the numbers, too, would refuse one of two writes that did not take the lock.
        query(database_url, "alter table appointment_versions drop constraint appointment_versions_pkey")
    else:
        lock = "else pg_try_advisory_xact_lock(hashtextextended(p.org_id, 0))"
        program = program_without(tmp_path, "sql/upsert_appointment.sql", lock, "else true")
    query(database_url, "alter table appointments drop constraint appointments_during_excl")
    query(database_url, SLOW_COMMIT)
    with recorded(database_url, tmp_path, PYTHONPATH=str(program)) as record:
        assert record.violations()


@not_on_citus
def test_checker_finds_a_missing_comparison_of_updated_at(database_url: str, tmp_path: Path) -> None:
    if writes_by_bucket():
        program = ROOT
        replace_in_function(database_url, "when held.payload_updated_at >= p.payload_updated_at then 'stale'", "")
    else:
        comparison = "    where excluded.payload_updated_at > held.payload_updated_at\n"
        program = program_without(tmp_path, "sql/upsert_appointment.sql", comparison, "")
    with recorded(database_url, tmp_path, 300, PYTHONPATH=str(program)) as record:
        assert record.violations()


@not_on_citus
def test_checker_finds_answers_sent_before_the_commit(database_url: str, tmp_path: Path) -> None:
    """The verdicts are right, but a read between answer and commit does not see the write."""
    if writes_by_bucket():
        file = "service/writing/distributed.py"
        commit_first = """\
                rows = await connection.fetch(PUT_APPOINTMENTS, bucket, *arguments, run.in_order())
                locked |= {write.organisation for write in settle([run], rows)}
"""
        answer_first = """\
                async with connection.transaction():
                    rows = await connection.fetch(PUT_APPOINTMENTS, bucket, *arguments, run.in_order())
                    locked |= {write.organisation for write in settle([run], rows)}
                    await __import__("asyncio").sleep(0.05)
"""
    else:
        file = "service/writing/lane.py"
        commit_first = """\
            rows = await connection.fetch_many(UPSERT_APPOINTMENT, [run.arguments() for run in runs])
            busy = settle(runs, rows)
        except"""
        answer_first = """\
            async with connection.transaction():
                rows = await connection.fetch_many(UPSERT_APPOINTMENT, [run.arguments() for run in runs])
                busy = settle(runs, rows)
                await asyncio.sleep(0.05)
        except"""
    program = program_without(tmp_path, file, commit_first, answer_first)
    with recorded(database_url, tmp_path, PYTHONPATH=str(program)) as record:
        assert record.violations()
