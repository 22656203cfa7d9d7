"""The account of the embedded PostgreSQL where the service runs as root: PostgreSQL refuses to run as root."""

import os
import pwd
import stat
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.problems import StartError

NAME = "embedded_postgres"
Account = pwd.struct_passwd | None  # None: the service is not root, and PostgreSQL runs as the same user


def unprivileged_account() -> Account:
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam(NAME)
    try:
        subprocess.run(["useradd", "--system", NAME], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartError(f"PostgreSQL cannot run as root, and creating the user {NAME} failed.") from error
    return pwd.getpwnam(NAME)


def switch_to(account: Account) -> dict[str, Any]:
    """Arguments of subprocess.Popen that switch to the account."""
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def own(path: Path, account: Account) -> Path:
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)
    return path


def make_reachable(account: Account, paths: Iterable[Path]) -> None:
    """Gives the account read access to the paths, recursively, and search permission on the folders above."""
    for path in paths if account else ():
        for above in path.parents:
            allow(above, stat.S_IXOTH)
        for inside in (path, *path.rglob("*")):
            allow(inside, stat.S_IROTH | (stat.S_IXOTH if inside.stat().st_mode & stat.S_IXUSR else 0))


def allow(path: Path, mode: int) -> None:
    if path.stat().st_mode & mode != mode:
        path.chmod(path.stat().st_mode | mode)
