-- The active appointments of an organisation, as the JSON of the answer, by start, then external id.
--
-- Parameters: a filter that is null lets everything through.
--   $1 text         organisation
--   $2 timestamptz  only those with start <= instant < end
--   $3 timestamptz  only those that end after it
--   $4 timestamptz  only those that start before it
--   $5 text         only the one with this external id
--   $6 timestamptz  only those after this place of the order: start
--   $7 text         and external id
--   $8 int8         so many at most; null: all
-- Result, a row an appointment, or one row without, if there is none:
--   last_change         int8         number of the organisation's last change; 0: none yet
--   appointment         text         a JSON object
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointments_start_idx, which also gives the order: active ones never start together;
--   appointments_external_id_key, appointment_versions_pkey.
--
-- One range of starts serves every filter under one plan: active appointments do not overlap, so
-- only the last one that starts at or before an instant can hold it. "$2 is null or during @> $2"
-- needs a plan of its own each time: 0.63 ms a read against 0.27.
--
-- Who builds the JSON, medians in ms on PostgreSQL 18, 2 cores, asyncpg included:
--                                           1 row   10,000 rows
--   text concatenated here                   0.6          67
--   a text a row, joined in Python           0.6          68
--   json_agg here                            0.6         112
--   rows encoded by msgspec                  0.4         207
with own as materialized (
    -- The start of the appointment that is asked for alone; infinity: there is none.
    select
        case
            when $5::text is not null then coalesce(
                (
                    select lower(a.during)
                    from appointments as a
                    where a.org_id = $1::text
                        and a.external_id = $5::text
                ),
                'infinity'
            )
        end as start
),
asked as materialized (
    select
        coalesce(
            (
                select max(v.sequence_number)
                from appointment_versions as v
                where v.org_id = $1::text
            ),
            0
        ) as last_change,
        greatest($2::timestamptz, $3::timestamptz) as ends_after,
        greatest(
            '-infinity',
            $6::timestamptz,
            own.start,
            (
                select max(lower(reaching.during))
                from appointments as reaching
                where reaching.org_id = $1::text
                    and not reaching.cancelled
                    and lower(reaching.during) <= greatest($2::timestamptz, $3::timestamptz)
            )
        ) as first_start,
        least('infinity', $2::timestamptz, $4::timestamptz - interval '1 microsecond', own.start) as last_start
    from own
)
select
    asked.last_change as last_change,
    listed.appointment as appointment
from asked
left join lateral (
    select
        '{' || appointment_members(
            a.id,
            a.org_id,
            a.external_id,
            a.during,
            a.payload_created_at,
            a.payload_updated_at,
            a.version
        ) || '}' as appointment
    from appointments as a
    where a.org_id = $1::text
        and not a.cancelled
        and lower(a.during) between asked.first_start and asked.last_start
        and (upper(a.during) > asked.ends_after) is not false
        and (a.external_id = $5::text) is not false
        and ((lower(a.during), a.external_id) > ($6::timestamptz, $7::text)) is not false
    order by lower(a.during)
    limit $8::int8
) as listed on true;
