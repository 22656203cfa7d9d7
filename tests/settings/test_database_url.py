"""`DATABASE_URL` as hosting providers and other programs write it, seen by both drivers and by yoyo."""

import inspect
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from asyncpg import connect_utils
from psycopg.conninfo import conninfo_to_dict
from yoyo.connections import parse_uri

from service.database import schema
from service.database.connection import connect_options
from service.database.pool import open_database
from service.database_options import ENVIRONMENT, USE, VALUES
from service.database_url import PEM_FILES, each_host, for_asyncpg, for_psycopg, for_yoyo, parse
from service.problems import StartError
from service.settings import Settings, check_database_urls, masked_url, read_settings
from tests.databases import new_database, query
from tests.processes import clean_environment

SERVER_SETTINGS = connect_options(Settings(database_url="postgresql://h/d"))["server_settings"]
LIBPQ = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


def seen_by_asyncpg(url: str) -> tuple[Any, Any]:
    """The address and the parameters that asyncpg makes of its arguments."""
    [address], parameters = addresses_seen_by_asyncpg(url)
    return address, parameters


def addresses_seen_by_asyncpg(url: str) -> tuple[list[Any], Any]:
    options = connect_options(Settings(database_url=url))
    names = inspect.signature(connect_utils._parse_connect_arguments).parameters
    sizes = {"statement_cache_size": 100, "max_cached_statement_lifetime": 0, "max_cacheable_statement_size": 1024}
    arguments = dict.fromkeys(names) | sizes | {name: options[name] for name in options if name in names}
    addresses, parameters, _ = connect_utils._parse_connect_arguments(**arguments)
    return addresses, parameters


