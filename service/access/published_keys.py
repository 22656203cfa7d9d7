"""The keys that an issuer publishes: a JSON Web Key Set (RFC 7517) at a URL."""

import asyncio
from collections.abc import Sequence
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
        self.keys: dict[str | None, Any] = {}  # replaced as a whole, never changed
        self._url, self._algorithms, self._client = url, algorithms, client
        self._asked_at = self._confirmed_at = -float("inf")
        self._asking = asyncio.Lock()

    async def find(self, name: str | None) -> Any:
        """The key that a token names. Raises jwt.PyJWTError if it is unknown, ProblemError if no keys are available."""
        if name not in self.keys:
            async with self._asking:  # concurrent requests share one fetch
                if name not in self.keys and monotonic() > self._asked_at + RETRY_SECONDS:
                    await self._fetch()
        if not self.keys:
            raise ProblemError("NOT_READY", NO_KEYS)
        if name not in self.keys:
            raise jwt.InvalidSignatureError
        return self.keys[name]

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
            self.keys = usable(msgspec.json.decode(response.content), self._algorithms)
        except Exception as error:  # the issuer's answer may be wrong in any way
            log.warning("keys not fetched", url=masked_url(self._url), cause=type(error).__name__)
            if self.keys and monotonic() > self._confirmed_at + KEEP_SECONDS_MAX:
                self.keys = {}
            return False
        self._confirmed_at = monotonic()
        return True


def usable(document: Any, algorithms: Sequence[str]) -> dict[str | None, Any]:
    """The signature keys of a key set by their ids; None leads to the only key, which a token does not have to name.
    A key that names its algorithm is used for no other. Raises jwt.PyJWTError if there is no usable key."""
    entries = document.get("keys") if isinstance(document, dict) else None
    keys: dict[str | None, Any] = {}
    for entry in entries if isinstance(entries, list) else []:
        try:
            if entry.get("use", "sig") == "sig" and entry.get("alg", algorithms[0]) in algorithms:
                key = jwt.PyJWK(entry)
                if key.key_type != "oct":  # a symmetric key that is published is not secret
                    keys[entry.get("kid")] = key if "alg" in entry else key.key
        except (jwt.PyJWTError, AttributeError, TypeError, ValueError) as error:
            log.warning("key ignored", cause=type(error).__name__)
    if not keys:
        raise jwt.PyJWKSetError("no usable key")
    return {None: next(iter(keys.values())), **keys} if len(keys) == 1 else keys
