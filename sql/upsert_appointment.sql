-- Creates or updates appointments whose payloads are the latest, and records the versions.
--
-- Parameters: arrays of equal length, one element per appointment. Within an organisation no two
-- elements may have the same external id, and no two active ones may overlap.
--   $1 text[]         organisations
--   $2 text[]         external ids
--   $3 timestamptz[]  starts
--   $4 timestamptz[]  ends, after the starts
--   $5 timestamptz[]  createdAt of the payloads
--   $6 timestamptz[]  updatedAt of the payloads
--   $7 bool[]         whether they are cancelled; a cancelled appointment blocks nothing, and nothing
--                     blocks it
--   $8 uuid[]         row ids for appointments that do not exist yet; null: only wait for the lock, on
--                     behalf of upserts that follow in the same transaction
--   $9 int4[]         buckets of the organisations
-- Result, one row per element, in any order:
--   place               int8         position of the element, from 1
--   verdict             text         busy: the lock was not available; nothing was decided
--                                    ok: written, with the version in the next column
--                                    stale: an equal or later updatedAt is already stored
--                                    conflict: the blocker in the next columns overlaps
--                                    locked: the lock is held; nothing else was requested
--   version             int4         of the row written, if ok
--   blocker_external_id text         of the active neighbour, if conflict
--   blocker_start       text         formatted as in responses
--   blocker_end         text
-- Lock: the organisations' advisory locks, tried or waited for, held until the transaction ends.
-- Errors: 55P03 if a lock is not acquired within the lock timeout.
--   23P01 if an overlapping row was committed between the snapshot and the lock. The payload is then
--   known not to be stale: the where of do update is evaluated before the exclusion constraint.
--   21000 or 23P01 if two elements have the same id, or are active and overlap.
-- Indexes: appointments_external_id_key, appointments_start_idx.
--
-- The snapshot is taken before the locks, so the search for a blocker may miss the newest rows; on
-- conflict and the constraint do see them. Every verdict was true at the snapshot or under the lock.
--
-- Why arrays: for a single row, a third of the server's time goes into starting and ending the statement.
-- CPU of the server for a new appointment over 1,000 organisations, in microseconds, PostgreSQL 18,
-- 2 cores, medians of 5 interleaved runs:
--                                                            1 row   32 rows   64 rows
--   one row per call, 32 or 64 pipelined calls                 208        74        64
--   this statement, one call                                   228        35        29
--   the same with "order by place" and one more CTE            235        35        33
with proposed as materialized (
    select
        p.place,
        p.id,
        p.org_id,
        p.external_id,
        p.starts_at,
        p.ends_at,
        p.payload_created_at,
        p.payload_updated_at,
        p.cancelled,
        p.bucket,
        case
            when p.id is null then pg_advisory_xact_lock(hashtextextended(p.org_id, 0)) is not null
            else pg_try_advisory_xact_lock(hashtextextended(p.org_id, 0))
        end as locked,
        blocker.external_id as blocker_external_id,
        blocker.during as blocker_during
    from unnest(
        $1::text[],
        $2::text[],
        $3::timestamptz[],
        $4::timestamptz[],
        $5::timestamptz[],
        $6::timestamptz[],
        $7::bool[],
        $8::uuid[],
        $9::int4[]
    ) with ordinality as p (
        org_id,
        external_id,
        starts_at,
        ends_at,
        payload_created_at,
        payload_updated_at,
        cancelled,
        id,
        bucket,
        place
    )
    -- Active appointments do not overlap, so they end in the order in which they start: only the last
    -- one that starts before our end can reach past our start. A conflict found here costs one index
    -- lookup; found by the constraint, it costs a dead row and an error in the log.
    left join lateral (
        select n.external_id, n.during
        from appointments as n
        where not p.cancelled
            and n.org_id = p.org_id
            and not n.cancelled
            and lower(n.during) < p.ends_at
            and n.external_id <> p.external_id
        order by lower(n.during) desc
        limit 1
    ) as blocker on upper(blocker.during) > p.starts_at
),
upserted as (
    insert into appointments as held (
        id,
        org_id,
        external_id,
        during,
        payload_created_at,
        payload_updated_at,
        received_at,
        version,
        cancelled,
        bucket
    )
    select
        p.id,
        p.org_id,
        p.external_id,
        tstzrange(p.starts_at, p.ends_at),
        p.payload_created_at,
        p.payload_updated_at,
        clock_timestamp(),
        1,
        p.cancelled,
        p.bucket
    from proposed as p
    where p.locked
        and p.id is not null
        and p.blocker_external_id is null
    on conflict (org_id, external_id, bucket) do update set
        during = excluded.during,
        payload_created_at = excluded.payload_created_at,
        payload_updated_at = excluded.payload_updated_at,
        received_at = greatest(excluded.received_at, held.received_at + interval '1 microsecond'),
        version = held.version + 1,
        cancelled = excluded.cancelled
    where excluded.payload_updated_at > held.payload_updated_at
    returning
        held.id,
        held.org_id,
        held.external_id,
        held.during,
        held.payload_created_at,
        held.payload_updated_at,
        held.received_at,
        held.version,
        held.cancelled,
        held.bucket
),
versioned as (
    insert into appointment_versions (
        appointment_id,
        org_id,
        external_id,
        during,
        payload_created_at,
        payload_updated_at,
        received_at,
        version,
        cancelled,
        bucket
    )
    select
        u.id,
        u.org_id,
        u.external_id,
        u.during,
        u.payload_created_at,
        u.payload_updated_at,
        u.received_at,
        u.version,
        u.cancelled,
        u.bucket
    from upserted as u
    returning org_id, external_id, version
)
select
    p.place as place,
    case
        when not p.locked then 'busy'
        when p.id is null then 'locked'
        when v.version is not null then 'ok'
        when p.blocker_external_id is null then 'stale'
        -- Compare with the stored row only if there is a blocker.
        when (
            select c.payload_updated_at >= p.payload_updated_at
            from appointments as c
            where c.org_id = p.org_id
                and c.external_id = p.external_id
        ) then 'stale'
        else 'conflict'
    end as verdict,
    v.version as version,
    p.blocker_external_id as blocker_external_id,
    instant_text(lower(p.blocker_during)) as blocker_start,
    instant_text(upper(p.blocker_during)) as blocker_end
from proposed as p
left join versioned as v
    on v.org_id = p.org_id
    and v.external_id = p.external_id;
