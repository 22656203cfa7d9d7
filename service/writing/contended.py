"""Contended writes: a batch waits for all its locks, which the lane does not.

A write comes here if another process held its organisation's lock in too many rounds (PostgreSQL grants no try-lock
while another session waits, so nobody starves), if its batch failed as a whole, or if a client sent it in a batch.

A batch is one pipeline and one commit, as in the lane. Its first call waits for the locks in the order of the
organisations' names, so that no two batches wait for each other (names with equal hashes could, until LOCK_MS_MAX).
"""

from service import metrics
from service.database.connection import Connection
from service.database.pool import Database
from service.database.statements import UPSERT_APPOINTMENT
from service.settings import Settings
from service.writing.batch import ARGUMENTS, Write, arrange, settle
from service.writing.organisations import CONNECTIONS_ALONE, OrganisationQueues

GROUPS = 2  # with 1 the throughput was 0.75, with 4 the same
CONNECTIONS_MAX = GROUPS + CONNECTIONS_ALONE


class ContendedWrites(OrganisationQueues):
    def __init__(self, database: Database, settings: Settings) -> None:
        super().__init__(database, GROUPS, settings.write_wait_ms_max)

    def group_of(self, organisation: str) -> int:
        return hash(organisation) % GROUPS

    async def decide(self, connection: Connection, batch: list[Write]) -> None:
        metrics.CONTENDED_BATCHES.inc()
        organisations = sorted({write.organisation for write in batch})
        runs = arrange(batch)
        calls = [only_locks(organisations), *(run.arguments() for run in runs)]
        rows = await connection.fetch_many(UPSERT_APPOINTMENT, calls)
        settle(runs, rows[len(organisations) :])  # the locks are held, so no write is busy


def only_locks(organisations: list[str]) -> tuple[list[object], ...]:
    """Arguments of the statement that wait for these locks, one after another, and write nothing."""
    nothing: list[object] = [None] * len(organisations)
    return list(organisations), *[nothing] * (ARGUMENTS - 1)
