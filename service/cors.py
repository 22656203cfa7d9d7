"""Which pages of other origins may call the API from a browser (Fetch standard, section 3.3)."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.observe import new_id

PREFLIGHT_SECONDS = 600  # that a browser may remember the answer
ASKED = ["Authorization", "Content-Type", "If-None-Match", "X-Request-Id"]
SHOWN = ["ETag", "Link", "Retry-After", "WWW-Authenticate", "X-Changes-Cursor", "X-Request-Id"]


class Cors(CORSMiddleware):
    """Around everything else, so that a page can read errors too. Cookies and the like are never taken."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=ASKED,
            expose_headers=SHOWN,
            max_age=PREFLIGHT_SECONDS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.headers["X-Request-Id"] = new_id()
        return response
