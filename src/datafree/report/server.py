"""The local web server of `datafree watch`: a run's page, on the loopback address alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from datafree.errors import RunError
from datafree.report.page import render
from datafree.report.run_reader import MEASURED, read_run

HOSTS = ("127.0.0.1", "localhost")
LOOKED_AT = ("recipe.yaml", "metrics.jsonl", "result.json", "student.json", MEASURED, "samples")


def serve(run: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve the page of `run` on the loopback address until Ctrl-C; port 0 is any free one. `tell` gets its URL.

    Raises RunError if the directory is none, or the port is taken.
    """
    server = make_server(run, port)
    tell(f"http://127.0.0.1:{server.server_port}/")
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def make_server(run: Path, port: int) -> ThreadingHTTPServer:
    """The server, bound and not yet serving."""
    read_run(run)
    page = _Page(run)

    class Handler(BaseHTTPRequestHandler):
        """Two addresses: the page, and a text that changes when the page would."""

        server_version = "datafree"
        sys_version = ""

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in HOSTS:  # a web page whose name was pointed at this machine
                self._answer(403, "text/plain", "this page is for this machine only\n")
            elif self.path == "/":
                self._answer(200, "text/html", page.text())
            elif self.path == "/version":
                self._answer(200, "text/plain", page.version())
            else:
                self._answer(404, "text/plain", "there is nothing here\n")

        def _answer(self, code: int, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal is the run's."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise RunError(f"port {port} cannot be used ({error}); choose another --port, or leave it out") from error
    server.daemon_threads = True
    return server


class _Page:
    """The page of a run, made when it is asked for and something has changed."""

    def __init__(self, run: Path) -> None:
        self._run, self._lock = run, threading.Lock()
        self._version, self._text = "", ""

    def version(self) -> str:
        """Other than before if a file of the run has changed."""
        stamps = []
        for name in LOOKED_AT:
            try:
                about = (self._run / name).stat()
                stamps.append(f"{about.st_mtime_ns}-{about.st_size}")
            except OSError:
                stamps.append("-")
        return " ".join(stamps)

    def text(self) -> str:
        """The page."""
        with self._lock:
            version = self.version()
            if version != self._version:
                try:
                    self._text = render(read_run(self._run), live=True)
                except RunError as error:
                    return f"<!doctype html><title>datafree</title><pre>{type(error).__name__}: the run is gone</pre>"
                self._version = version
            return self._text
