"""Swagger UI, without the internet: its page is ours, its assets come from a package."""

import re
from base64 import b64encode
from functools import partial
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.endpoint import Endpoint, Handler
from service.openapi import DOCUMENT

PAGE = Path(__file__).with_name("docs.html").read_bytes()
[SCRIPT] = re.findall(rb"<script>(.*)</script>", PAGE)
ASSETS = Path(str(distribution("swagger-ui-py").locate_file("swagger_ui/static")))
ASSET_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}


# Swagger UI styles its parts by attributes, and has its icons in data.
POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{b64encode(sha256(SCRIPT).digest()).decode()}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HARDENED = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def page(_: Request) -> Response:
    return Response(PAGE, media_type="text/html", headers=HARDENED)


async def document(_: Request) -> Response:
    return Response(DOCUMENT, media_type="application/json")


async def asset(content: bytes, media_type: str, _: Request) -> Response:
    return Response(content, media_type=media_type, headers=HARDENED)


HANDLERS: dict[str, Handler] = {
    "/api/docs": page,
    "/api/openapi.json": document,
    **{
        f"/api/docs/{name}": partial(asset, (ASSETS / name).read_bytes(), media_type)
        for name, media_type in ASSET_TYPES.items()
    },
}


def routes(*, guarded: bool) -> list[Route]:
    return [Route(path, Endpoint(handler, guarded=guarded)) for path, handler in HANDLERS.items()]
