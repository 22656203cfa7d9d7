"""`DATABASE_URL` as libpq, asyncpg and yoyo each understand it: one database, on one host or on several of which one
accepts writes, and no option lost without a word (database_options.py)."""

import os
import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from service.database_options import ASYNCPG, ENVIRONMENT, TARGET, USE, VALUES, WITHOUT_EFFECT

FORM = "expected postgresql://user:password@host:5432/database, with @ : / ? # % in the password percent-encoded"
FAULTY_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})|%00")
PLACE = re.compile(r"(?:\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]+(?:%25\w+)?)\]|([^:\[\]]*))(?::([0-9]*))?")
PORT = "5432"
CONNECT_SECONDS_MAX = 10  # of psycopg, where the URL has no connect_timeout
CONNECT_SECONDS_MAX_OF_SEVERAL = 2  # each, since it tries them in turn
PEM_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


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
    places = [PLACE.fullmatch(part) for part in place.split(",")]
    if not all(places) or "#" in url or "@" in database:
        raise ValueError(FORM)
    host = ",".join(found[1] or found[2] for found in places if found)
    port = ",".join(found[3] or "" for found in places if found)
    names = dict(zip(TARGET, (host, port, user, password, database), strict=True))
    try:
        given = {name: unquote(value, errors="strict") for name, value in names.items() if value}
        parameters = given | parse_query(query)
    except UnicodeDecodeError:
        raise ValueError("it is not percent-encoded UTF-8") from None
    check_target(parameters)
    return parameters


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


def has_several_hosts(parameters: dict[str, str]) -> bool:
    return "," in parameters.get("host", "")


def check_target(parameters: dict[str, str]) -> None:
    if "dbname" not in parameters:
        raise ValueError(f"it names no database; {FORM}")
    hosts, ports = parameters.get("host", "").split(","), parameters.get("port", "").split(",")
    for host in hosts:
        if not host and len(hosts) > 1:
            raise ValueError("a host of the list is empty")
        if not host.startswith("/"):
            try:
                host.encode("idna")  # as Python does to look it up
            except UnicodeError:
                raise ValueError("the host is not a possible name") from None
    for port in filter(None, ports):
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
            raise ValueError("the port must be a number from 1 to 65535")
    if len(ports) not in (1, len(hosts)):
        raise ValueError(f"it names {len(ports)} ports for {len(hosts)} hosts")


def targeted(url: str) -> dict[str, str]:
    """As `parse`, with what libpq and asyncpg take from the environment; of several hosts each has its port."""
    inherited = {name: os.environ[variable] for name, variable in ENVIRONMENT.items() if os.environ.get(variable)}
    parameters = inherited | parse(url)
    check_target(parameters)
    if has_several_hosts(parameters):
        count, ports = parameters["host"].count(",") + 1, parameters.get("port", "").split(",")
        parameters["port"] = ",".join(port or PORT for port in (ports * count)[:count])
    return parameters


def each_host(url: str) -> list[str]:
    """The URL once for each of its hosts, to be connected to whether it accepts writes or not."""
    parameters = targeted(url) | {"target_session_attrs": "any"}  # not what the environment says
    names = [name for name in ("host", "port") if name in parameters]
    places = zip(*(parameters[name].split(",") for name in names), strict=True)
    each = [parameters | dict(zip(names, place, strict=True)) for place in places] or [parameters]
    return [f"postgresql:///?{urlencode(one, quote_via=quote)}" for one in each]


def place_of(url: str) -> str:
    """Host and port, for people."""
    parameters = targeted(url)
    return f"{parameters.get('host', '')}:{parameters.get('port', PORT)}"


def checked(url: str) -> dict[str, str]:
    """As `targeted`, with options that both drivers can honour. Raises ValueError for one that asks for more."""
    given, parameters = parse(url), targeted(url)
    for name, value in parameters.items():
        allowed, advice = VALUES.get(name, (None, ""))
        origin = "" if name in given else f" (from {ENVIRONMENT[name]})"
        if allowed is not None and value not in allowed:
            shown = f"{name}={value}" if allowed and re.fullmatch(r"[\w.-]+", value) else name
            raise ValueError(f"option {shown}{origin} is not supported: {advice}")
        if allowed is None and name not in USE:
            raise ValueError(f"option {name} is unknown or not supported; leave it out")
    if has_several_hosts(parameters) and parameters.get("target_session_attrs", "any") == "any":
        parameters["target_session_attrs"] = "read-write"  # any of the hosts, but the service writes
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
    seconds = CONNECT_SECONDS_MAX_OF_SEVERAL if has_several_hosts(given) else CONNECT_SECONDS_MAX
    return {"connect_timeout": str(seconds)} | given


def for_yoyo(url: str) -> str:
    """yoyo passes the query on to psycopg as it is; what stands before it, it would read in its own way."""
    return f"postgresql+psycopg:///?{urlencode(for_psycopg(url))}"


def for_asyncpg(url: str) -> dict[str, Any]:
    """Arguments of asyncpg.connect. It takes the options of TLS in a URL only, and would read a host there in its own
    way."""
    parameters = checked(url)
    arguments: dict[str, Any] = {ASYNCPG[name]: parameters.pop(name) for name in ASYNCPG if name in parameters}
    arguments |= {name: arguments[name].split(",") for name in ("host", "port") if name in arguments}
    if seconds := parameters.pop("connect_timeout", ""):
        arguments["timeout"] = float(seconds)
    options = {name: value for name, value in parameters.items() if USE[name] == "both drivers"}
    startup = {name: value for name, value in parameters.items() if USE[name] == "both drivers, as startup parameters"}
    return {"dsn": f"postgresql:///?{urlencode(options)}", "server_settings": startup} | arguments
