"""The command line: `python -m service --help`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports leaves no traceback

import argparse
import asyncio
import sys
from contextlib import AbstractContextManager, nullcontext
from socket import socket

import structlog
from msgspec.structs import replace

from service import interruption, logs
from service.access.key_settings import check_key_settings
from service.app import create_app
from service.database import embedded, schema
from service.database.pool import check_database
from service.import_export import export_lines, import_lines
from service.output import open_closed_streams, output_to
from service.problems import StartError
from service.settings import Settings, check_database_urls, read_settings
from service.web import server
from service.web.server import listening
from service.web.workers import run_workers

log = structlog.get_logger()

STANDARD_OUTPUT = "-"


def main() -> int:
    """The exit status: 0 on success, 1 if the command failed or a line was refused, 2 for wrong usage. A command that
    a signal interrupts ends by that signal."""
    open_closed_streams()
    arguments = parser().parse_args()
    try:
        interruption.raise_when_interrupted()
        status = run(arguments)
        interruption.ignore()  # too late: the work is done, or has failed
        return status
    except KeyboardInterrupt as error:
        return interruption.end_by(*error.args)


def run(arguments: argparse.Namespace) -> int:
    try:
        return run_command(arguments)
    except BrokenPipeError:  # `export | head`
        return interruption.end_by(signal.SIGPIPE)
    except (StartError, OSError) as error:
        interruption.raise_instead_of(error)
        print(f"error: {error}", file=sys.stderr)
        return 1


def run_command(arguments: argparse.Namespace) -> int:
    settings = read_settings()
    logs.configure(settings.log_level)
    if arguments.command == "import":
        return import_lines(arguments.file, arguments.url or settings.url(), settings.auth_token)
    if arguments.command == "export":
        wanted = {"org": arguments.org, "asOf": arguments.as_of, "includeCancelled": arguments.include_cancelled}
        export_lines(arguments.url or settings.url(), settings.auth_token, wanted, arguments.output)
        return 0
    ignored = check_database_urls(settings)
    owner = settings.owner_database_url
    if arguments.command == "serve":
        check_key_settings(settings)
        with listening(settings) as listener, database_url(settings, embedded.running()) as url:
            migrate(url, owner)
            if ignored:
                log.warning("options of DATABASE_URL without effect on requests", options=ignored)
            serve(replace(settings, database_url=url, port=listener.getsockname()[1]), listener)
    else:
        distribute = arguments.command == "distribute"
        if distribute and not settings.database_url:
            raise StartError("The embedded PostgreSQL has no Citus; set DATABASE_URL.")
        with database_url(settings, embedded.shared()) as url:
            if arguments.command == "rollback":
                done = schema.rollback(owner or url)
            else:
                done = migrate(url, owner, distribute=distribute)
        with output_to(STANDARD_OUTPUT) as output:
            output.write(f"{arguments.command}: {', '.join(done) or 'nothing to do'}\n".encode())
    return 0


def migrate(url: str, owner: str, *, distribute: bool = False) -> list[str]:
    return schema.migrate(owner or url, schema.role_of(url) if owner else "", distribute=distribute)


def serve(settings: Settings, listener: socket) -> None:
    if not settings.authenticates():
        log.warning("open", detail="Access is not restricted; the AUTH_... settings switch authentication on.")
    asyncio.run(check_database(settings))
    (server.run if settings.workers == 1 else run_workers)(create_app, settings, listener)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m service",
        description="The appointment service. Settings come from the environment and .env "
        "(see .env.example); without DATABASE_URL it runs a PostgreSQL of its own below .data/.",
        epilog="Exit status: 0 on success, 1 if the command failed or a line was refused, 2 for wrong usage, "
        "128 and the number of the signal if it was interrupted.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="apply the migrations and serve until Ctrl-C or SIGTERM")
    commands.add_parser("migrate", help="apply the pending migrations")
    distributed = "apply the pending migrations, and distribute the tables over the servers of a Citus cluster"
    commands.add_parser("distribute", help=distributed)
    commands.add_parser("rollback", help="roll back the latest migration")
    receive = commands.add_parser("import", help="send a file of appointments to a running service")
    form = "NDJSON, each line a body of POST or a line of an export; -: standard input"
    receive.add_argument("file", metavar="FILE", help=form)
    give = commands.add_parser("export", help="write the appointments of an organisation, one a line")
    give.add_argument("--org", default="", help="the organisation")
    give.add_argument("--as-of", default="", metavar="INSTANT", help="the state as it was recorded at that instant")
    give.add_argument("--include-cancelled", action="store_const", const="true", help="cancelled appointments too")
    whole = "written beside FILE and renamed once complete; FILE stays as it is if the export fails; -: standard output"
    give.add_argument("--output", default=STANDARD_OUTPUT, metavar="FILE", help=whole)
    for command in (receive, give):
        command.add_argument("--url", help="the URL of the service; default: http://HOST:PORT from the settings")
    return top


def database_url(settings: Settings, server: AbstractContextManager[str]) -> AbstractContextManager[str]:
    return nullcontext(settings.database_url) if settings.database_url else server


if __name__ == "__main__":
    sys.exit(main())
