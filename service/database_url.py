"""`DATABASE_URL` as libpq, asyncpg and yoyo each understand it: one database, and no option lost without a word.

psycopg, which migrates, is libpq and knows all of its options. asyncpg, which serves, knows some, and would send any
other to the server as a setting. Source of the names and values: PostgreSQL 18, section 34.1.2.
"""

import os
import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

FORM = "expected postgresql://user:password@host:5432/database, with @ : / ? # % in the password percent-encoded"
FAULTY_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})|%00")
PLACE = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%25\w+)?)\]|([^:\[\]]*))(?::([0-9]*))?")
CONNECT_SECONDS_MAX = 10  # of psycopg, where the URL has no connect_timeout
PEM_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")

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
# Read by libpq alone, where the URL does not say otherwise.
ENVIRONMENT = {
    "hostaddr": "PGHOSTADDR",
    "options": "PGOPTIONS",
    "sslrootcert": "PGSSLROOTCERT",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "require_auth": "PGREQUIREAUTH",
}


def parse(url: str) -> dict[str, str]:
    """libpq's parameters by name. As for libpq, the query overrides what stands before it, and `+` is no space.
    Raises ValueError; its text quotes no part of the URL that may belong to a password."""
    scheme, _, rest = url.partition("://")
    if not re.fullmatch(r"postgres(ql)?(\+\w+)?", scheme, re.IGNORECASE):  # SQLAlchemy's +asyncpg, +psycopg
        raise ValueError(FORM)
    if re.search(r"[\s\x00-\x1f\x7f]", rest):
        raise ValueError("it contains white space, which must be percent-encoded (%20)")
    if FAULTY_ESCAPE.search(rest):
        raise ValueError("a % that is not part of a percent-encoding must be written as %25, and %00 is not allowed")
    rest, _, query = rest.partition("?")
    authority, _, database = rest.partition("/")
    credentials, _, place = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    if "," in place:
        raise ValueError("it names several hosts; name the one that accepts writes")
    if not (found := PLACE.fullmatch(place)) or "#" in url or "@" in database or not splits(url):
        raise ValueError(FORM)
    names = dict(zip(TARGET, (found[1] or found[2], found[3], user, password, database), strict=True))
    try:
        given = {name: unquote(value, errors="strict") for name, value in names.items() if value}
        parameters = given | parse_query(query)
    except UnicodeDecodeError:
        raise ValueError("it is not percent-encoded UTF-8") from None
    check_target(parameters)
    return parameters


def splits(url: str) -> bool:
    """Whether Python can split the URL too; the log masks its password that way."""
    try:
        return bool(urlsplit(url))
    except ValueError:
        return False


def parse_query(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, separator, value = (unquote(part, errors="strict") for part in pair.partition("="))
        if not separator or not re.fullmatch(r"\w+", name):
            raise ValueError("after the ? it needs option=value, with & between")
        if name == "ssl":  # JDBC's, which libpq takes too, and asyncpg's
            name, value = "sslmode", {"true": "require", "false": "disable"}.get(value, value)
        if name in options:
            raise ValueError(f"option {name} is given twice")
        if value:
            options[name] = value
    return options


def check_target(parameters: dict[str, str]) -> None:
    if "dbname" not in parameters:
        raise ValueError(f"it names no database; {FORM}")
    if "," in parameters.get("host", ""):
        raise ValueError("it names several hosts; name the one that accepts writes")
    if not (host := parameters.get("host", "")).startswith("/"):
        try:
            host.encode("idna")  # as Python does to look it up
        except UnicodeError:
            raise ValueError("the host is not a possible name") from None
    port = parameters.get("port", "1")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise ValueError("the port must be a number from 1 to 65535")


def checked(url: str) -> dict[str, str]:
    """As `parse`, with options that both drivers can honour. Raises ValueError for one that asks for more."""
    given = parse(url)
    inherited = {name: os.environ[variable] for name, variable in ENVIRONMENT.items() if os.environ.get(variable)}
    parameters = inherited | given
    for name, value in parameters.items():
        allowed, advice = VALUES.get(name, (None, ""))
        origin = "" if name in given else f" (from {ENVIRONMENT[name]})"
        if allowed is not None and value not in allowed:
            shown = f"{name}={value}" if allowed and re.fullmatch(r"[\w.-]+", value) else name
            raise ValueError(f"option {shown}{origin} is not supported: {advice}")
        if allowed is None and name not in USE:
            raise ValueError(f"option {name} is unknown or not supported; leave it out")
    seconds = parameters.get("connect_timeout", "0")
    if not re.fullmatch("-?[0-9]{1,9}", seconds):
        raise ValueError("option connect_timeout must be a number of seconds")
    if int(seconds) <= 0:  # no limit for libpq; here the default
        parameters.pop("connect_timeout", None)
    if parameters.get("sslrootcert") == "system":
        if parameters.setdefault("sslmode", "verify-full") != "verify-full":  # as libpq
            raise ValueError("option sslrootcert=system needs sslmode=verify-full")
        parameters["sslrootcert"] = system_certificates()
    return parameters


def system_certificates() -> str:
    """A file, since asyncpg takes no word for it, and psycopg's own OpenSSL looks for it elsewhere."""
    for file in (ssl.get_default_verify_paths().cafile, *PEM_FILES):
        if file and Path(file).is_file():
            return file
    raise ValueError("option sslrootcert=system: this machine has no file of certificates; give the path of one")


def without_effect(url: str) -> list[str]:
    """The options that do not reach the connections that serve."""
    return [name for name in checked(url) if USE[name] in WITHOUT_EFFECT]


def for_psycopg(url: str) -> dict[str, Any]:
    """The arguments of psycopg.connect."""
    given = {name: value for name, value in checked(url).items() if USE[name] != "dropped"}
    return {"connect_timeout": str(CONNECT_SECONDS_MAX)} | given


def for_yoyo(url: str) -> str:
    """yoyo passes the query on to psycopg as it is; what stands before it, it would read in its own way."""
    return f"postgresql+psycopg:///?{urlencode(for_psycopg(url))}"


def for_asyncpg(url: str) -> dict[str, Any]:
    """Arguments of asyncpg.connect. It takes the options of TLS in a URL only, and would read a host there in its own
    way."""
    parameters = checked(url)
    arguments: dict[str, Any] = {ASYNCPG[name]: parameters.pop(name) for name in ASYNCPG if name in parameters}
    arguments |= {name: [arguments[name]] for name in ("host", "port") if name in arguments}
    if seconds := parameters.pop("connect_timeout", ""):
        arguments["timeout"] = float(seconds)
    options = {name: value for name, value in parameters.items() if USE[name] == "both drivers"}
    startup = {name: value for name, value in parameters.items() if USE[name] == "both drivers, as startup parameters"}
    return {"dsn": f"postgresql:///?{urlencode(options)}", "server_settings": startup} | arguments
