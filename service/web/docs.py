"""Swagger UI without internet access: the page is ours, its assets come from a package. All its addresses are relative,
so that it works behind a proxy that strips a prefix."""

import re
from base64 import b64encode
from functools import partial
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.access.grants import Grant
from service.web.endpoint import Endpoint
from service.web.openapi import document

ASSET_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
# Swagger UI uses style attributes and embeds its icons as data URLs.
POLICY = (
    "default-src 'none'; script-src 'self' 'sha256-{sha256}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HARDENED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes(*, guarded: bool) -> list[Route]:
    """Reads the assets here, not at import, so that only a process that serves them loads them."""
    page = Path(__file__).with_name("docs.html").read_bytes()
    assets = Path(str(distribution("swagger-ui-py").locate_file("swagger_ui/static")))
    [script] = re.findall(rb"<script>(.*)</script>", page)
    policy = POLICY.format(sha256=b64encode(sha256(script).digest()).decode())
    hardened = HARDENED | {"Content-Security-Policy": policy}
    contents = {
        "/api/docs": Response(page, media_type="text/html", headers=hardened),
        "/api/openapi.json": Response(msgspec.json.encode(document()), media_type="application/json"),
    }
    for name, media_type in ASSET_TYPES.items():
        content = (assets / name).read_bytes()
        contents[f"/api/docs/{name}"] = Response(content, media_type=media_type, headers=hardened)
    return [Route(path, Endpoint(partial(static, content), guarded=guarded)) for path, content in contents.items()]


async def static(content: Response, _: Request, __: Grant) -> Response:
    return content
