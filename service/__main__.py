"""The command line: `python -m service --help`."""

import argparse
import asyncio
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
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


def main() -> int:
    """The exit status: 0 on success, 1 if the command failed or a line was refused, 2 for wrong usage."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends with clean-up, like Ctrl-C
    arguments = parser().parse_args()
    try:
        settings = read_settings()
        owner = settings.owner_database_url
        logs.configure(settings.log_level)
        if arguments.command == "import":
            return import_lines(arguments.file, arguments.url or settings.url(), settings.auth_token)
        if arguments.command == "export":
            wanted = {"org": arguments.org, "asOf": arguments.as_of, "includeCancelled": arguments.include_cancelled}
            export_lines(arguments.url or settings.url(), settings.auth_token, wanted)
        elif arguments.command == "serve":
            check_key_settings(settings)
            with listening(settings) as listener, database_url(settings, embedded.running()) as url:
                migrate(url, owner)
                serve(replace(settings, database_url=url, port=listener.getsockname()[1]), listener)
        else:
            with database_url(settings, embedded.shared()) as url:
                done = migrate(url, owner) if arguments.command == "migrate" else schema.rollback(owner or url)
                print(f"{arguments.command}: {', '.join(done) or 'nothing to do'}")
    except (StartError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def migrate(url: str, owner: str) -> list[str]:
    return schema.migrate(owner, schema.role_of(url)) if owner else schema.migrate(url)


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
    form = "NDJSON, each line a body of POST or a line of an export; -: standard input"
    receive.add_argument("file", metavar="FILE", help=form)
    give = commands.add_parser("export", help="write the appointments of an organisation, one a line")
    give.add_argument("--org", default="", help="the organisation")
    give.add_argument("--as-of", default="", metavar="INSTANT", help="the state as it was recorded at that instant")
    give.add_argument("--include-cancelled", action="store_const", const="true", help="cancelled appointments too")
    for command in (receive, give):
        command.add_argument("--url", help="the URL of the service; default: http://HOST:PORT from the settings")
    return top


def database_url(settings: Settings, server: AbstractContextManager[str]) -> AbstractContextManager[str]:
    return nullcontext(settings.database_url) if settings.database_url else server


if __name__ == "__main__":
    sys.exit(main())
