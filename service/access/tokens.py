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
NOT_GIVEN = "Expected a header `Authorization: Bearer` with a token."
REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token is for another audience.",
    jwt.InvalidIssuerError: "The token was issued by another issuer.",
    jwt.InvalidAlgorithmError: "The token is signed by an algorithm that is not accepted.",
    jwt.InvalidSignatureError: "The token is not signed by a key that is accepted.",
}


class Tokens:
    """Turns valid tokens into grants. Checking a signature takes as long as the rest of a request, so a grant is
    remembered until the token expires or the keys are replaced, since one may have been revoked."""

    def __init__(self, settings: Settings, published: PublishedKeys | None) -> None:
        """Without published keys the settings name the only one."""
        self._settings = settings
        self._published = published
        self._key: Any = None if published else settings.auth_secret or read_public_key(settings.auth_public_key_file)
        self._algorithms = accepted_algorithms(settings)
        self._remembered: dict[bytes, Grant] = {}
        self._remembered_under: object = None  # the published keys of that time

    def why_not_ready(self) -> str | None:
        """The reason as a sentence, or None."""
        return NO_KEYS if self._published and not self._published.keys else None

    async def admit(self, scope: Scope, need: Need) -> Grant:
        """Raises ProblemError: a 401 or a 403, or a 503 while the keys are not available."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            raise unauthenticated(NOT_GIVEN, invalid=bool(values))
        credentials = bytes(values[0])
        if self._published and self._published.keys is not self._remembered_under:
            self._remembered.clear()
            self._remembered_under = self._published.keys
        grant = self._remembered.get(credentials)
        if grant is None:
            grant = await self._check(credentials)
            if len(self._remembered) == REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[credentials] = grant
        if grant.expires_at <= time.time():
            self._remembered.pop(credentials, None)
            raise unauthenticated(REASONS[jwt.ExpiredSignatureError])
        if need not in grant.needs:
            raise forbidden(f"The token lacks the scope `{SCOPES[need]}`.", SCOPES[need])
        return grant

    async def _check(self, credentials: bytes) -> Grant:
        """Source of the scheme: RFC 6750, section 2.1."""
        scheme, _, token = credentials.strip().partition(b" ")
        if scheme.lower() != b"bearer":
            raise unauthenticated(NOT_GIVEN, invalid=False)
        settings = self._settings
        try:
            text = token.strip().decode("ascii")
            key_name = jwt.get_unverified_header(text).get("kid")
            claims = jwt.decode(
                text,
                await self._published.find(key_name) if self._published else self._key,
                algorithms=self._algorithms,
                audience=settings.auth_audience,
                issuer=settings.auth_issuer,
                leeway=settings.auth_leeway_seconds,
                options={"require": ["exp", "aud", "iss"]},
            )
            names = frozenset(name.strip() for name in words(claims, settings.auth_organisations_claim, one=True))
            given = words(claims, settings.auth_scope_claim)
            return Grant(
                None if "*" in names else names - {""},  # `*`: all organisations
                frozenset(need for need, scope in SCOPES.items() if scope in given),
                int(claims["exp"]) + settings.auth_leeway_seconds,
            )
        except ProblemError:
            raise
        except jwt.MissingRequiredClaimError as error:
            raise unauthenticated(f"The token lacks the claim `{error.claim}`.") from error
        except Exception as error:  # untrusted input: any error is possible
            raise unauthenticated(REASONS.get(type(error), "The token cannot be read.")) from error


@asynccontextmanager
async def open_tokens(settings: Settings) -> AsyncIterator[Tokens | None]:
    """None where authentication is switched off."""
    if not settings.auth_jwks_url:
        yield Tokens(settings, None) if settings.authenticates() else None
        return
    async with httpx.AsyncClient(timeout=FETCH_SECONDS_MAX) as client:
        published = PublishedKeys(settings.auth_jwks_url, accepted_algorithms(settings), client)
        async with supervised(key_refresh=published.refresh):
            yield Tokens(settings, published)


def words(claims: Mapping[str, Any], name: str, *, one: bool = False) -> Sequence[str]:
    """The claim's list of strings, or its string split at spaces (`one`: unsplit). Raises ProblemError otherwise."""
    value = claims.get(name, [])
    if isinstance(value, str):
        return [value] if one else value.split(" ")
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise unauthenticated(f"The claim `{name}` of the token must be a string or a list of strings.")
    return value
