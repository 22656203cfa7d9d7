-- The accepted changes of an organisation in commit order, as response JSON.
--
-- Parameters:
--   $1 text         organisation
--   $2 int8         only those after this sequence number; 0: from the beginning
--   $3 int8         maximum number of changes; null: no limit
-- Result, one row per change:
--   sequence_number     int8         the cursor that continues after this change
--   change              text         a JSON object
-- Lock: none.
-- Errors: none of its own.
-- Indexes: appointment_versions_pkey, which also provides the order.
--
-- A sequence number is drawn under the organisation's lock, which is held until the commit. A snapshot
-- that contains a change therefore contains all changes of the organisation with lower numbers, and a
-- change can never appear behind a cursor.
select
    v.sequence_number as sequence_number,
    version_json(v) as change
from appointment_versions as v
where v.org_id = $1::text
    and v.sequence_number > $2::int8
order by v.sequence_number
limit $3::int8;