@pytest.mark.parametrize(
    ("url", "host", "port", "user", "password", "database"),
    [
        ("postgres://u:p@h:1/d", "h", 1, "u", "p", "d"),
        ("postgresql+asyncpg://u:p@h:1/d", "h", 1, "u", "p", "d"),
        ("postgresql+psycopg2://u:p@h:1/d", "h", 1, "u", "p", "d"),
        ("PostgreSQL://u:p@H.example:1/D", "H.example", 1, "u", "p", "D"),
        ("postgres://u:p@h/d", "h", 5432, "u", "p", "d"),
        ("postgres://u:p@h:/d", "h", 5432, "u", "p", "d"),
        ("postgres://u%40s:%40%3A%2F%23%3F%25%26%3D%2B%20%C3%A4@h/a%2Fb", "h", 5432, "u@s", "@:/#?%&=+ ä", "a/b"),
        ("postgres://u:a+b@h/d", "h", 5432, "u", "a+b", "d"),
        ("postgres://h/d?user=u&password=a+b%26c", "h", 5432, "u", "a+b&c", "d"),
        ("postgres://u@s:a@b:c@h:1/d", "h", 1, "u@s", "a@b:c", "d"),
        ("postgres://u:p@[::1]:1/d", "::1", 1, "u", "p", "d"),
        ("postgres://u:p@[2001:db8::7]/d", "2001:db8::7", 5432, "u", "p", "d"),
        ("postgres://u:p@/d?host=/cloudsql/a:b:c", "/cloudsql/a:b:c", 5432, "u", "p", "d"),
        ("postgres://u:p@%2Frun%2FPg:1/d", "/run/Pg", 1, "u", "p", "d"),
        ("postgres:///d?host=/run&port=1&user=u&password=p", "/run", 1, "u", "p", "d"),
        ("postgres://x:y@localhost:2/z?host=h&port=1&user=u&password=p&dbname=d", "h", 1, "u", "p", "d"),
    ],
)
def test_both_drivers_and_yoyo_see_the_same_target(
    url: str, host: str, port: int, user: str, password: str, database: str
) -> None:
    address, parameters = seen_by_asyncpg(url)
    assert address == (f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
    assert (parameters.user, parameters.password, parameters.database) == (user, password, database)
    expected = {"host": host, "user": user, "password": password, "dbname": database, "connect_timeout": "10"}
    given = for_psycopg(url)
    assert {"port": "5432"} | given == expected | {"port": str(port)}
    assert conninfo_to_dict(psycopg.conninfo.make_conninfo(**given)) == given
    for_driver = parse_uri(for_yoyo(url))
    assert (for_driver.args, for_driver.hostname, for_driver.port, for_driver.username) == (given, None, None, None)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("postgres://u:p@h1:1,h2:2/d", [("h1", 1), ("h2", 2)]),
        ("postgres://u:p@h1,h2:2/d", [("h1", 5432), ("h2", 2)]),
        ("postgres://u:p@h1,h2,h3/d", [("h1", 5432), ("h2", 5432), ("h3", 5432)]),
        ("postgres://u:p,x@h1:1,h2:/d", [("h1", 1), ("h2", 5432)]),
        ("postgres://u:p@[::1]:1,[::2],h3:3/d", [("::1", 1), ("::2", 5432), ("h3", 3)]),
        ("postgres://u:p@h1,[::2]:2/d", [("h1", 5432), ("::2", 2)]),
        ("postgres:///d?host=h1,::2&port=1,2", [("h1", 1), ("::2", 2)]),
        ("postgres:///d?host=h1,h2&port=7", [("h1", 7), ("h2", 7)]),
        ("postgres:///d?host=h1%2Ch2&port=1,", [("h1", 1), ("h2", 5432)]),
        ("postgres://h1%2Ch2:7/d", [("h1", 7), ("h2", 7)]),
        ("postgres://h1:1,h2:2/d?port=7", [("h1", 7), ("h2", 7)]),
        ("postgres://%2Frun%2Fa,%2Frun%2Fb:7/d", ["/run/a/.s.PGSQL.5432", "/run/b/.s.PGSQL.7"]),
        ("postgres:///d?host=/run/a,/run/b,h3&port=7", ["/run/a/.s.PGSQL.7", "/run/b/.s.PGSQL.7", ("h3", 7)]),
    ],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_both_drivers_see_the_same_hosts_and_look_for_the_one_that_accepts_writes(
    monkeypatch: pytest.MonkeyPatch, url: str, addresses: list[Any], *, by_environment: bool
) -> None:
    assert parse(url) == conninfo_to_dict(url)
    if by_environment:
        monkeypatch.setenv("PGHOST", parse(url)["host"])
        monkeypatch.setenv("PGPORT", parse(url)["port"])
        url = "postgresql:///d?user=u&password=p"
    for options, expected in (
        ("", "read-write"),
        ("target_session_attrs=any", "read-write"),
        ("target_session_attrs=read-write", "read-write"),
        ("target_session_attrs=primary", "primary"),
    ):
        whole = f"{url}{'&' if '?' in url else '?'}{options}"
        found, parameters = addresses_seen_by_asyncpg(whole)
        assert (found, parameters.target_session_attrs) == (addresses, expected)
        given = for_psycopg(whole)
        assert (given["target_session_attrs"], given["connect_timeout"]) == (expected, "2")
        hosts = zip(given["host"].split(","), given["port"].split(","), strict=True)
        assert [f"{h}/.s.PGSQL.{p}" if h.startswith("/") else (h, int(p)) for h, p in hosts] == addresses
        assert parse_uri(for_yoyo(whole)).args == given
        each = [seen_by_asyncpg(one) for one in each_host(whole)]
        assert [(address, found.target_session_attrs) for address, found in each] == [(a, "any") for a in addresses]
        assert {(found.user, found.password, found.database) for _, found in each} == {
            (parameters.user, parameters.password, parameters.database)
        }


def test_one_host_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("postgres://h/d", "postgres:///d", "postgres://h/d?target_session_attrs=any"):
        assert for_psycopg(url).get("target_session_attrs", "any") == "any"
        assert for_psycopg(url)["connect_timeout"] == "10"
        assert len(each_host(url)) == 1
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "read-write")
    assert for_psycopg("postgres://h/d")["target_session_attrs"] == "read-write"
    assert seen_by_asyncpg("postgres://h/d")[1].target_session_attrs == "read-write"
    [one] = each_host("postgres://h/d?target_session_attrs=standby")
    assert seen_by_asyncpg(one)[1].target_session_attrs == "any"


