-- The appointments of an organisation as they were recorded at an instant, as response JSON.
--
-- Parameters: a filter that is null matches everything.
--   $1 int4         bucket of the organisation
--   $2 text         organisation
--   $3 timestamptz  only those with start <= instant < end
--   $4 timestamptz  only those that end after this instant
--   $5 timestamptz  only those that start before this instant
--   $6 text         only the one with this external id
--   $7 timestamptz  only those after this position in the order: start
--   $8 text         and external id
--   $9 bool         true: include cancelled ones, and give every object a "cancelled" member
--   $10 timestamptz  the instant: the last version accepted at or before it counts
--   $11 int8        maximum number of appointments; null: no limit
-- Result, one row per appointment; if there is none, one row with only last_change:
--   last_change         text         cursor of the organisation's last change; 0: none yet
--   appointment         text         a JSON object
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointments_external_id_key, appointment_versions_received_key, appointment_versions_pkey.
--
-- Ordered by start, then external id. One index lookup finds the version of an appointment, so the cost
-- grows with the number of appointments of the organisation, and hardly with the number of versions.
select
    changes.last_change as last_change,
    listed.appointment as appointment
from (
    select coalesce(
        (
            select change_cursor(v.sequence_number, v.received_at, v.appointment_id)
            from appointment_versions as v
            where v.bucket = $1::int4
                and v.org_id = $2::text
            order by v.sequence_number desc
            limit 1
        ),
        '0'
    ) as last_change
) as changes
left join lateral (
    select
        '{' || appointment_members(
            v.appointment_id,
            v.org_id,
            v.external_id,
            v.during,
            v.payload_created_at,
            v.payload_updated_at,
            v.version
        )
        || case when $9::bool then ',"cancelled":' || v.cancelled else '' end || '}' as appointment
    from appointments as known
    cross join lateral (
        select *
        from appointment_versions as version
        where version.bucket = $1::int4
            and version.org_id = $2::text
            and version.appointment_id = known.id
            and version.received_at <= $10::timestamptz
        order by version.received_at desc
        limit 1
    ) as v
    where known.bucket = $1::int4
        and known.org_id = $2::text
        -- External ids have at most 255 characters, so none sorts after this upper bound.
        and known.external_id between coalesce($6::text, '') and coalesce($6::text, repeat(chr(1114111), 256))
        and (not v.cancelled or $9::bool)
        and (lower(v.during) <= $3::timestamptz) is not false
        and (upper(v.during) > greatest($3::timestamptz, $4::timestamptz)) is not false
        and (lower(v.during) < $5::timestamptz) is not false
        and ((lower(v.during), v.external_id) > ($7::timestamptz, $8::text)) is not false
    order by lower(v.during), v.external_id
    limit $11::int8
) as listed on true;
