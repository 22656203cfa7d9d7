"""Who may do what: what the bearer of a request may use, and who finds it out."""

from typing import Literal, Protocol

from msgspec import Struct
from starlette.requests import Request
from starlette.types import Scope

from service.messages import DEFAULT_ORGANISATION
from service.problems import ProblemError

Need = Literal["read", "write"]
CHALLENGE = 'Bearer realm="appointments"'


class Access(Struct, frozen=True):
    """What a bearer may use until `expires_at`, in seconds since 1970."""

    organisations: frozenset[str] | None  # None: all of them
    needs: frozenset[Need]
    expires_at: float

    def default_organisation(self) -> str:
        """What a request without an organisation means."""
        only = self.organisations if self.organisations and len(self.organisations) == 1 else (DEFAULT_ORGANISATION,)
        return next(iter(only))

    def check(self, organisation: str) -> None:
        """Raises ProblemError if the organisation is another's."""
        if self.organisations is not None and organisation not in self.organisations:
            raise forbidden("The token does not name this organisation.")

    def check_all(self) -> None:
        """Raises ProblemError for what concerns every organisation."""
        if self.organisations is not None:
            raise forbidden("The token must name all organisations: `*`.")


EVERYTHING = Access(None, frozenset(["read", "write"]), float("inf"))


class Guard(Protocol):
    async def admit(self, scope: Scope, need: Need) -> Access:
        """Raises ProblemError, a 401 or a 403, or a 503 while the keys are not to be had."""

    def why_not_ready(self) -> str | None:
        """The reason as a sentence, or None."""


class Open:
    """Where authentication is switched off."""

    async def admit(self, _: Scope, __: Need) -> Access:
        return EVERYTHING

    def why_not_ready(self) -> None:
        return None


def access_of(request: Request) -> Access:
    access: Access = request.scope["access"]
    return access


def unauthenticated(detail: str, *, invalid: bool = True) -> ProblemError:
    """`invalid`: there is a token. Source of the challenge: RFC 6750, section 3."""
    error = f', error="invalid_token", error_description="{detail}"' if invalid else ""
    return ProblemError("UNAUTHENTICATED", detail, headers={"WWW-Authenticate": CHALLENGE + error})


def forbidden(detail: str, scope: str | None = None) -> ProblemError:
    """`scope` is what the token lacks, if that is why."""
    lacking = f', scope="{scope}"' if scope else ""
    headers = {"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope"{lacking}'}
    return ProblemError("FORBIDDEN", detail, headers=headers)