def test_passwords_of_a_list_of_hosts_are_masked() -> None:
    for url, shown in (
        ("postgres://u:s3cret@h1:1,h2:2/d?a=b", "postgres://u:***@h1:1,h2:2/d?a=b"),
        ("postgres://u:s3cr@t:x@h1,[::1]:2/d", "postgres://u:***@h1,[::1]:2/d"),
        ("postgres://u@[::1]:1,[::2]:2/d", "postgres://u@[::1]:1,[::2]:2/d"),
        ("postgres:///d?host=h1,h2&password=s3cret", "postgres:///d?host=h1,h2&password=***"),
        ("postgres://u:s3cret℀@h1,h2/d?p%61ssword=s3cret", "postgres://u:***@h1,h2/d?password=***"),
    ):
        assert masked_url(url) == shown
        for one in each_host(url):
            assert "s3cret" not in masked_url(one)


@pytest.mark.parametrize(
    "query_string",
    [
        "sslmode=require&channel_binding=prefer",
        "sslmode=require&supa=base-pooler.x",
        "sslmode=require&uselibpqcompat=true",
        "ssl=true&connect_timeout=15",
        "channel_binding=disable&gssencmode=prefer&fallback_application_name=x&load_balance_hosts=random",
        "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=5000",
        "client_encoding=LATIN1&replication=off&sslcompression=0&sslsni=1&max_protocol_version=latest",
        "pgbouncer=false&schema=public&connection_limit=5&pool_timeout=10&sslaccept=accept_invalid_certs",
        "serverVersion=16&charset=utf8&",
        "target_session_attrs=read-write&krbsrvname=postgres&sslmode=prefer&ssl_min_protocol_version=TLSv1.3",
        "application_name=app&options=-c%20search_path%3Dpublic%20-c%20plan_cache_mode%3Dauto&connect_timeout=0",
    ],
)
async def test_options_of_providers_are_honoured_or_dropped_by_both_drivers(
    server_url: str, tmp_path: Path, query_string: str
) -> None:
    """On a real server: an option that reached it as a setting would be refused."""
    with new_database(server_url) as plain:
        url = f"{plain}{'&' if '?' in plain else '?'}{query_string}"
        settings = read_settings({"DATABASE_URL": url}, tmp_path / ".env")
        assert schema.migrate(url) == schema.KNOWN
        assert schema.rollback(url) == schema.KNOWN[-1:]
        async with open_database(settings) as database, database.connection() as connection:
            show = "select current_setting('application_name'), current_setting('plan_cache_mode'), current_database()"
            [row] = await connection._connection.fetch(show)
    name = "app" if "application_name=app" in query_string.split("&") else "appointments"
    assert tuple(row)[:2] == (name, "force_generic_plan")
    assert seen_by_asyncpg(url)[1].server_settings.keys() - SERVER_SETTINGS.keys() <= {"options"}


async def test_startup_options_select_the_same_schema_in_both_drivers(server_url: str) -> None:
    with new_database(server_url) as plain:
        query(plain, "create schema other")
        url = f"{plain}{'&' if '?' in plain else '?'}options=-csearch_path%3Dother"
        schema.migrate(url)
        async with open_database(Settings(database_url=url)) as database:
            assert await schema.pending(database) == []
        assert query(plain, "select schemaname from pg_tables where tablename = 'appointments'") == [("other",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("channel_binding=require", "channel_binding=require is not supported: .*sslmode=verify-full"),
        ("gssencmode=require", "gssencmode=require"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("requirepeer=postgres", "requirepeer"),
        ("min_protocol_version=3.2", r"min_protocol_version=3\.2"),
        ("sslcertmode=require", "sslcertmode=require"),
        ("sslcrldir=/etc/ssl", "sslcrldir .*sslcrl"),
        ("sslmode=no-verify", "sslmode=no-verify .*expected disable, allow"),
        ("ssl=0", "sslmode=0 .*expected disable, allow"),
        ("sslrootcert=system&sslmode=require", "sslrootcert=system needs sslmode=verify-full"),
        ("sslaccept=strict", "sslaccept=strict"),
        ("service=mydb", "service "),
        ("hostaddr=10.0.0.1", "hostaddr "),
        ("replication=database", "replication=database"),
        ("target_session_attrs=standby", "target_session_attrs=standby"),
        ("pgbouncer=true", "pgbouncer=true .*session pooler"),
        ("schema=app", "schema=app .*search_path"),
        ("connect_timeout=soon", "connect_timeout must be a number"),
        ("oauth_client_id=x", "oauth_client_id is unknown or not supported"),
        ("statement_timeout=5", "statement_timeout is unknown or not supported"),
        ("sslmode=require&sslmode=disable", "sslmode is given twice"),
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "OWNER_DATABASE_URL"])
def test_option_that_a_driver_cannot_honour_is_named_with_its_setting(
    tmp_path: Path, options: str, message: str, name: str
) -> None:
    urls = {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/d", name: f"postgres://u:s3cret@127.0.0.1:1/d?{options}"}
    with pytest.raises(StartError, match=f"^Setting {name} is wrong: (?s:.*){message}.*\\.$") as caught:
        check_database_urls(read_settings(urls, tmp_path / ".env"))
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("channel_binding=require", "channel_binding=require"),
        ("service=mydb", "service "),
        ("statement_timeout=5", "statement_timeout is unknown or not supported"),
        ("sslmode=require&sslmode=disable", "sslmode is given twice"),
        ("target_session_attrs=standby", None),
        ("target_session_attrs=prefer-standby", None),
        ("target_session_attrs=read-only&load_balance_hosts=random", None),
    ],
)
def test_options_of_standbys_are_checked_for_each_host(tmp_path: Path, options: str, message: str | None) -> None:
    urls = {
        "DATABASE_URL": "postgresql://u@127.0.0.1:1/d",
        "READ_DATABASE_URL": f"'postgresql://u:s3cret@127.0.0.1:1,[::1]/d?{options}'",
    }
    refusal = pytest.raises(StartError, match=f"^Setting READ_DATABASE_URL is wrong: .*{message}.*\\.$")
    with refusal if message else nullcontext() as caught:
        check_database_urls(read_settings(urls, tmp_path / ".env"))
    assert "s3cret" not in str(caught and caught.value)


