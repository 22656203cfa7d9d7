"""Writes to distributed tables: all of them, by bucket.

What has gathered for the organisations of a bucket goes as one batch. Each of its calls is one command for the server
that holds the bucket, one transaction there, and settled by its own answer: on Citus a pipeline of calls would be no
transaction. The call itself waits for the locks, half a second at most: then it decides for all organisations whose
locks are free, and the others continue on their own. As a call has a fixed price, its number of writes decides the
throughput, so the fewer connections write at a time, the more gather meanwhile.
"""

from time import monotonic

from service import metrics
from service.database.buckets import BUCKETS, bucket_of
from service.database.connection import Connection
from service.database.pool import Database
from service.database.statements import PUT_APPOINTMENTS
from service.settings import Settings
from service.writing.batch import Write, arrange, settle, unsettled
from service.writing.organisations import CONNECTIONS_ALONE, OrganisationQueues

LATE_MAX = len(BUCKETS)  # as each bucket has one batch under way at a time, no other waits for a late one


def connections_max(settings: Settings) -> int:
    return settings.write_connections_max + CONNECTIONS_ALONE + 2 * LATE_MAX


class DistributedWrites(OrganisationQueues):
    def __init__(self, database: Database, settings: Settings) -> None:
        super().__init__(database, settings.write_connections_max, settings.write_wait_ms_max, LATE_MAX)

    def group_of(self, organisation: str) -> int:
        return bucket_of(organisation)

    async def decide(self, connection: Connection, batch: list[Write]) -> None:
        metrics.BATCH_WRITES.observe(len(batch))
        metrics.QUEUE_WAIT_SECONDS.observe(monotonic() - batch[0].queued_at)
        bucket = bucket_of(batch[0].organisation)
        locked: set[str] = set()  # elsewhere; what follows of these organisations must not overtake
        for run in arrange(batch, ordered_calls=True):
            while True:  # a call decides at least the first write of each organisation
                self._expire(run.writes)  # the calls before may have taken long
                run.writes = [write for write in unsettled(run.writes) if write.organisation not in locked]
                if not run.writes:
                    break
                *arguments, _ = run.arguments()
                rows = await connection.fetch(PUT_APPOINTMENTS, bucket, *arguments, run.in_order())
                locked |= {write.organisation for write in settle([run], rows)}
