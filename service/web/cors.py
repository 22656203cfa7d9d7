"""Pages of other origins: which may read answers (CORS; Fetch standard, section 3.3), and which may write."""

import re
from collections.abc import Collection

from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from service.contract.headers import header
from service.problems import ProblemError

METHODS = "GET, HEAD, POST"
EXPOSED = b"ETag, Link, Retry-After, WWW-Authenticate, X-Changes-Cursor, X-Request-Id"
PREFLIGHT_SECONDS = 600  # for which a browser may remember the answer
ORIGIN = re.compile("https?://([^/, ]+)")
DEFAULT_PORT = re.compile(":(80|443)$")  # of either scheme, since a proxy may terminate TLS


class Cors:
    """Allows pages of these origins, of all for `*`. Credentials such as cookies are never accepted."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def _allows(self, origin: str | None) -> bool:
        return origin in self._origins or "*" in self._origins

    def headers(self, scope: Scope | None) -> list[tuple[bytes, bytes]]:
        """What every answer carries, so that a page can read errors too; nothing if no origin is allowed. The scope is
        None if a connection is refused before its first request."""
        if not self._origins:
            return []
        found = [(b"vary", b"Origin")]
        origin = header(scope, b"origin") if scope else None
        if origin is not None and self._allows(origin):
            allowed = b"*" if "*" in self._origins else origin.encode("latin-1")
            found += [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", EXPOSED)]
        return found

    def is_preflight(self, scope: Scope) -> bool:
        """Without an allowed origin there are none: OPTIONS is then a method like any other."""
        asked = scope["method"] == "OPTIONS" and self._origins and header(scope, b"access-control-request-method")
        return bool(asked) and header(scope, b"origin") is not None

    def preflight(self, scope: Scope) -> Response:
        """Allows any header, such as those that tracing adds: the service reads few, and ignores the others. By name,
        since `*` would not include Authorization. Raises ProblemError."""
        if not self._allows(header(scope, b"origin")):
            raise ProblemError("FOREIGN_ORIGIN", "CORS_ORIGINS does not name the origin of the page.")
        if header(scope, b"access-control-request-method") not in METHODS.split(", "):
            raise ProblemError("METHOD_NOT_ALLOWED", f"Pages may use {METHODS}.", headers={"Allow": METHODS})
        headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
            "Vary": "Access-Control-Request-Method, Access-Control-Request-Headers",
        }
        if asked := header(scope, b"access-control-request-headers"):
            headers["Access-Control-Allow-Headers"] = asked
        return PlainTextResponse("OK", headers=headers)

    def admit_write(self, scope: Scope) -> None:
        """Raises ProblemError, a 403, for a page that is neither the service's own nor allowed. CORS alone would not
        stop it, since browsers send simple requests without a preflight. Only browsers send these two headers. The
        second one is right even if a proxy changes `Host`, but is missing where the service is reached without TLS."""
        origin, site = header(scope, b"origin"), header(scope, b"sec-fetch-site")
        if (origin is None and site is None) or site == "same-origin":
            return
        foreign = site not in (None, "none") or (origin is not None and not is_own(origin, scope))
        if foreign and not self._allows(origin):
            detail = "Only pages of the service itself and of the origins in CORS_ORIGINS may write."
            raise ProblemError("FOREIGN_ORIGIN", detail)


def is_own(origin: str, scope: Scope) -> bool:
    """Whether the origin is the host that the request was sent to."""
    page, host = ORIGIN.fullmatch(origin.lower()), (header(scope, b"host") or "").lower()
    return page is not None and DEFAULT_PORT.sub("", page[1]) == DEFAULT_PORT.sub("", host)
