"""The live page: served to this machine only, made anew when the run has something to show."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from datafree.errors import RunError
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
    assert code == 200 and "step 40 of 40" in page and 'id="live"' in page and "connect-src 'self'" in page
    assert get(port, "/version")[1] == version
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"index": 51, "step": 41, "loss": 0.1}) + "\n")
    assert get(port, "/version")[1] != version
    assert "step 41 of 40" in get(port, "/")[1]


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


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        make_server(tmp_path, 0)
