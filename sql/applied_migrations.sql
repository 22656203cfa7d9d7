-- The migrations that yoyo has applied to this database.
--
-- Parameters: none.
-- Result, one row per migration:
--   migration_id        varchar
-- Lock: none.
-- Errors: 42P01 if no migration has ever been applied.
-- Indexes: none.
select m.migration_id as migration_id
from _yoyo_migration as m;
