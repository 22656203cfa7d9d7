"""libpq's options: what becomes of each, which values are safe to take, and which come from the environment.

psycopg, which migrates, is libpq and knows all of its options. asyncpg, which serves, knows some, and would send any
other to the server as a setting. Source of the names and values: PostgreSQL 18, section 34.1.2.
"""

TARGET = ("host", "port", "user", "password", "dbname")
# What becomes of an option; without an entry here it is refused.
USES = {
    "both drivers": " ".join(TARGET) + " passfile sslmode sslrootcert sslcert sslkey sslpassword sslcrl sslnegotiation "
    "ssl_min_protocol_version ssl_max_protocol_version target_session_attrs krbsrvname gsslib connect_timeout",
    # asyncpg sends them to the server, as libpq does.
    "both drivers, as startup parameters": "application_name options",
    # Harmless where asyncpg does without.
    "psycopg alone": "channel_binding gssencmode gssdelegation fallback_application_name load_balance_hosts sslsni "
    "sslcertmode sslcompression sslkeylogfile min_protocol_version max_protocol_version tcp_user_timeout "
    "keepalives keepalives_idle keepalives_interval keepalives_count",
    # The service speaks UTF-8 in an ordinary session; the others are for Prisma, node-postgres, Doctrine or a provider.
    "dropped": "client_encoding replication pgbouncer schema connection_limit pool_timeout socket_timeout "
    "statement_cache_size sslaccept uselibpqcompat supa workaround serverVersion charset",
}
USE = {name: use for use, names in USES.items() for name in names.split()}
WITHOUT_EFFECT = ("psycopg alone", "dropped")  # on requests
ASYNCPG = {"host": "host", "port": "port", "user": "user", "password": "password", "dbname": "database"}
TLS = "use sslmode=verify-full with sslrootcert=system or a file instead"
WRITES = "the service writes, so it needs any, primary or read-write"
# Options of which only some values are safe to take: the values, and what to do instead of another.
VALUES: dict[str, tuple[tuple[str, ...], str]] = {
    "sslmode": (
        ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
        "expected disable, allow, prefer, require, verify-ca or verify-full",
    ),
    "target_session_attrs": (("any", "primary", "read-write"), WRITES),
    "channel_binding": (("disable", "prefer"), f"the driver has no channel binding; {TLS}"),
    "gssencmode": (("disable", "prefer"), f"the driver has no GSS encryption; {TLS}"),
    "min_protocol_version": (("3.0",), "the driver speaks version 3.0 of the protocol only"),
    "sslcertmode": (("allow",), "leave it out, and give sslcert if the server asks for a certificate"),
    "replication": (("false", "off", "no", "0"), "the service needs an ordinary session; leave it out"),
    "pgbouncer": (("false",), "the service needs sessions; use the URL of the database or of a session pooler"),
    "schema": (("public",), "write options=-c%20search_path=NAME instead"),
    "sslaccept": (("accept_invalid_certs",), TLS),
    # Without any safe value:
    "service": ((), "write the options of the service file into the URL"),
    "require_auth": ((), f"the driver cannot refuse a method of authentication; {TLS}"),
    "requirepeer": ((), "the driver does not check who runs the server"),
    "hostaddr": ((), "write the address as the host"),
    "sslcrldir": ((), "use sslcrl with a file instead"),
    "scram_client_key": ((), "use password instead"),
    "scram_server_key": ((), "use password instead"),
}
# Read where the URL does not say otherwise: by both drivers, but each completes a list of hosts in its own way, or by
# libpq alone.
ENVIRONMENT = {
    "host": "PGHOST",
    "port": "PGPORT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "hostaddr": "PGHOSTADDR",
    "requirepeer": "PGREQUIREPEER",
    "service": "PGSERVICE",
    "options": "PGOPTIONS",
    "sslrootcert": "PGSSLROOTCERT",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "require_auth": "PGREQUIREAUTH",
}
