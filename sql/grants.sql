-- Builds the statements that grant a role exactly the privileges that the service needs on its tables.
--
-- The role's existing privileges are revoked first. Run all statements in one transaction, so that a
-- service that is already running under this role is not interrupted. The role can neither delete nor
-- truncate, can only insert versions, and can update only those columns of an appointment that a later
-- payload changes.
--
-- Parameters:
--   $1 text           the role
-- Result, one row per statement, in the order in which to run them:
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
            ' version, cancelled, bucket) on appointments to %2$I'),
        (5, 'grant update (during, payload_created_at, payload_updated_at, received_at, version, cancelled)'
            ' on appointments to %2$I'),
        (6, 'grant insert (appointment_id, org_id, external_id, during, payload_created_at, payload_updated_at,'
            ' received_at, version, cancelled, bucket) on appointment_versions to %2$I')
) as g (place, statement)
order by g.place;
