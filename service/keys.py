"""The keys that tokens are signed with: of the settings, or as the issuer publishes them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import httpx
import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service.problems import ProblemError
from service.settings import Settings, StartError, masked_url

log = structlog.get_logger()

KINDS_OF_KEY = ("auth_secret", "auth_public_key_file", "auth_jwks_url")
SHARED = ("HS256", "HS384", "HS512")
PUBLIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
PUBLIC_DEFAULT = ("RS256", "ES256", "EdDSA")
FETCH_SECONDS_MAX = 5
RETRY_SECONDS = 10  # between two looks for a key that is not known, or after one that failed
KEEP_SECONDS_MAX = 86_400  # keys that the issuer no longer confirms
NO_KEYS = "The issuer's keys are not to be had."


class Keys(Protocol):
    algorithms: Sequence[str]

    async def find(self, header: Mapping[str, Any]) -> Any:
        """The key for a token with this header. Raises jwt.PyJWTError if there is none, and ProblemError
        while that cannot be said."""

    def on_change(self, forget: Callable[[], None]) -> None:
        """`forget` is called when a key may have been withdrawn."""

    def why_not_ready(self) -> str | None:
        """The reason as a sentence, or None."""


class OneKey:
    """A shared secret or a public key, for as long as the process runs."""

    def __init__(self, key: Any, algorithms: Sequence[str]) -> None:
        self._key = key
        self.algorithms = algorithms

    async def find(self, _: Mapping[str, Any]) -> Any:
        return self._key

    def on_change(self, forget: Callable[[], None]) -> None:
        """It never does."""

    def why_not_ready(self) -> None:
        return None


class PublishedKeys:
    """A JSON Web Key Set (RFC 7517) at a URL. It is fetched anew from time to time, and when a token names
    a key that it lacks; while that fails the keys at hand serve on, for a day at most."""

    def __init__(self, url: str, algorithms: Sequence[str], client: httpx.AsyncClient) -> None:
        self.algorithms = algorithms
        self._url = url
        self._client = client
        self._keys: dict[str | None, Any] = {}
        self._asked_at = self._confirmed_at = -float("inf")
        self._asking = asyncio.Lock()
        self._forget: list[Callable[[], None]] = []

    def on_change(self, forget: Callable[[], None]) -> None:
        self._forget.append(forget)

    def why_not_ready(self) -> str | None:
        return None if self._keys else NO_KEYS

    async def find(self, header: Mapping[str, Any]) -> Any:
        key = self._named(header.get("kid"))
        if key is None:
            async with self._asking:  # of many who miss a key one asks
                key = self._named(header.get("kid"))
                if key is None and monotonic() > self._asked_at + RETRY_SECONDS:
                    await self._fetch()
                    key = self._named(header.get("kid"))
        if not self._keys:
            raise ProblemError("NOT_READY", NO_KEYS)
        if key is None:
            raise jwt.InvalidSignatureError
        return key

    def _named(self, name: str | None) -> Any:
        """A token need not name the only key."""
        only = name is None and len(self._keys) == 1
        return next(iter(self._keys.values())) if only else self._keys.get(name)

    async def refresh(self, seconds: float) -> None:
        """Until it is cancelled."""
        while True:
            async with self._asking:
                fresh = await self._fetch()
            await asyncio.sleep(seconds if fresh else min(seconds, RETRY_SECONDS))

    async def _fetch(self) -> bool:
        """Whether it succeeded."""
        self._asked_at = monotonic()
        try:
            response = (await self._client.get(self._url)).raise_for_status()
            keys = usable(msgspec.json.decode(response.content), self.algorithms)
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, RecursionError, jwt.PyJWTError) as error:
            log.warning("keys not fetched", url=masked_url(self._url), cause=type(error).__name__)
            if self._keys and monotonic() > self._confirmed_at + KEEP_SECONDS_MAX:
                self._replace({})
            return False
        self._confirmed_at = monotonic()
        self._replace(keys)
        return True

    def _replace(self, keys: dict[str | None, Any]) -> None:
        self._keys = keys
        for forget in self._forget:
            forget()


def usable(document: Any, algorithms: Sequence[str]) -> dict[str | None, Any]:
    """The keys for signatures by their ids. A key that names its algorithm serves for no other. Raises
    jwt.PyJWTError if there is none."""
    keys: dict[str | None, Any] = {}
    for entry in document.get("keys", []) if isinstance(document, dict) else []:
        try:
            if entry.get("use", "sig") == "sig" and entry.get("alg", algorithms[0]) in algorithms:
                key = jwt.PyJWK(entry)
                if key.key_type != "oct":  # a secret that is published is none
                    keys[entry.get("kid")] = key if "alg" in entry else key.key
        except (jwt.PyJWTError, AttributeError, TypeError, ValueError) as error:
            log.warning("key left out", cause=type(error).__name__)
    if not keys:
        raise jwt.PyJWKSetError("no usable key")
    return keys


def check_keys(settings: Settings) -> None:
    """Raises StartError if the settings of authentication do not go together."""
    given = [name for name in KINDS_OF_KEY if getattr(settings, name)]
    rest = [name for name in ("auth_audience", "auth_issuer", "auth_algorithms") if getattr(settings, name)]
    if not given and rest:
        raise StartError(f"Setting {rest[0].upper()} needs one of {spelt(KINDS_OF_KEY)}.")
    if len(given) > 1:
        raise StartError(f"Settings {spelt(given)} exclude one another; keep one.")
    if given:
        for name in ("auth_audience", "auth_issuer"):
            if not getattr(settings, name):
                raise StartError(f"Setting {name.upper()} is missing; {given[0].upper()} needs it.")
        algorithms = algorithms_of(settings)
        if settings.auth_public_key_file:
            read_public_key(settings.auth_public_key_file)
        if settings.auth_secret and len(settings.auth_secret.encode()) < (least := secret_bytes_min(algorithms)):
            raise StartError(f"Setting AUTH_SECRET is too short; expected at least {least} bytes.")


def spelt(names: Sequence[str]) -> str:
    return ", ".join(name.upper() for name in names)


def algorithms_of(settings: Settings) -> Sequence[str]:
    """Those for a secret and those for public keys never go together. Raises StartError."""
    possible, otherwise = (SHARED, SHARED[:1]) if settings.auth_secret else (PUBLIC, PUBLIC_DEFAULT)
    asked = tuple(name.strip() for name in settings.auth_algorithms.split(",") if name.strip())
    if not set(asked) <= set(possible):
        raise StartError(f"Setting AUTH_ALGORITHMS is wrong: expected some of {', '.join(possible)}.")
    return asked or otherwise


def secret_bytes_min(algorithms: Sequence[str]) -> int:
    """As many as the longest digest. Source: RFC 7518, section 3.2."""
    return max(int(name.removeprefix("HS")) // 8 for name in algorithms)


def read_public_key(file: str) -> Any:
    try:
        return load_pem_public_key(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected a public key in PEM"
        raise StartError(f"Setting AUTH_PUBLIC_KEY_FILE is wrong: {reason}.") from error


@asynccontextmanager
async def open_keys(settings: Settings) -> AsyncIterator[Keys]:
    algorithms = algorithms_of(settings)
    if not settings.auth_jwks_url:
        key = settings.auth_secret or read_public_key(settings.auth_public_key_file)
        yield OneKey(key, algorithms)
        return
    async with httpx.AsyncClient(timeout=FETCH_SECONDS_MAX) as client:
        keys = PublishedKeys(settings.auth_jwks_url, algorithms, client)
        task = asyncio.create_task(keys.refresh(settings.auth_jwks_seconds))
        try:
            yield keys
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
