"""Bearer tokens: JSON Web Tokens (RFC 7519) that an issuer signed for this service."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import jwt
from starlette.types import Scope

from service.access.grants import Grant, Need, forbidden, unauthenticated
from service.access.key_settings import accepted_algorithms, key_of
from service.access.keys import Decoder, candidates, with_synonyms
from service.access.published_keys import FETCH_SECONDS_MAX, NO_KEYS, PublishedKeys
from service.contract.fields import parse_organisation
from service.http_client import client_options
from service.problems import ProblemError
from service.settings import Settings
from service.supervisor import supervised

REMEMBERED_MAX = 4_000  # tokens
TIMES = ("exp", "nbf", "iat")
DECODER = Decoder()
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
        self._own_keys = () if published else (key_of(settings),)
        self._accepted = with_synonyms(accepted_algorithms(settings))
        self._remembered: dict[bytes, Grant] = {}  # by token
        self._remembered_under: object = None  # the published keys of that time

    def why_not_ready(self) -> str | None:
        """The reason as a sentence, or None."""
        return NO_KEYS if self._published and not self._published.keys else None

    async def admit(self, scope: Scope, need: Need) -> Grant:
        """Raises ProblemError: a 401 or a 403, or a 503 while the keys are not available."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            raise unauthenticated(NOT_GIVEN, invalid=bool(values))
        scheme, _, token = bytes(values[0]).strip().partition(b" ")  # RFC 6750, section 2.1
        if scheme.lower() != b"bearer":
            raise unauthenticated(NOT_GIVEN, invalid=False)
        token = token.strip()
        if self._published and self._published.keys is not self._remembered_under:
            self._remembered.clear()
            self._remembered_under = self._published.keys
        grant = self._remembered.get(token)
        if grant is None:
            grant = await self._check(token)
            if len(self._remembered) == REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[token] = grant
        if grant.expires_at <= time.time():
            self._remembered.pop(token, None)
            raise unauthenticated(REASONS[jwt.ExpiredSignatureError])
        if need not in grant.needs:
            raise forbidden(f"The token lacks the scope `{SCOPES[need]}`.", SCOPES[need])
        return grant

    async def _check(self, token: bytes) -> Grant:
        settings = self._settings
        try:
            claims = await self._claims(token.decode("ascii"))
            names = organisations(words(claims, settings.auth_organisations_claim, one=True))
            given = words(claims, settings.auth_scope_claim)
            return Grant(
                None if "*" in names else names,  # `*`: all organisations
                frozenset(need for need, scope in SCOPES.items() if scope in given),
                int(claims["exp"]) + settings.auth_leeway_seconds,
            )
        except ProblemError:
            raise
        except jwt.MissingRequiredClaimError as error:
            raise unauthenticated(f"The token lacks the claim `{error.claim}`.") from error
        except Exception as error:  # untrusted input: any error is possible
            raise unauthenticated(REASONS.get(type(error), "The token cannot be read.")) from error

    async def _claims(self, text: str) -> Mapping[str, Any]:
        """The claims of a valid token. Raises ProblemError, and any other error if the token is not valid."""
        header = jwt.get_unverified_header(text)
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in self._accepted:
            raise jwt.InvalidAlgorithmError
        try:
            return self._verify(text, kid, algorithm)
        except jwt.InvalidSignatureError:
            if not self._published or not await self._published.look_again():
                raise
            return self._verify(text, kid, algorithm)

    def _verify(self, text: str, kid: str | None, algorithm: str) -> Mapping[str, Any]:
        settings = self._settings
        for key in candidates(self._published.keys if self._published else self._own_keys, kid, algorithm):
            with suppress(jwt.InvalidSignatureError):  # another key may have signed it
                claims = DECODER.decode(
                    text,
                    key.value,
                    algorithms=[algorithm],  # one that is accepted, and that this key is for
                    audience=settings.auth_audience,
                    issuer=settings.auth_issuer,
                    leeway=settings.auth_leeway_seconds,
                    options={"require": ["exp", "aud", "iss"]},
                )
                for name in TIMES:  # PyJWT also takes booleans, and strings of digits
                    if type(claims.get(name, 0)) not in (int, float):
                        raise unauthenticated(f"The claim `{name}` of the token must be a number.")
                return claims
        raise jwt.InvalidSignatureError


@asynccontextmanager
async def open_tokens(settings: Settings) -> AsyncIterator[Tokens | None]:
    """None where authentication is switched off."""
    url = settings.auth_jwks_url
    if not url:
        yield Tokens(settings, None) if settings.authenticates() else None
        return
    async with httpx.AsyncClient(timeout=FETCH_SECONDS_MAX, **client_options(url)) as client:
        published = PublishedKeys(url, accepted_algorithms(settings), client)
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


def organisations(names: Sequence[str]) -> frozenset[str]:
    """Without those that no request can mean, and that PostgreSQL could not read: blank, too long, not Unicode."""
    possible = set()
    for name in names:
        with suppress(ValueError):
            name.encode()  # raises for a lone surrogate
            possible.add(parse_organisation(name))
    return frozenset(possible - {""})
