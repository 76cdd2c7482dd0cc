"""The local web server of `datafree watch`: a run's page, on the loopback address alone.

Its clients are not trusted: each connection has a time in all, and there are so many at most. Where there is no room
for a new one, that which has said nothing for longest is closed.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from datafree.deploy.bench_file import BENCH
from datafree.errors import RunError
from datafree.report.page import render
from datafree.report.run_reader import MEASURED, read_run
from datafree.text import one_line

HOSTS = ("127.0.0.1", "localhost")
LOOKED_AT = (
    "recipe.yaml",
    "metrics.jsonl",
    "result.json",
    "student.json",
    MEASURED,
    "samples",
    BENCH,
    "export/config.json",
)
AT_ONCE = 16  # connections, and so threads, at most
SECONDS = 10.0  # of a connection in all, and of each wait for its client
PATIENCE = 1.0  # seconds that a new connection waits for one that was closed to make room


def serve(run: Path, port: int, tell: Callable[[str], None], warn: Callable[[str], None] = lambda line: None) -> None:
    """Serve the page of `run` on the loopback address until Ctrl-C; port 0 is any free one. `tell` gets its URL.

    `warn` gets a line for each page that could not be made. Raises RunError if the directory is none, or the port is
    taken.
    """
    server = make_server(run, port)
    server.warn = warn
    tell(f"http://127.0.0.1:{server.server_port}/")
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def make_server(run: Path, port: int) -> PageServer:
    """The server, bound and not yet serving."""
    read_run(run)
    page = _Page(run)

    class Handler(BaseHTTPRequestHandler):
        """Two addresses: the page, and a text that changes when the page would."""

        server_version = "datafree"
        sys_version = ""
        timeout = SECONDS
        server: PageServer

        def do_GET(self) -> None:
            self.server.heard(self.connection)
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in HOSTS:  # a web page whose name was pointed at this machine
                self._answer(403, "text/plain", "this page is for this machine only\n")
            elif self.path == "/":
                self._answer_with_page()
            elif self.path == "/version":
                self._answer(200, "text/plain", page.version())
            else:
                self._answer(404, "text/plain", "there is nothing here\n")

        def _answer_with_page(self) -> None:
            try:
                text = page.text()
            except Exception:
                self._answer(500, "text/plain", "the page could not be made\n")
                raise
            self._answer(200, "text/html", text)

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
        return PageServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise RunError(f"port {port} cannot be used ({error}); choose another --port, or leave it out") from error


class PageServer(HTTPServer):
    """A thread for each connection, of which there are AT_ONCE at most, none older than SECONDS."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self.warn: Callable[[str], None] = lambda line: None
        self._open: dict[socket.socket, float] = {}  # connections, the oldest first, and when they were made
        self._heard: set[socket.socket] = set()  # those that have asked for something
        self._changed = threading.Condition()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread, if there is room for one or can be made."""
        with self._changed:
            silent = next((one for one in self._open if one not in self._heard), None)
            if len(self._open) >= AT_ONCE and silent is not None:
                self._hang_up(silent)
                self._changed.wait_for(lambda: len(self._open) < AT_ONCE, PATIENCE)
            if len(self._open) >= AT_ONCE:  # all are being answered
                self.shutdown_request(request)
                return
            self._open[request] = time.monotonic()
        try:
            threading.Thread(target=self._answer, args=(request, client_address), daemon=True).start()
        except RuntimeError:  # the system has no threads left
            self._done(request)

    def heard(self, request: socket.socket) -> None:
        """A connection has asked for something: it is not closed to make room."""
        with self._changed:
            self._heard.add(request)

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self._done(request)

    def _done(self, request: socket.socket) -> None:
        self.shutdown_request(request)
        with self._changed:
            self._open.pop(request, None)
            self._heard.discard(request)
            self._changed.notify()

    def service_actions(self) -> None:
        """Called some times a second: end connections that have had their time, however slowly they speak."""
        with self._changed:
            for request, began in list(self._open.items()):
                if time.monotonic() - began > SECONDS:
                    self._hang_up(request)

    def _hang_up(self, request: socket.socket) -> None:
        """Whoever waits for this client hears its end."""
        with suppress(OSError):  # it has gone already
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up or is too slow is no fault; what is one is a line."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.warn(f"warning: a request was not answered: {one_line(error)}")


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
