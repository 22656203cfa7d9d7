"""Request ids: the caller's, or a new one."""

import re
from random import getrandbits

from starlette.types import Scope

from service.contract.headers import header

SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def new_id() -> str:
    return f"{getrandbits(128):032x}"


def id_of(scope: Scope) -> str:
    """The caller's id if it sent a sane one, or else a new one."""
    asked = header(scope, b"x-request-id")
    return asked if asked and SANE_ID.fullmatch(asked) else new_id()
