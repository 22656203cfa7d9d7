"""What many clients of several processes see is what some order of their calls explains, and the checker
says no as soon as a rule is taken out of the service. HISTORY_CALLS sets how many they make."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import ROOT
from tests.databases import assert_invariants, query
from tests.histories.clients import Record, clients, read_at_the_end
from tests.processes import running_service, wait_until

CALLS = int(os.environ.get("HISTORY_CALLS", "1200"))


# So that transactions really meet: each is visible to the others only some time after its statement.
SLOW_COMMIT = """
    create function wait() returns trigger language plpgsql as 'begin perform pg_sleep(0.01); return null; end';
    create constraint trigger slow_commit after insert on appointment_versions deferrable initially deferred
        for each row execute function wait()"""


@contextmanager
def recorded(database_url: str, directory: Path, calls: int = CALLS, **settings: str) -> Iterator[Record]:
    """By clients of two services, each of two processes."""
    more = settings | {"DATABASE_URL": database_url, "WORKERS": "2"}
    with running_service(directory / "1", **more) as one, running_service(directory / "2", **more) as other:
        with clients([one.url, other.url]) as record:
            wait_until(lambda: record.count() >= calls, seconds=calls / 4)
        read_at_the_end(record, one.url)
        yield record


def test_an_order_explains_what_clients_of_four_processes_see(database_url: str, tmp_path: Path) -> None:
    with recorded(database_url, tmp_path) as record:
        record.check()
        assert record.refusals == []
        answers = [call.answer for calls in record.calls.values() for call in calls]
        assert min(answers.count(verdict) for verdict in ("ok", "conflict", "ignored-stale")) > CALLS / 30
    assert_invariants(database_url)


def without(directory: Path, file: str, old: str, new: str) -> Path:
    """A copy of the program in which something is missing."""
    copy = directory / "program"
    for name in ("service", "sql", "migrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert text.count(old) == 1, file
    (copy / file).write_text(text.replace(old, new))
    return copy


def test_without_lock_and_constraint_the_checker_says_no(database_url: str, tmp_path: Path) -> None:
    lock = "else pg_try_advisory_xact_lock(hashtextextended(p.org_id, 0))"
    program = without(tmp_path, "sql/upsert_appointment.sql", lock, "else true")
    query(database_url, "alter table appointments drop constraint appointments_during_excl")
    query(database_url, SLOW_COMMIT)
    with recorded(database_url, tmp_path, PYTHONPATH=str(program)) as record:
        assert record.unexplained()


def test_without_the_comparison_of_updated_at_the_checker_says_no(database_url: str, tmp_path: Path) -> None:
    comparison = "    where excluded.payload_updated_at > held.payload_updated_at\n"
    program = without(tmp_path, "sql/upsert_appointment.sql", comparison, "")
    with recorded(database_url, tmp_path, 300, PYTHONPATH=str(program)) as record:
        assert record.unexplained()


def test_with_answers_before_the_commit_the_checker_says_no(database_url: str, tmp_path: Path) -> None:
    """The verdicts are right; whoever reads between answer and commit finds nothing."""
    right = """\
            rows = await connection.fetch_many(UPSERT_APPOINTMENT, [run.arguments() for run in runs])
            busy = settle(runs, rows)
        except"""
    early = """\
            async with connection.transaction():
                rows = await connection.fetch_many(UPSERT_APPOINTMENT, [run.arguments() for run in runs])
                busy = settle(runs, rows)
                await asyncio.sleep(0.05)
        except"""
    program = without(tmp_path, "service/writing/lane.py", right, early)
    with recorded(database_url, tmp_path, PYTHONPATH=str(program)) as record:
        assert record.unexplained()
