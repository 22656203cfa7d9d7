-- The cursor of the last change of each of the given organisations.
--
-- Parameters:
--   $1 text[]       organisations
-- Result, one row per element:
--   org_id              text
--   last_change         text         its cursor; 0: none yet
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointment_versions_pkey, one lookup per organisation.
select
    asked.org_id as org_id,
    coalesce(
        (
            select change_cursor(v.sequence_number, v.received_at, v.appointment_id)
            from appointment_versions as v
            where v.org_id = asked.org_id
            order by v.sequence_number desc
            limit 1
        ),
        '0'
    ) as last_change
from unnest($1::text[]) as asked (org_id);
