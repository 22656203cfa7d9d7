"""Bearer tokens: JSON Web Tokens (RFC 7519) that an issuer signed for this service."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import jwt
from starlette.types import Scope

from service.access import Access, Guard, Need, Open, forbidden, unauthenticated
from service.keys import Keys, open_keys
from service.problems import ProblemError
from service.settings import Settings

REQUIRED = ["exp", "aud", "iss"]
REMEMBERED_MAX = 4_000  # tokens
ALL = "*"
NOT_GIVEN = "Expected a header `Authorization: Bearer` with a token."
REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token is for another audience.",
    jwt.InvalidIssuerError: "The token is of another issuer.",
    jwt.InvalidAlgorithmError: "The token is signed by an algorithm that is not accepted.",
    jwt.InvalidSignatureError: "The token is not signed by a key that is accepted.",
}
UNREADABLE = "The token is not one that can be read."


class Tokens:
    """Admits bearers of sound tokens. Checking a signature takes as long as the rest of a request, so what
    a token allows is remembered, until it expires or the keys change."""

    def __init__(self, keys: Keys, settings: Settings) -> None:
        self._keys = keys
        self._settings = settings
        self._scopes: Mapping[Need, str] = {"read": settings.auth_read_scope, "write": settings.auth_write_scope}
        self._remembered: dict[bytes, Access] = {}
        keys.on_change(self._remembered.clear)

    async def admit(self, scope: Scope, need: Need) -> Access:
        access = await self._access(authorization(scope))
        if need not in access.needs:
            lacking = self._scopes[need]
            raise forbidden(f"The token lacks the scope `{lacking}`.", lacking)
        return access

    def why_not_ready(self) -> str | None:
        return self._keys.why_not_ready()

    async def _access(self, credentials: bytes) -> Access:
        access = self._remembered.get(credentials)
        if access is None:
            access = await self._check(bearer(credentials))
            if len(self._remembered) == REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[credentials] = access
        if access.expires_at <= time.time():
            self._remembered.pop(credentials, None)
            raise unauthenticated(REASONS[jwt.ExpiredSignatureError])
        return access

    async def _check(self, token: str) -> Access:
        settings = self._settings
        try:
            key = await self._keys.find(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key,
                algorithms=self._keys.algorithms,
                audience=settings.auth_audience,
                issuer=settings.auth_issuer,
                leeway=settings.auth_leeway_seconds,
                options={"require": REQUIRED},
            )
            return self._allowed(claims)
        except ProblemError:
            raise
        except jwt.MissingRequiredClaimError as error:
            raise unauthenticated(f"The token lacks the claim `{error.claim}`.") from error
        except Exception as error:  # whatever a stranger may have put into it
            raise unauthenticated(REASONS.get(type(error), UNREADABLE)) from error

    def _allowed(self, claims: Mapping[str, Any]) -> Access:
        settings = self._settings
        names = frozenset(name.strip() for name in words(claims, settings.auth_organisations_claim, one=True))
        given = words(claims, settings.auth_scope_claim)
        needs = frozenset(need for need, scope in self._scopes.items() if scope in given)
        expires_at = int(claims["exp"]) + settings.auth_leeway_seconds
        return Access(None if ALL in names else names - {""}, needs, expires_at)


@asynccontextmanager
async def open_guard(settings: Settings) -> AsyncIterator[Guard]:
    if settings.authenticates():
        async with open_keys(settings) as keys:
            yield Tokens(keys, settings)
    else:
        yield Open()


def authorization(scope: Scope) -> bytes:
    """The value of the one header of that name."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        raise unauthenticated(NOT_GIVEN, invalid=bool(values))
    return bytes(values[0])


def bearer(credentials: bytes) -> str:
    """Source: RFC 6750, section 2.1."""
    scheme, _, token = credentials.strip().partition(b" ")
    if scheme.lower() != b"bearer":
        raise unauthenticated(NOT_GIVEN, invalid=False)
    try:
        return token.strip().decode("ascii")
    except UnicodeDecodeError:
        raise unauthenticated(UNREADABLE) from None


def words(claims: Mapping[str, Any], name: str, *, one: bool = False) -> Sequence[str]:
    """A claim that is a list of strings, or a string: `one` word, or words with spaces between. Raises
    ProblemError if it is anything else."""
    value = claims.get(name, [])
    if isinstance(value, str):
        return [value] if one else value.split(" ")
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise unauthenticated(f"The claim `{name}` of the token must be a string or a list of strings.")
    return value
