"""Settings: read once from the environment and `.env` into one frozen struct.

A limit that operators need not change is a constant next to the code that uses it, with the unit in its name.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from dotenv.parser import parse_stream
from msgspec import Meta, Struct

from service import database_url
from service.problems import StartError

ORIGINS_FORM = "expected origins like https://app.example, with commas between, or *"
# An origin as browsers send it (RFC 6454, section 6.2); any other spelling would never match.
ORIGIN = re.compile(r"\*|https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
SECRET = re.compile("pass|secret|token|key|sig", re.IGNORECASE)  # in the name of a URL's option
PASSWORD = re.compile("^([^/#]*//[^/#:]*):[^/#]*@")  # of a URL without its query
QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
INTEGER_MAX = 2_147_483_647  # of PostgreSQL's settings
Positive = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]
NotNegative = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]


class Settings(Struct, frozen=True, kw_only=True, rename=str.upper):
    """All settings. In the environment their names are in upper case; a unit ends the name. Limits are per process."""

    database_url: str = ""  # empty: the embedded PostgreSQL
    owner_database_url: str = ""  # for migrations; empty: database_url
    read_database_url: str = ""  # hot standbys
    read_lag_ms_max: Positive = 1_000
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 3000  # 0: any free port
    workers: Positive = 1  # processes
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    cors_origins: str = ""
    auth_secret: str = ""
    auth_public_key_file: str = ""
    auth_jwks_url: str = ""  # at most one of these three; without any, access is open
    auth_algorithms: str = ""
    auth_audience: str = ""
    auth_issuer: str = ""
    auth_leeway_seconds: NotNegative = 10
    auth_organisations_claim: str = "organisations"
    auth_scope_claim: str = "scope"
    auth_token: str = ""  # sent by import and export
    docs_open: bool = True
    metrics_open: bool = False
    connections_max: Positive = 10_000
    keep_alive_ms_max: Positive = 65_000  # longer than the idle timeout of a load balancer in front
    buffer_bytes_max: Positive = 268_435_456  # of incomplete bodies, and again of unread answers
    pool_connections_max: Positive = 10
    stream_ms_max: Positive = 60_000
    writes_waiting_max: Positive = 1_024
    write_wait_ms_max: Positive = 5_000
    write_connections_max: Positive = 4  # that write at a time where the tables are distributed
    statement_ms_max: Positive = 10_000
    statement_slow_ms: NotNegative = 200
    shutdown_drain_ms: NotNegative = 1_000
    shutdown_grace_ms: Positive = 10_000

    def __post_init__(self) -> None:
        for name, valid, fault in (
            ("database_url", not (wrong := fault_of(self.database_url)), wrong),
            ("owner_database_url", not (wrong := fault_of(self.owner_database_url)), wrong),
            ("owner_database_url", self.database_url, "it needs DATABASE_URL, with the role that serves"),
            ("read_database_url", not (wrong := fault_of(self.read_database_url)), wrong),
            ("read_database_url", self.database_url, "it needs DATABASE_URL, with the primary"),
            ("auth_jwks_url", is_web_url(self.auth_jwks_url), "expected a URL like https://issuer.example/keys"),
            ("cors_origins", all(map(ORIGIN.fullmatch, self.origins())), ORIGINS_FORM),
        ):
            if getattr(self, name) and not valid:
                raise ValueError(f"{fault} - at `$.{name.upper()}`")

    def url(self) -> str:
        """The address of the service on this machine."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def origins(self) -> list[str]:
        """Origins of pages that may call the API."""
        return [origin for part in self.cors_origins.split(",") if (origin := part.strip())]

    def authenticates(self) -> bool:
        return bool(self.auth_secret or self.auth_public_key_file or self.auth_jwks_url)

    def masked(self) -> dict[str, str | int]:
        """All settings without secrets, for the log."""
        secrets = {name: "***" for name in ("auth_secret", "auth_token") if getattr(self, name)}
        urls = ("database_url", "owner_database_url", "read_database_url", "auth_jwks_url")
        return msgspec.structs.asdict(self) | secrets | {name: masked_url(getattr(self, name)) for name in urls}


def fault_of(url: str) -> str:
    """What is wrong with the URL of a database; the drivers' errors would quote it, password included."""
    try:
        database_url.parse(url)
    except ValueError as error:
        return str(error)
    return ""


def is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # raises for labels that no name can have
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def masked_url(url: str) -> str:
    """Not by urlsplit, which refuses some lists of hosts."""
    place, mark, query = url.partition("?")
    shown = "&".join(f"{name}={'***' if SECRET.search(name) else value}" for name, value in parse_qsl(query))
    return PASSWORD.sub(r"\1:***@", place) + mark + shown


def read_settings(environment: Mapping[str, str] = os.environ, file: Path = Path(".env")) -> Settings:
    """Raises StartError, naming the setting or the line, if one is unknown or malformed."""
    values = read_file(file) if file.is_file() else {}
    values |= {name: environment[name] for name in Settings.__struct_encode_fields__ if name in environment}
    given = {name: text for name, value in values.items() if (text := value.strip())}
    for name, value in given.items():
        if name.endswith("DATABASE_URL"):  # `docker run --env-file` keeps the quotes
            given[name] = QUOTED.sub(r"\2", value).strip()
    if "LOG_LEVEL" in given:
        given["LOG_LEVEL"] = given["LOG_LEVEL"].lower()
    try:
        return msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        reason, _, name = str(error).rstrip("`").partition(" - at `$.")
        raise StartError(f"Setting {name} is wrong: {reason[:1].lower()}{reason[1:]}.") from error


def check_database_urls(settings: Settings) -> list[str]:
    """The options that have no effect while serving. Raises StartError for one that the drivers cannot honour."""
    try:
        for name in ("read_database_url", "owner_database_url", "database_url"):
            urls = [url] if (url := getattr(settings, name)) else []
            if name == "read_database_url":
                urls = [one for url in urls for one in database_url.each_host(url)]
            ignored = [option for url in urls for option in database_url.without_effect(url)]
    except ValueError as error:
        raise StartError(f"Setting {name.upper()} is wrong: {error}.") from error
    return ignored


def read_file(file: Path) -> dict[str, str]:
    """Raises StartError for a line that is not `NAME=value`, or whose name is not a setting."""
    values = {}
    with file.open(encoding="utf-8", errors="replace") as stream:
        for binding in parse_stream(stream):
            text = binding.original.string
            line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
            if binding.error or (binding.key and binding.value is None):
                raise StartError(f"{file}, line {line}: expected NAME=value.")
            if binding.key and binding.key not in Settings.__struct_encode_fields__:
                raise StartError(f"{file}, line {line}: {binding.key} is not a setting.")
            if binding.key:
                values[binding.key] = binding.value or ""
    return values
