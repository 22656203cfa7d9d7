-- The version of the Citus extension in this database.
--
-- Parameters: none.
-- Result, always one row:
--   version             text, null without the extension
-- Lock: none.
-- Errors: none.
-- Indexes: pg_extension_name_index.
select (select e.extversion from pg_extension as e where e.extname = 'citus') as version;
