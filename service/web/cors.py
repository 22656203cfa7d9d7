"""Cross-origin requests: pages that may call the API from a browser (Fetch standard, section 3.3)."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.web.request_ids import new_id

PREFLIGHT_SECONDS = 600  # for which a browser may remember the answer


class Cors(CORSMiddleware):
    """Outermost, so that a page can read errors too. Credentials such as cookies are never accepted."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match", "X-Request-Id"],
            expose_headers=["ETag", "Link", "Retry-After", "WWW-Authenticate", "X-Changes-Cursor", "X-Request-Id"],
            max_age=PREFLIGHT_SECONDS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.headers["X-Request-Id"] = new_id()
        return response
