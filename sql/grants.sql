-- Lets a role run the other statements, and do nothing else to our tables.
--
-- What it may do already is taken from it first; run all of them in one transaction, so that who serves
-- meanwhile notices nothing. It can neither delete nor truncate, versions it can only add, and of an
-- appointment it can change only what an update brings.
--
-- Parameters:
--   $1 text           the role
-- Result, a row a statement to be run, in this order:
--   statement           text
-- Lock: none.
-- Errors: none of its own.
-- Indexes: none.
select format(g.statement, current_schema(), $1::text) as statement
from (
    values
        (1, 'revoke all on appointments, appointment_versions, _yoyo_migration from %2$I'),
        (2, 'grant usage on schema %1$I to %2$I'),
        (3, 'grant select on appointments, appointment_versions, _yoyo_migration to %2$I'),
        (4, 'grant insert (id, org_id, external_id, during, payload_created_at, payload_updated_at, received_at,'
            ' version, cancelled) on appointments to %2$I'),
        (5, 'grant update (during, payload_created_at, payload_updated_at, received_at, version, cancelled)'
            ' on appointments to %2$I'),
        (6, 'grant insert (appointment_id, org_id, external_id, during, payload_created_at, payload_updated_at,'
            ' received_at, version, cancelled) on appointment_versions to %2$I')
) as g (place, statement)
order by g.place;
