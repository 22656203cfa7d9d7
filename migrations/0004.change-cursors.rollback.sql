drop function change_cursor(bigint, timestamptz, uuid);
