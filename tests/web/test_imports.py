"""Commands load only what they use."""

import subprocess
import sys

import pytest

from tests.processes import clean_environment

NOWHERE = "http://127.0.0.1:1"
WATCH = """
import sys

def watch(event, arguments):
    if event == "open" and "swagger" in str(arguments[0]) and not str(arguments[0]).endswith((".py", ".pyc")):
        print("opened", arguments[0], file=sys.stderr)

sys.addaudithook(watch)
from service.__main__ import main
sys.argv = ["service", *sys.argv[1:]]
sys.exit(main())
"""


@pytest.mark.parametrize(
    "command",
    [["export", "--url", "http://127.0.0.1:1"], ["import", "--url", "http://127.0.0.1:1", "/dev/null"], ["migrate"]],
)
def test_import_export_and_migrate_do_not_load_the_assets_of_swagger_ui(command: list[str], database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *command],
        env=clean_environment(DATABASE_URL=database_url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "opened" not in done.stderr
    assert done.stdout + done.stderr != ""
