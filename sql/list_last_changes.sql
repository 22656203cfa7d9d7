-- The cursor of the last change of each of the given organisations of one bucket.
--
-- Parameters:
--   $1 int4         bucket of the organisations
--   $2 text[]       organisations
-- Result, one row per element:
--   org_id              text
--   last_change         text         its cursor; 0: none yet
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointment_versions_pkey, one lookup per organisation.
--
-- A join, since Citus refuses a correlated subquery of a set-returning function.
select
    asked.org_id as org_id,
    coalesce(last.change, '0') as last_change
from unnest($2::text[]) as asked (org_id)
left join lateral (
    select change_cursor(v.sequence_number, v.received_at, v.appointment_id) as change
    from appointment_versions as v
    where v.bucket = $1::int4
        and v.org_id = asked.org_id
    order by v.sequence_number desc
    limit 1
) as last on true;
