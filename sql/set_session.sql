-- Sets parameters for the rest of this session.
--
-- As startup parameters, PgBouncer would refuse most of them. Without transaction_timeout, nothing ends a
-- transaction whose client has halted in the middle of a pipeline: the session is neither idle nor running a
-- statement, and it keeps its locks.
--
-- Parameters:
--   $1 text           a JSON object, values by name
-- Result, one row per parameter:
--   set_config          text
-- Lock: none.
-- Errors: 42704 for a parameter that this version does not have.
-- Indexes: none.
select set_config(p.key, p.value, false) as set_config
from json_each_text($1::text::json) as p;
