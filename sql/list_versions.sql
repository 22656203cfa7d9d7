-- The versions of one appointment, oldest first, as response JSON.
--
-- Parameters:
--   $1 text         organisation
--   $2 text         external id
--   $3 timestamptz  only those accepted after this instant; null: all
--   $4 int8         maximum number of versions; null: no limit
-- Result, one row per version:
--   version             text         a JSON object
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointments_external_id_key; appointment_versions_received_key, which also provides the order.
select version_json(v) as version
from appointment_versions as v
where v.org_id = $1::text
    and v.appointment_id = (
        select a.id
        from appointments as a
        where a.org_id = $1::text
            and a.external_id = $2::text
    )
    and v.received_at > coalesce($3::timestamptz, '-infinity')
order by v.received_at
limit $4::int8;
