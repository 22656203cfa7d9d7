"""Swagger UI, without the internet: its page is ours, its assets come from a package."""

from functools import partial
from importlib.metadata import distribution
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from service.openapi import DOCUMENT

PAGE = Path(__file__).with_name("docs.html").read_bytes()
ASSETS = Path(str(distribution("swagger-ui-py").locate_file("swagger_ui/static")))
ASSET_NAMES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")


async def page(_: Request) -> Response:
    return Response(PAGE, media_type="text/html")


async def document(_: Request) -> Response:
    return Response(DOCUMENT, media_type="application/json")


async def asset(name: str, _: Request) -> Response:
    return FileResponse(ASSETS / name)


ROUTES = [
    Route("/api/docs", page),
    Route("/api/openapi.json", document),
    *(Route(f"/api/docs/{name}", partial(asset, name)) for name in ASSET_NAMES),
]
