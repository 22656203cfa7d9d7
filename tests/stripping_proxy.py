"""A reverse proxy that publishes the service below a path, and strips that path from requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PREFIX = "/booking/v1"


@contextmanager
def stripping_proxy(target: str) -> Iterator[str]:
    """The URL below which the service at `target` is published."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            forwarded = {name: value for name, value in self.headers.items() if name != "Connection"}
            forwarded["X-Forwarded-Prefix"] = PREFIX
            answer = httpx.request(
                self.command, target + self.path.removeprefix(PREFIX), headers=forwarded, content=body
            )
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
        finally:
            server.shutdown()
