-- Creates or updates appointments of one bucket whose payloads are the latest, where the tables are distributed.
--
-- Parameters: arrays of equal length, one element per appointment. Within an organisation no two elements may have the
-- same external id, and no two active ones may overlap.
--   $1 int4           the bucket of all the organisations
--   $2 text[]         organisations
--   $3 text[]         external ids
--   $4 timestamptz[]  starts
--   $5 timestamptz[]  ends, after the starts
--   $6 timestamptz[]  createdAt of the payloads
--   $7 timestamptz[]  updatedAt of the payloads
--   $8 bool[]         whether they are cancelled
--   $9 uuid[]         row ids for appointments that do not exist yet
--   $10 bool          whether the elements of an organisation are to be decided in their order
-- Result, one row per element, in any order; as of sql/upsert_appointment.sql:
--   place               int8         position of the element, from 1
--   verdict             text         ok, stale, conflict or busy
--                                    later: in order it stands behind an update that may have freed the time it
--                                    needs, or behind such an element; nothing was decided
--   version             int4         of the row written, if ok
--   blocker_external_id text         of the active neighbour, if conflict
--   blocker_start       text         formatted as in responses
--   blocker_end         text
-- Lock: the organisations' advisory locks, held until the transaction ends. If one is not acquired within half a second,
--   all are only tried: the elements of organisations whose lock is still held are busy, the others are decided.
-- Errors: 55P03 if another lock is not acquired within half a second.
--   25006 in a read-only transaction, such as any on a standby, even if nothing is to be written.
--   40001, 23P01 if a writer without the lock was faster.
--   23505, XX000 while a shard moves: two calls may then hold the same lock on two servers, and a key refuses one.
-- Indexes: appointments_external_id_key, appointments_start_idx, appointment_versions_pkey.
--
-- It is a call of a function (migrations/0006.put-appointments.sql), which Citus runs as one command on the server that
-- holds the bucket. Never in a pipeline with others: that is no transaction on Citus, where the first call of two was
-- committed although the second had failed.
select
    r.place as place,
    r.verdict as verdict,
    r.version as version,
    r.blocker_external_id as blocker_external_id,
    r.blocker_start as blocker_start,
    r.blocker_end as blocker_end
from put_appointments(
    $1::int4,
    $2::text[],
    $3::text[],
    $4::timestamptz[],
    $5::timestamptz[],
    $6::timestamptz[],
    $7::timestamptz[],
    $8::bool[],
    $9::uuid[],
    $10::bool
) as r;
