-- The accepted changes of an organisation in commit order, as response JSON.
--
-- Parameters:
--   $1 int4         bucket of the organisation
--   $2 text         organisation
--   $3 int8         only those after this sequence number; 0: from the beginning
--   $4 text         cursor of the change with that number
--   $5 int8         maximum number of changes; null: no limit
-- Result, one row per change; if there is none, one row with only known:
--   known               bool         whether the change that the cursor names is in this history
--   cursor              text         the cursor that continues after this change
--   change              text         a JSON object
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointment_versions_pkey, which also provides the order.
--
-- A sequence number is drawn under the organisation's lock, which is held until the commit. A snapshot
-- that contains a change therefore contains all changes of the organisation with lower numbers, and a
-- change can never appear behind a cursor. In another history, such as a restored backup, the number may be
-- missing or belong to another change: nothing is listed then, since changes would be skipped.
with named as materialized (
    select
        $3::int8 = 0
        or exists (
            select
            from appointment_versions as v
            where v.bucket = $1::int4
                and v.org_id = $2::text
                and v.sequence_number = $3::int8
                and change_cursor(v.sequence_number, v.received_at, v.appointment_id) = $4::text
        ) as known
)
select
    named.known as known,
    listed.cursor as cursor,
    listed.change as change
from named
left join lateral (
    select
        change_cursor(v.sequence_number, v.received_at, v.appointment_id) as cursor,
        version_json(
            v.appointment_id,
            v.org_id,
            v.external_id,
            v.during,
            v.payload_created_at,
            v.payload_updated_at,
            v.version,
            v.cancelled,
            v.received_at
        ) as change
    from appointment_versions as v
    where named.known
        and v.bucket = $1::int4
        and v.org_id = $2::text
        and v.sequence_number > $3::int8
    order by v.sequence_number
    limit $5::int8
) as listed on true;
