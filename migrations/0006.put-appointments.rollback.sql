drop function put_appointments(
    integer, text[], text[], timestamptz[], timestamptz[], timestamptz[], timestamptz[], boolean[], uuid[],
    boolean
);
