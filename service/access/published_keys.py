"""The keys that an issuer publishes: a JSON Web Key Set (RFC 7517) at a URL."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import httpx
import jwt
import msgspec
import structlog

from service.problems import ProblemError
from service.settings import masked_url

log = structlog.get_logger()

REFRESH_SECONDS = 300
RETRY_SECONDS = 10  # after a failed fetch, and between two fetches for unknown keys
KEEP_SECONDS_MAX = 86_400  # of keys that the issuer no longer confirms
NO_KEYS = "The issuer's keys are not available."


class PublishedKeys:
    """Fetched regularly, and when a token names a key that is not there. While fetching fails, the keys at hand
    stay in use, for a day at most."""

    def __init__(self, url: str, algorithms: Sequence[str], client: httpx.AsyncClient) -> None:
        self.keys: dict[str | None, Any] = {}
        self.on_replaced: Callable[[], None] = lambda: None
        self._url = url
        self._algorithms = algorithms
        self._client = client
        self._asked_at = self._confirmed_at = -float("inf")
        self._asking = asyncio.Lock()

    async def find(self, header: Mapping[str, Any]) -> Any:
        """The key for a token with this header. Raises jwt.PyJWTError if there is none, and ProblemError while no keys
        are available."""
        key = self._named(header.get("kid"))
        if key is None:
            async with self._asking:  # concurrent requests share one fetch
                key = self._named(header.get("kid"))
                if key is None and monotonic() > self._asked_at + RETRY_SECONDS:
                    await self._fetch()
                    key = self._named(header.get("kid"))
        if not self.keys:
            raise ProblemError("NOT_READY", NO_KEYS)
        if key is None:
            raise jwt.InvalidSignatureError
        return key

    def _named(self, name: str | None) -> Any:
        """A token does not have to name the only key."""
        only = name is None and len(self.keys) == 1
        return next(iter(self.keys.values())) if only else self.keys.get(name)

    async def refresh(self) -> None:
        """Runs until it is cancelled."""
        while True:
            async with self._asking:
                fresh = await self._fetch()
            await asyncio.sleep(REFRESH_SECONDS if fresh else min(REFRESH_SECONDS, RETRY_SECONDS))

    async def _fetch(self) -> bool:
        """Whether it succeeded."""
        self._asked_at = monotonic()
        try:
            response = (await self._client.get(self._url)).raise_for_status()
            keys = usable(msgspec.json.decode(response.content), self._algorithms)
        except Exception as error:  # the issuer's answer may be wrong in any way
            log.warning("keys not fetched", url=masked_url(self._url), cause=type(error).__name__)
            if self.keys and monotonic() > self._confirmed_at + KEEP_SECONDS_MAX:
                self._replace({})
            return False
        self._confirmed_at = monotonic()
        self._replace(keys)
        return True

    def _replace(self, keys: dict[str | None, Any]) -> None:
        self.keys = keys
        self.on_replaced()


def usable(document: Any, algorithms: Sequence[str]) -> dict[str | None, Any]:
    """The signature keys of a key set by their ids. A key that names its algorithm is used for no other. Raises
    jwt.PyJWTError if there is no usable key."""
    entries = document.get("keys") if isinstance(document, dict) else None
    keys: dict[str | None, Any] = {}
    for entry in entries if isinstance(entries, list) else []:
        try:
            if entry.get("use", "sig") == "sig" and entry.get("alg", algorithms[0]) in algorithms:
                key = jwt.PyJWK(entry)
                if key.key_type != "oct":  # a published secret is not a secret
                    keys[entry.get("kid")] = key if "alg" in entry else key.key
        except (jwt.PyJWTError, AttributeError, TypeError, ValueError) as error:
            log.warning("key left out", cause=type(error).__name__)
    if not keys:
        raise jwt.PyJWKSetError("no usable key")
    return keys
