"""The command line: `python -m service --help`."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from socket import socket

import structlog
from msgspec.structs import replace

from service import logs
from service.access.key_settings import check_key_settings
from service.app import create_app
from service.database import embedded, schema
from service.database.pool import check_database
from service.import_export import export_lines, import_lines
from service.problems import StartError
from service.settings import Settings, read_settings
from service.web.server import listening, run
from service.web.workers import run_workers

log = structlog.get_logger()

Embedded = Callable[[], AbstractContextManager[str]]


def main() -> int:
    """The exit status: 0 on success, 1 if the command failed or a line was refused, 2 for wrong usage."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends with clean-up, like Ctrl-C
    arguments = parser().parse_args()
    try:
        settings = read_settings()
        logs.configure(settings.log_level)
        if arguments.command == "import":
            return import_lines(arguments.file, arguments.url or settings.url(), settings.auth_token)
        if arguments.command == "export":
            whole = arguments.include_cancelled
            url = arguments.url or settings.url()
            export_lines(url, settings.auth_token, arguments.org, arguments.as_of, include_cancelled=whole)
        elif arguments.command == "serve":
            check_key_settings(settings)
            with listening(settings) as listener, database_url(settings, embedded.running) as url:
                migrate(settings, url)
                serve(replace(settings, database_url=url, port=listener.getsockname()[1]), listener)
        else:
            with database_url(settings, embedded.shared) as url:
                change = migrate if arguments.command == "migrate" else rollback
                print(f"{arguments.command}: {', '.join(change(settings, url)) or 'nothing to do'}")
    except (StartError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def migrate(settings: Settings, url: str) -> list[str]:
    owner = settings.owner_database_url
    return schema.migrate(owner, schema.role_of(url)) if owner else schema.migrate(url)


def rollback(settings: Settings, url: str) -> list[str]:
    return schema.rollback(settings.owner_database_url or url)


def serve(settings: Settings, listener: socket) -> None:
    if not settings.authenticates():
        log.warning("open", detail="Access is not restricted; the AUTH_... settings switch authentication on.")
    asyncio.run(check_database(settings))
    (run if settings.workers == 1 else run_workers)(create_app, settings, listener)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m service",
        description="The appointment service. Settings come from the environment and .env "
        "(see .env.example); without DATABASE_URL it runs a PostgreSQL of its own below .data/.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="apply the migrations and serve until Ctrl-C or SIGTERM")
    commands.add_parser("migrate", help="apply the pending migrations")
    commands.add_parser("rollback", help="roll back the latest migration")
    receive = commands.add_parser("import", help="send a file of appointments to a running service")
    receive.add_argument(
        "file", metavar="FILE", help="one body of POST, or one line of an export, a line; -: standard input"
    )
    give = commands.add_parser("export", help="write the appointments of an organisation, one a line")
    give.add_argument("--org", default="", help="the organisation")
    give.add_argument("--as-of", default="", metavar="INSTANT", help="the state as it was recorded at that instant")
    give.add_argument("--include-cancelled", action="store_true", help="cancelled appointments too")
    for command in (receive, give):
        command.add_argument("--url", help="the URL of the service; http://HOST:PORT of the settings if missing")
    return top


@contextmanager
def database_url(settings: Settings, embedded_url: Embedded) -> Iterator[str]:
    if settings.database_url:
        yield settings.database_url
    else:
        with embedded_url() as url:
            yield url


if __name__ == "__main__":
    sys.exit(main())
