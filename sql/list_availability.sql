-- The busy and the free intervals of an organisation within a window, as pieces of the response JSON.
--
-- Parameters:
--   $1 int4         bucket of the organisation
--   $2 text         organisation
--   $3 timestamptz  start of the window
--   $4 timestamptz  end of the window, after its start
--   $5 int8         minimum length of a free interval in minutes; shorter ones are left out
--   $6 int8         maximum number of pieces; null: no limit
-- Result, one row per piece; concatenated in order they form one JSON object:
--   piece               text
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointments_start_idx.
--
-- Active appointments do not overlap, so of those that start at or before the start of the window only
-- the last one can reach into it.
with asked as (
    select tstzmultirange(tstzrange($3::timestamptz, $4::timestamptz)) as times
),
taken as materialized (
    select coalesce(range_agg(a.during), '{}') as times
    from appointments as a
    where a.bucket = $1::int4
        and a.org_id = $2::text
        and not a.cancelled
        and lower(a.during) >= coalesce(
            (
                select lower(reaching.during)
                from appointments as reaching
                where reaching.bucket = $1::int4
                    and reaching.org_id = $2::text
                    and not reaching.cancelled
                    and lower(reaching.during) <= $3::timestamptz
                order by lower(reaching.during) desc
                limit 1
            ),
            '-infinity'
        )
        and lower(a.during) < $4::timestamptz
),
intervals as (
    select 'busy' as kind, busy.during
    from asked
    cross join taken
    cross join lateral unnest(taken.times * asked.times) as busy (during)
    union all
    select 'free' as kind, free.during
    from asked
    cross join taken
    cross join lateral unnest(asked.times - taken.times) as free (during)
    where upper(free.during) - lower(free.during) >= $5::int8 * interval '1 minute'
)
select pieces.piece as piece
from (
    select
        1 as section,
        null::timestamptz as start,
        '{"from":"' || instant_text($3::timestamptz) || '","to":"' || instant_text($4::timestamptz)
        || '","busy":[' as piece
    union all
    select
        case i.kind when 'busy' then 2 else 4 end as section,
        lower(i.during) as start,
        case when lag(i.kind) over (partition by i.kind order by i.during) is null then '' else ',' end
        || '{"start":"' || instant_text(lower(i.during)) || '","end":"' || instant_text(upper(i.during))
        || '"}' as piece
    from intervals as i
    union all
    select 3 as section, null as start, '],"free":[' as piece
    union all
    select 5 as section, null as start, ']}' as piece
) as pieces
order by pieces.section, pieces.start
limit $6::int8;
