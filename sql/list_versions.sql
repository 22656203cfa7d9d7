-- The versions of one appointment, oldest first, as response JSON.
--
-- Parameters:
--   $1 int4         bucket of the organisation
--   $2 text         organisation
--   $3 text         external id
--   $4 timestamptz  only those accepted after this instant; null: all
--   $5 int8         maximum number of versions; null: no limit
-- Result, one row per version:
--   version             text         a JSON object
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointments_external_id_key; appointment_versions_received_key, which also provides the order.
select
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
    ) as version
from appointment_versions as v
where v.bucket = $1::int4
    and v.org_id = $2::text
    and v.appointment_id = (
        select a.id
        from appointments as a
        where a.bucket = $1::int4
            and a.org_id = $2::text
            and a.external_id = $3::text
    )
    and v.received_at > coalesce($4::timestamptz, '-infinity')
order by v.received_at
limit $5::int8;
