"""The live page: served to this machine only, made anew when the run has something to show."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datafree.errors import RunError
from datafree.report import server as server_module
from datafree.report.server import make_server
from run_directories import write_run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A run in progress and the port that its page is served at."""
    run = write_run(tmp_path, finished=False)
    server = make_server(run, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield run, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_page_and_its_version_change_with_the_run(served: tuple[Path, int]) -> None:
    run, port = served
    (code, page), (_, version) = get(port, "/"), get(port, "/version")
    assert code == 200 and "step 40 of 400" in page and 'id="live"' in page and "connect-src 'self'" in page
    assert get(port, "/version")[1] == version
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"index": 51, "step": 41, "loss": 0.1}) + "\n")
    assert get(port, "/version")[1] != version
    assert "step 41 of 400" in get(port, "/")[1]


@pytest.mark.parametrize("path", ["/recipe.yaml", "/../run/recipe.yaml", "/report.html"])
def test_nothing_else_is_served(served: tuple[Path, int], path: str) -> None:
    code, text = get(served[1], path)
    assert code == 404 and "steps" not in text


def test_a_page_of_another_name_is_refused(served: tuple[Path, int]) -> None:
    assert get(served[1], "/", host="evil.example")[0] == 403
    assert get(served[1], "/", host=f"localhost:{served[1]}")[0] == 200


def test_it_listens_on_the_loopback_address_alone(tmp_path: Path) -> None:
    server = make_server(write_run(tmp_path), 0)
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(RunError, match=r"port \d+ cannot be used .*; choose another --port"):
        make_server(write_run(tmp_path / "b"), server.server_port)
    server.server_close()


def test_a_run_that_is_taken_away_leaves_a_word(served: tuple[Path, int]) -> None:
    run, port = served
    run.rename(run.with_name("gone"))
    assert "the run is gone" in get(port, "/")[1]


# Clients that are not trusted.


def speaking(port: int, words: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(words)
    return client


def threads() -> int:
    return threading.active_count()


def test_silent_connections_are_bounded_and_the_page_is_still_served(served: tuple[Path, int]) -> None:
    before = threads()
    clients = [speaking(served[1]) for _ in range(200)]
    assert get(served[1], "/version")[0] == 200
    assert threads() - before <= server_module.AT_ONCE
    assert get(served[1], "/")[0] == 200
    for client in clients:
        client.close()
    wait_until(lambda: threads() == before)


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"G"])
def test_a_client_that_takes_too_long_is_hung_up_on(
    words: bytes, served: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SECONDS", 0.2)
    client = speaking(served[1], words)
    while True:  # a letter every now and then does not help
        try:
            client.sendall(b"a")
            client.settimeout(0.05)
            if not client.recv(100):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    client.close()


def test_a_client_that_reads_nothing_holds_a_thread_for_its_time_only(
    served: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SECONDS", 0.2)
    monkeypatch.setattr(server_module, "render", lambda seen, live: "x" * 50_000_000)
    before, client = threads(), speaking(served[1], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_until(lambda: threads() > before)
    wait_until(lambda: threads() == before)
    client.close()


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0\xff\x1b[31m\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
def test_a_client_that_hangs_up_or_talks_nonsense_is_no_traceback(
    words: bytes, served: tuple[Path, int], capfd: pytest.CaptureFixture[str]
) -> None:
    for linger in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):  # reset, or closed
        client = speaking(served[1], words)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.close()
    assert get(served[1], "/")[0] == 200
    captured = capfd.readouterr()
    assert captured == ("", "")


def test_a_page_that_cannot_be_made_is_a_line(served: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object, **also: object) -> str:
        raise ZeroDivisionError("a\x1b[31m")

    monkeypatch.setattr(server_module, "render", fails)
    assert get(served[1], "/") == (500, "the page could not be made\n")
    assert get(served[1], "/version")[0] == 200


def test_a_fault_of_a_page_is_told_as_a_line(tmp_path: Path) -> None:
    server, said = make_server(write_run(tmp_path), 0), list[str]()
    server.warn = said.append
    try:
        raise ZeroDivisionError("a\x1b[31m")
    except ZeroDivisionError:
        server.handle_error(None, None)
    try:
        raise ConnectionResetError
    except OSError:
        server.handle_error(None, None)
    server.server_close()
    assert said == ["warning: a request was not answered: ZeroDivisionError: a\\x1b[31m"]


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        make_server(tmp_path, 0)
