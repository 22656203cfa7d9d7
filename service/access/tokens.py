"""Bearer tokens: JSON Web Tokens (RFC 7519) that an issuer signed for this service."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jwt
from starlette.types import Scope

from service.access.grants import Grant, Need, forbidden, unauthenticated
from service.access.key_settings import accepted_algorithms, read_public_key
from service.access.published_keys import NO_KEYS, PublishedKeys
from service.problems import ProblemError
from service.settings import Settings
from service.supervisor import supervised

FETCH_SECONDS_MAX = 5  # of the issuer's keys
REMEMBERED_MAX = 4_000  # tokens
SCOPES: Mapping[Need, str] = {"read": "appointments:read", "write": "appointments:write"}
ALL_ORGANISATIONS = "*"
REQUIRED = ["exp", "aud", "iss"]
NOT_GIVEN = "Expected a header `Authorization: Bearer` with a token."
REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token is for another audience.",
    jwt.InvalidIssuerError: "The token is of another issuer.",
    jwt.InvalidAlgorithmError: "The token is signed by an algorithm that is not accepted.",
    jwt.InvalidSignatureError: "The token is not signed by a key that is accepted.",
}
UNREADABLE = "The token cannot be read."


class Tokens:
    """Turns valid tokens into grants. Checking a signature takes as long as the rest of a request, so a grant is
    remembered until the token expires or the keys change."""

    def __init__(self, settings: Settings, published: PublishedKeys | None) -> None:
        """Without published keys the settings name the only one."""
        self._settings = settings
        self._published = published
        self._key: Any = None if published else settings.auth_secret or read_public_key(settings.auth_public_key_file)
        self._algorithms = accepted_algorithms(settings)
        self._remembered: dict[bytes, Grant] = {}

    async def admit(self, scope: Scope, need: Need) -> Grant:
        """Raises ProblemError: a 401 or a 403, or a 503 while the keys are not available."""
        grant = await self._grant(authorization(scope))
        if need not in grant.needs:
            raise forbidden(f"The token lacks the scope `{SCOPES[need]}`.", SCOPES[need])
        return grant

    def why_not_ready(self) -> str | None:
        """The reason as a sentence, or None."""
        return NO_KEYS if self._published and not self._published.keys else None

    def forget(self) -> None:
        """Forgets all grants, since a key may have been withdrawn."""
        self._remembered.clear()

    async def _grant(self, credentials: bytes) -> Grant:
        grant = self._remembered.get(credentials)
        if grant is None:
            grant = await self._check(bearer(credentials))
            if len(self._remembered) == REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[credentials] = grant
        if grant.expires_at <= time.time():
            self._remembered.pop(credentials, None)
            raise unauthenticated(REASONS[jwt.ExpiredSignatureError])
        return grant

    async def _check(self, token: str) -> Grant:
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            key = await self._published.find(header) if self._published else self._key
            claims = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                audience=settings.auth_audience,
                issuer=settings.auth_issuer,
                leeway=settings.auth_leeway_seconds,
                options={"require": REQUIRED},
            )
            return self._granted(claims)
        except ProblemError:
            raise
        except jwt.MissingRequiredClaimError as error:
            raise unauthenticated(f"The token lacks the claim `{error.claim}`.") from error
        except Exception as error:  # a stranger's token may be wrong in any way
            raise unauthenticated(REASONS.get(type(error), UNREADABLE)) from error

    def _granted(self, claims: Mapping[str, Any]) -> Grant:
        settings = self._settings
        names = frozenset(name.strip() for name in words(claims, settings.auth_organisations_claim, one=True))
        given = words(claims, settings.auth_scope_claim)
        needs = frozenset(need for need, scope in SCOPES.items() if scope in given)
        expires_at = int(claims["exp"]) + settings.auth_leeway_seconds
        return Grant(None if ALL_ORGANISATIONS in names else names - {""}, needs, expires_at)


@asynccontextmanager
async def open_tokens(settings: Settings) -> AsyncIterator[Tokens | None]:
    """None where authentication is switched off."""
    if not settings.authenticates():
        yield None
        return
    if not settings.auth_jwks_url:
        yield Tokens(settings, None)
        return
    async with httpx.AsyncClient(timeout=FETCH_SECONDS_MAX) as client:
        published = PublishedKeys(settings.auth_jwks_url, accepted_algorithms(settings), client)
        tokens = Tokens(settings, published)
        published.on_replaced = tokens.forget
        async with supervised(key_refresh=published.refresh):
            yield tokens


def authorization(scope: Scope) -> bytes:
    """The value of the `Authorization` header, which must be there exactly once."""
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
    """The words of a claim: a list of strings, or a string of words separated by spaces (with `one`, of a single
    word). Raises ProblemError for anything else."""
    value = claims.get(name, [])
    if isinstance(value, str):
        return [value] if one else value.split(" ")
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise unauthenticated(f"The claim `{name}` of the token must be a string or a list of strings.")
    return value
