"""Some modules of service/web rest on uvicorn's internals; an upgrade that changes them fails here."""

import ast
import inspect
from asyncio import Protocol
from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service import ROOT
from service.web.load_shedding import SheddingConnection

NAMES = ("answering", "close_delimited", "connection", "load_shedding")
SOURCE = "\n".join((ROOT / "service" / "web" / f"{name}.py").read_text(encoding="utf-8") for name in NAMES)
CHANGED = f"uvicorn {{version}} has no {{name}}; adapt {', '.join(NAMES)} in service/web, which use it"


def attributes_of(kind: type) -> set[str]:
    """Those of the class, and those that its methods assign to `self`."""
    assigned = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(kind)))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    annotated = {name for each in kind.__mro__ for name in vars(each)}
    return assigned | annotated


def used(path: str) -> Iterator[str]:
    """The attributes that the source uses of this expression, such as `self.cycle`."""
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == path:
            yield node.attr


def own_attributes() -> set[str]:
    assigned = {
        node.attr
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return (assigned | set(dir(SheddingConnection))) - attributes_of(HttpToolsProtocol)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("self", HttpToolsProtocol),
        ("super()", HttpToolsProtocol),
        ("self.cycle", RequestResponseCycle),
        ("cycle", RequestResponseCycle),
        ("self.flow", FlowControl),
        ("self.server_state", ServerState),
    ],
)
def test_every_attribute_that_the_connection_uses_exists_in_uvicorn(path: str, kind: type) -> None:
    names = set(used(path)) - own_attributes()
    assert names, path
    missing = names - attributes_of(kind) - set(dir(Protocol))
    assert not missing, CHANGED.format(version=uvicorn.__version__, name=f"{kind.__name__}.{sorted(missing)}")


@pytest.mark.parametrize(
    "method",
    [
        "on_message_begin",
        "on_header",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "on_response_complete",
        "_should_upgrade",
    ],
)
def test_the_methods_that_are_overridden_exist_in_uvicorn(method: str) -> None:
    assert hasattr(HttpToolsProtocol, method), CHANGED.format(version=uvicorn.__version__, name=method)


def test_the_status_lines_are_bytes_by_status() -> None:
    assert httptools_impl.STATUS_LINE[404].startswith(b"HTTP/1.1 404 ")


def test_a_pipelined_request_is_a_pair_of_cycle_and_application() -> None:
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "self.pipeline.appendleft((self.cycle, app))" in source
    assert list(inspect.signature(HttpToolsProtocol._start_asgi_task).parameters) == ["self", "cycle", "app"]


def test_an_answer_is_framed_in_chunks_unless_the_cycle_says_otherwise() -> None:
    source = inspect.getsource(RequestResponseCycle.send)
    assert "if self.chunked_encoding is None and" in source
    assert "self.expected_content_length -= num_bytes" in source


def test_the_server_handles_signals_and_exit_as_the_subclass_expects() -> None:
    assert list(inspect.signature(uvicorn.Server.handle_exit).parameters) == ["self", "sig", "frame"]
    assert "should_exit" in attributes_of(uvicorn.Server)
