-- All appointments of an organisation, including cancelled ones, for its calendar feed.
--
-- Parameters:
--   $1 text         organisation
--   $2 int8         maximum number of appointments; null: no limit
-- Result, one row per appointment; if there is none, one row with only last_change:
--   last_change         text         cursor of the organisation's last change; 0: none yet
--   id                  uuid
--   external_id         text
--   start               timestamptz
--   end                 timestamptz
--   payload_created_at  timestamptz
--   received_at         timestamptz  when its last change was accepted
--   version             int4
--   cancelled           bool
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointments_external_id_key, which also provides the order;
--   appointment_versions_pkey.
with changes as (
    select coalesce(
        (
            select change_cursor(v.sequence_number, v.received_at, v.appointment_id)
            from appointment_versions as v
            where v.org_id = $1::text
            order by v.sequence_number desc
            limit 1
        ),
        '0'
    ) as last_change
)
select
    changes.last_change as last_change,
    listed.id as id,
    listed.external_id as external_id,
    lower(listed.during) as start,
    upper(listed.during) as "end",
    listed.payload_created_at as payload_created_at,
    listed.received_at as received_at,
    listed.version as version,
    listed.cancelled as cancelled
from changes
left join lateral (
    select
        a.id,
        a.external_id,
        a.during,
        a.payload_created_at,
        a.received_at,
        a.version,
        a.cancelled
    from appointments as a
    where a.org_id = $1::text
    order by a.external_id
    limit $2::int8
) as listed on true;
