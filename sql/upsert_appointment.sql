-- Creates or updates one appointment if the payload is the latest, and records the version.
--
-- Parameters:
--   $1 text         organisation
--   $2 text         external id
--   $3 timestamptz  start
--   $4 timestamptz  end, after the start
--   $5 timestamptz  createdAt of the payload
--   $6 timestamptz  updatedAt of the payload
--   $7 uuid         id of the row, if there is none yet; null: only wait for the lock, for the upserts
--                   that follow in the transaction
-- Result, always one row:
--   verdict             text         busy: the lock was not to be had, nothing is decided
--                                    ok: written, as the version that follows
--                                    stale: an equal or a later updatedAt is held already
--                                    conflict: the neighbour that follows is in the way
--                                    locked: the lock is held, and nothing else was asked for
--   version             int4         of the row written, if ok
--   blocker_external_id text         of the active neighbour, if conflict
--   blocker_start       timestamptz
--   blocker_end         timestamptz
-- Lock: the organisation's advisory lock, tried or waited for, held to the end of the transaction.
-- Errors: 55P03 if the lock does not come within the lock timeout.
--   23P01 if an overlapping row was committed between the snapshot and the lock. Then the
--   payload is not stale: do update's where is looked at before the exclusion constraint is.
-- Indexes: appointments_external_id_key, appointments_start_idx.
--
-- The snapshot is older than the lock, so current and neighbour may miss the newest rows; on conflict
-- and the constraint see them. Every verdict was true at the snapshot or at the lock.
with locked as materialized (
    select case
        when $7::uuid is null then pg_advisory_xact_lock(hashtextextended($1::text, 0)) is not null
        else pg_try_advisory_xact_lock(hashtextextended($1::text, 0))
    end as held
),
-- The row we hold: looked at only where a neighbour is in the way, to tell stale from conflict.
current as (
    select c.payload_updated_at >= $6::timestamptz as latest
    from appointments as c
    where c.org_id = $1::text
        and c.external_id = $2::text
),
-- Active appointments do not overlap, so they end in the order in which they start: only the last
-- one that starts before our end can reach past our start.
neighbour as (
    select n.external_id, n.during
    from appointments as n
    where n.org_id = $1::text
        and not n.cancelled
        and lower(n.during) < $4::timestamptz
        and n.external_id <> $2::text
    order by lower(n.during) desc
    limit 1
),
-- Found here, a conflict costs a look; found by the constraint, a dead row and an error in the log.
blocker as (
    select n.external_id, n.during
    from neighbour as n
    where upper(n.during) > $3::timestamptz
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
        version
    )
    select
        $7::uuid,
        $1::text,
        $2::text,
        tstzrange($3::timestamptz, $4::timestamptz),
        $5::timestamptz,
        $6::timestamptz,
        clock_timestamp(),
        1
    from locked
    where locked.held
        and $7::uuid is not null
        and not exists (select from blocker)
    on conflict (org_id, external_id) do update set
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
        held.cancelled
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
        cancelled
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
        u.cancelled
    from upserted as u
    returning version
)
select
    case
        when not locked.held then 'busy'
        when $7::uuid is null then 'locked'
        when versioned.version is not null then 'ok'
        when blocker.external_id is null or (select c.latest from current as c) then 'stale'
        else 'conflict'
    end as verdict,
    versioned.version as version,
    blocker.external_id as blocker_external_id,
    lower(blocker.during) as blocker_start,
    upper(blocker.during) as blocker_end
from locked
left join versioned on true
left join blocker on true;
