"""The PostgreSQL and the contenders of one run, each started when it is first needed."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.request import Request, urlopen

import msgspec
import psutil
import psycopg

from bench import contenders, wrk
from bench.contenders import Contender
from bench.sizes import Size
from service.database import embedded, schema
from tests.cluster import distributed_database
from tests.databases import migrated_template, new_database, query
from tests.faults.server import cleaned_up, create_standby, running_server

ORGANISATIONS = 1000
WARM_UP_SECONDS = 1
# The statements that drop and that create each constraint and index, foreign keys first.
DEFINITIONS = """
    select
        format('alter table %s drop constraint %I', conrelid::regclass, conname),
        format('alter table %s add constraint %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    from (select * from pg_constraint order by contype <> 'f') as c
    where conrelid::regclass::text in ('appointments', 'appointment_versions') and contype in ('f', 'x', 'u', 'p')
    union all
    select format('drop index %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
    from pg_index
    where indrelid = 'appointments'::regclass and not exists (select from pg_constraint where conindid = indexrelid)"""
SLOW_WRITES_WAITING_MAX = 128  # writes that may wait in the service with slow commits
SETTINGS = {
    "workers": {"WORKERS": "2"},
    "buckets": {"ALWAYS_BY_BUCKET": "1"},
    "slow": {"WRITES_WAITING_MAX": str(SLOW_WRITES_WAITING_MAX)},
}
# The longest delay that PostgreSQL allows. By default it applies only if other transactions are active.
SLOW_COMMITS = """
    do $$ begin
        execute format('alter database %I set commit_delay = 100000', current_database());
        execute format('alter database %I set commit_siblings = 0', current_database());
    end $$"""
END_OTHER_SESSIONS = """
    select pg_terminate_backend(pid, 5000) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()"""
LISTED = 1000  # appointments of the organisation whose whole list is read
SHORT_HISTORY = 10_000
LONG_VERSIONS, MANY_VERSIONS = 5, 100


class Filling(NamedTuple):
    """`rows` appointments with `versions` versions each, spread over organisations that are named by the prefix and
    a number from 0."""

    prefix: str
    rows: int
    organisations: int = 1
    versions: int = 1


class Stage:
    """`tunings` holds the pool size and the number of processes with which each rival was fastest."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.tunings: dict[str, tuple[int, int]] = {}
        self._opened: dict[str, Contender] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        directory = Path(tempfile.mkdtemp(prefix="appointments-bench-", dir="/tmp"))
        self._stack.callback(shutil.rmtree, directory)
        self.server_url = self._stack.enter_context(embedded.running(directory))
        self.template = self._stack.enter_context(migrated_template(self.server_url))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def contender(self, name: str) -> Contender:
        """Rivals are `pool` and `orm`. All others are the service: `service`, `workers` (two processes), `slow`
        (commits take a tenth of a second), `buckets` (it writes as to distributed tables), `citus` and `citus reads`
        (on a cluster), `alone` and `standby` (on a server of their own, without and with a standby that reads), and on
        filled tables `reads`, `history` and `table N` (N rows). `citus reads`, `alone` and `standby` have the
        organisation of 1,000 of `reads`, too."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def floor(self) -> str:
        """The URL of pgbench's database."""
        if "pgbench" not in self._opened:
            url = self._stack.enter_context(new_database(self.server_url, self.template))
            self._opened["pgbench"] = Contender("", url, psutil.Process())
        return self._opened["pgbench"].database_url

    def _open(self, name: str) -> Contender:
        if name in ("pool", "orm"):
            pool, workers = self.tunings[name] = self._best_tuning(name)
            opened = self._stack.enter_context(contenders.rival(self._database(name), name, pool, workers))
        else:
            settings = SETTINGS.get(name, {})
            if name == "standby":
                settings = {"READ_DATABASE_URL": self._pair[1]}
            opened = self._stack.enter_context(contenders.service(self._database(name), **settings))
        if name == "slow":
            slow_down(opened.database_url)
        if name in ("alone", "standby", "citus reads"):
            fill_over_http(opened.url)
        if fillings := self._fillings(name):
            fill(opened.database_url, fillings)
        wrk.load(opened.url, "new", WARM_UP_SECONDS, 64)
        return opened

    def _database(self, name: str) -> str:
        if name in ("alone", "standby"):
            return self._pair[0]
        new = distributed_database() if name.startswith("citus") else new_database(self.server_url, self.template)
        return self._stack.enter_context(new)

    @cached_property
    def _pair(self) -> tuple[str, str]:
        """The URLs of a migrated server and of its standby."""
        directory = Path(tempfile.mkdtemp(prefix="appointments-bench-", dir="/tmp"))
        self._stack.callback(shutil.rmtree, directory)
        primary = self._stack.enter_context(running_server(directory / "primary"))
        schema.migrate(primary.url)
        standby = self._stack.enter_context(cleaned_up(create_standby(primary, directory / "standby")))
        standby.start()
        return primary.url, standby.url

    def _fillings(self, name: str) -> list[Filling]:
        match name.split():
            case ["table", rows]:
                return [Filling("o-", int(rows), organisations=ORGANISATIONS)]
            case ["reads"]:  # prefix "100" and number 0 make organisation "1000"
                return [Filling(f"{rows}"[:-1], rows) for rows in {LISTED, *self.size.lists}]
            case ["history"]:
                return [
                    Filling("short ", SHORT_HISTORY),
                    Filling("versions 1 ", LISTED),
                    Filling(f"versions {MANY_VERSIONS} ", LISTED, versions=MANY_VERSIONS),
                    Filling("long ", self.size.history, versions=LONG_VERSIONS),
                ]
            case _:
                return []

    def _best_tuning(self, name: str) -> tuple[int, int]:
        if len(self.size.tunings) == 1:
            return self.size.tunings[0]
        rates = {}
        for tuning in self.size.tunings:
            with (
                new_database(self.server_url, self.template) as database_url,
                contenders.rival(database_url, name, *tuning) as rival,
            ):
                wrk.load(rival.url, "new", WARM_UP_SECONDS, 64)
                query(rival.database_url, "truncate appointments, appointment_versions")
                rates[tuning] = wrk.load(rival.url, "new", self.size.seconds, 64).rate
        return max(rates, key=lambda tuning: rates[tuning])


def fill_over_http(url: str) -> None:
    """The organisation whose whole list is read."""
    day = datetime(2020, 1, 1, tzinfo=UTC)
    items = []
    for number in range(LISTED):
        start, end = (day + timedelta(days=number, minutes=minutes) for minutes in (0, 10))
        item = {"orgId": str(LISTED), "id": f"filled-{number}", "start": start, "end": end, "createdAt": day}
        items.append(item | {"updatedAt": day})
    for part in (items[::2], items[1::2]):  # a batch has at most 500
        body = msgspec.json.encode(part)
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(f"{url}/api/appointments/batch", body, headers)) as response:
            assert response.status == 200


def slow_down(database_url: str) -> None:
    """Slows down commits like a remote disk, so that two cores can offer ten times the service's capacity."""
    query(database_url, SLOW_COMMITS)
    query(database_url, END_OTHER_SESSIONS)


def fill(database_url: str, fillings: Sequence[Filling]) -> None:
    """Drops indexes and constraints and rebuilds them afterwards, which is faster for millions of rows."""
    statement = Path(__file__).with_name("fill.sql").read_text(encoding="utf-8")
    with psycopg.connect(database_url, autocommit=True) as session:
        definitions = session.execute(DEFINITIONS).fetchall()
        for drop, _ in definitions:
            session.execute(drop)
        for filling in fillings:
            session.execute(statement.encode(), filling._asdict())
        for _, create in reversed(definitions):
            session.execute(create)
        session.execute("vacuum analyze appointments, appointment_versions")
        session.execute("checkpoint")  # or the first measurement would pay for writing the pages