@pytest.mark.parametrize("command", ["serve", "migrate", "rollback"])
def test_every_command_refuses_such_an_option_before_it_connects(server_url: str, tmp_path: Path, command: str) -> None:
    with new_database(server_url) as url:
        settings = {"DATABASE_URL": f"{url}{'&' if '?' in url else '?'}channel_binding=require", "PORT": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "service", command],
            cwd=tmp_path,
            env=clean_environment(**settings),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert query(url, "select count(*) from pg_tables where schemaname = 'public'") == [(0,)]
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: Setting DATABASE_URL is wrong: option channel_binding=require is not supported: ")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:s3cret@h/d", "expected postgresql://"),
        ("jdbc:postgresql://h/d?password=s3cret", "expected postgresql://"),
        ("psql 'postgresql://u:s3cret@h/d'", "expected postgresql://"),
        ("postgres:u:s3cret@h/d", "expected postgresql://"),
        ("host=h password=s3cret", "expected postgresql://"),
        ("postgres://u:s3cret@h", "names no database"),
        ("postgres://u:s3cret@h/", "names no database"),
        ("postgres://u:s3cret@h?sslmode=require", "names no database"),
        ("postgres://u:s3cret%@h/d", "%25"),
        ("postgres://u:s3cret%zz@h/d", "%25"),
        ("postgres://u:s3cret%00@h/d", "%00"),
        ("postgres://u:s3cret%ff@h/d", "UTF-8"),
        ("postgres://u:s3 cret@h/d", "white space"),
        ("postgres://u:s3cret@h/d\n?sslmode=require", "white space"),
        ("postgres://u:x/s3cret@h/d", "expected postgresql://"),
        ("postgres://u:12/s3cret@h/d", "expected postgresql://"),
        ("postgres://u:x#s3cret@h/d", "expected postgresql://"),
        ("postgres://u:x?s3cret@h/d", "expected postgresql://"),
        ("postgres://u:s3cret@h:0/d", "port"),
        ("postgres://u:s3cret@h:65536/d", "port"),
        ("postgres://u:s3cret@h/d?port=x", "port"),
        (f"postgres://u:s3cret@{'a' * 64}/d", "not a possible name"),
        ("postgres://u:s3cret@/d?host=a..b", "not a possible name"),
        ("postgres://u:s3cret@h:x/d", "expected postgresql://"),
        ("postgres://u:s3cret@::1/d", "expected postgresql://"),
        ("postgres://u:s3cret@[::1/d", "expected postgresql://"),
        ("postgres://u:s3cret@[1.2.3.4]/d", "expected postgresql://"),
        ("postgres://u:s3cret@h1:1,h2:x/d", "expected postgresql://"),
        ("postgres://u:s3cret@h1:1,h2:0/d", "port"),
        ("postgres://u:s3cret@h1,[::1/d", "expected postgresql://"),
        ("postgres://u:s3cret@h1,,h2/d", "a host of the list is empty"),
        ("postgres://u:s3cret@h1:1,/d", "a host of the list is empty"),
        ("postgres://u:s3cret@/d?host=h1,a..b", "not a possible name"),
        ("postgres://u:s3cret@/d?host=h1,h2,h3&port=1,2", "2 ports for 3 hosts"),
        ("postgres://u:s3cret@h1:1,h2:2/d?host=h", "2 ports for 1 hosts"),
        ("postgres://h/d?s3cret", "option=value"),
    ],
)
def test_malformed_url_is_explained_without_its_password(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(StartError, match=f"^Setting DATABASE_URL is wrong: .*{message}") as caught:
        read_settings({"DATABASE_URL": url}, tmp_path / ".env")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("text", [" {}\n", "'{}'", '"{}"', '" {} "', "{}\r\n"])
def test_quotes_and_white_space_around_a_url_are_removed(tmp_path: Path, text: str) -> None:
    url = "postgres://u:p@h/d"
    settings = read_settings(dict.fromkeys(("DATABASE_URL", "OWNER_DATABASE_URL"), text.format(url)), tmp_path / ".env")
    assert (settings.database_url, settings.owner_database_url) == (url, url)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("channel_binding", "require"),
        ("hostaddr", "10.0.0.1"),
        ("service", "mydb"),
        ("requirepeer", "postgres"),
        ("target_session_attrs", "standby"),
    ],
)
def test_variables_that_only_libpq_reads_are_not_lost(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    monkeypatch.setenv(ENVIRONMENT[option], value)
    with pytest.raises(ValueError, match=rf"option {option}.* \(from {ENVIRONMENT[option]}\) is not supported"):
        for_asyncpg("postgres://h/d")
    monkeypatch.delenv(ENVIRONMENT[option])
    monkeypatch.setenv("PGOPTIONS", "-csearch_path=other")
    assert for_asyncpg("postgres://h/d")["server_settings"] == {"options": "-csearch_path=other"}


def test_certificates_of_the_system_are_a_file_for_both_drivers() -> None:
    assert any(Path(file).is_file() for file in PEM_FILES), "this machine has no certificates"
    url = "postgres://h/d?sslrootcert=system"
    file = for_psycopg(url)["sslrootcert"]
    assert Path(file).is_file()
    assert for_psycopg(url)["sslmode"] == "verify-full"
    context = seen_by_asyncpg(url)[1].ssl
    assert context.check_hostname
    assert context.get_ca_certs()


def test_time_limit_of_connecting_reaches_both_drivers() -> None:
    for given, psycopg_seconds, asyncpg_seconds in (("15", "15", 15), ("0", "10", 5), ("-1", "10", 5)):
        url = f"postgres://h/d?connect_timeout={given}"
        assert for_psycopg(url)["connect_timeout"] == psycopg_seconds
        assert connect_options(Settings(database_url=url))["timeout"] == asyncpg_seconds


def test_table_of_options_knows_every_option_of_libpq_or_refuses_it() -> None:
    unknown = LIBPQ - USE.keys() - VALUES.keys()
    assert {name for name in unknown if not name.startswith("oauth_")} == set()
    for name, use in USE.items():
        assert (name in LIBPQ) == (use != "dropped") or name in ("client_encoding", "replication"), name


def test_options_for_asyncpg_are_those_that_it_knows() -> None:
    """Any other would reach the server as a setting."""
    names = [name for name, use in USE.items() if use == "both drivers" and name not in ("dbname", "connect_timeout")]
    source = Path(connect_utils.__file__).read_text()
    for name in names:
        assert f"'{name}' in query" in source, f"asyncpg {asyncpg.__version__} does not know {name}"


def test_parse_returns_what_libpq_would_parse() -> None:
    url = "postgresql://u%2B:p%20w@h:1/d%25?sslmode=require&options=-c%20a%3Db&application_name=x+y"
    assert parse(url) == conninfo_to_dict(url)
