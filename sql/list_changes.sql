-- The accepted changes of an organisation in the order of their commits, as the JSON of the answer.
--
-- Parameters:
--   $1 text         organisation
--   $2 int8         only those after this one; 0: from the beginning
--   $3 int8         so many at most; null: all
-- Result, a row a change:
--   sequence_number     int8         the cursor after it
--   change              text         a JSON object
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointment_versions_pkey, which also gives the order.
--
-- A number is drawn under the organisation's lock, which is held until the commit: whoever sees a change sees
-- all of the organisation with lower numbers, so nothing comes up behind a cursor.
select
    v.sequence_number as sequence_number,
    version_json(v) as change
from appointment_versions as v
where v.org_id = $1::text
    and v.sequence_number > $2::int8
order by v.sequence_number
limit $3::int8;
