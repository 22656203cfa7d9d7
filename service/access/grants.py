"""Grants: what a request may use."""

import re
from typing import Literal

from msgspec import Struct

from service.contract.fields import DEFAULT_ORGANISATION
from service.problems import ProblemError

Need = Literal["read", "write"]
CHALLENGE = 'Bearer realm="appointments"'
NOT_IN_DESCRIPTIONS = re.compile(r"[^ !#-\[\]-~]")  # RFC 6750, section 3


class Grant(Struct, frozen=True):
    """The rights of a bearer until `expires_at`, in seconds since 1970."""

    organisations: frozenset[str] | None  # None: all of them
    needs: frozenset[Need]
    expires_at: float

    def organisation(self, asked: str | None) -> str:
        """The organisation of the request. If none is asked for, it is the only one of the grant, or else the
        default. Raises ProblemError, a 403, if the grant does not include it."""
        granted = self.organisations
        asked = asked or (next(iter(granted)) if granted and len(granted) == 1 else DEFAULT_ORGANISATION)
        if granted is not None and asked not in granted:
            raise forbidden("The token does not name this organisation.")
        return asked

    def check_all(self) -> None:
        """Raises ProblemError, a 403, unless the grant includes every organisation."""
        if self.organisations is not None:
            raise forbidden("The token must name all organisations: `*`.")


EVERYTHING = Grant(None, frozenset(["read", "write"]), float("inf"))


def unauthenticated(detail: str, *, invalid: bool = True) -> ProblemError:
    """`invalid`: the request has a token. Source of the challenge: RFC 6750, section 3."""
    description = NOT_IN_DESCRIPTIONS.sub("?", detail)  # the detail may name a claim, which is any text
    error = f', error="invalid_token", error_description="{description}"' if invalid else ""
    return ProblemError("UNAUTHENTICATED", detail, headers={"WWW-Authenticate": CHALLENGE + error})


def forbidden(detail: str, scope: str | None = None) -> ProblemError:
    """`scope`: the missing scope, if that is why the request is refused."""
    error = ', error="insufficient_scope"' + (f', scope="{scope}"' if scope else "")
    return ProblemError("FORBIDDEN", detail, headers={"WWW-Authenticate": CHALLENGE + error})
