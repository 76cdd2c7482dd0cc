"""A student's upload: what would go, and what a server gets."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.deploy.bench_run import bench_run
from datafree.deploy.export_run import export_run
from datafree.deploy.push import push_run
from datafree.errors import DatafreeError, RunError
from datafree.evaluation.finished_run import load_student
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.normalized import bare
from deploy.test_export_run import UNET, write_run


class Hub(BaseHTTPRequestHandler):
    """The requests of an upload, as the Hub answers them."""

    asked: list[str]
    files: dict[str, bytes]
    refuses: bool

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub: Any = self.server
        address = f"http://127.0.0.1:{hub.server_port}"
        hub.asked.append(self.path)
        if hub.refuses:
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            return self._answer({"url": f"{address}/me/{json.loads(body)['name']}"})
        if "/preupload/" in self.path:
            named = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in named]
            return self._answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del hub.files[line["value"]["path"]]
            return self._answer({"commitUrl": f"{address}/me/it/commit/1", "commitOid": "1", "success": True})
        return self._answer({"errors": [], "warnings": []})  # of the card's front matter

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            files: Any = self.server
            return self._answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files.files])
        return self._answer({"sha": "0", "id": "me/it", "siblings": []})

    def _answer(self, content: Any, code: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *parts: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.refuses = [], {}, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def pushed(hub: Any, run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as huggingface_hub reads its environment when it is imported."""
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(run.parent / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "datafree", "push", str(run), "me/it", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def here(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, as this process's Hub."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub


def test_a_push_uploads_the_files_of_the_export_and_nothing_else(tmp_path: Path, here: Any) -> None:
    run = write_run(tmp_path / "run", UNET)
    export_run(run, onnx=False)
    (run / "export" / "notes.txt").write_text("mine")
    done = push_run(run, "me/it")
    assert set(here.files) == {"student.safetensors", "config.json", "README.md"}
    assert all((run / "export" / name).read_bytes() == content for name, content in here.files.items())
    assert here.asked[0] == "/api/repos/create"
    assert done.url == f"http://127.0.0.1:{here.server_port}/me/it"


def test_a_push_takes_what_an_earlier_export_left_out_of_the_repository(tmp_path: Path, here: Any) -> None:
    run = write_run(tmp_path / "run", UNET)
    export_run(run, onnx=False)
    here.files |= {"student.int8.onnx": b"old", "notes.md": b"mine", ".gitattributes": b""}
    push_run(run, "me/it")
    assert set(here.files) == {"student.safetensors", "config.json", "README.md", "notes.md", ".gitattributes"}


def test_an_export_of_another_student_is_neither_pushed_nor_timed(tmp_path: Path, here: Any) -> None:
    run = write_run(tmp_path / "run", UNET)
    export_run(run)
    card = (run / "export" / "README.md").read_text()
    later = load_student(run)
    with torch.no_grad():
        next(later.network.parameters()).add_(1.0)
    save_weights(bare(later.network), run / "student.safetensors")
    with pytest.raises(RunError, match=r"is of another student than .* holds now; run `datafree export .*` again"):
        push_run(run, "me/it")
    assert not here.files
    timed, _ = bench_run(run, rounds=1, threads=1)
    assert set(timed.rows) <= {"teacher", "student"}
    assert any("is of another student" in note for note in timed.notes)
    assert (run / "export" / "README.md").read_text() == card


@pytest.mark.thorough
def test_the_command_uploads_the_files_of_the_export_and_nothing_else(tmp_path: Path, hub: Any) -> None:
    run = write_run(tmp_path / "run", UNET)
    export_run(run, onnx=False)
    (run / "export" / "notes.txt").write_text("mine")
    done = pushed(hub, run)
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"student.safetensors", "config.json", "README.md"}
    assert all((run / "export" / name).read_bytes() == content for name, content in hub.files.items())
    assert hub.asked[0] == "/api/repos/create"
    assert done.stdout.splitlines()[-1] == f"pushed: http://127.0.0.1:{hub.server_port}/me/it"


def test_a_server_that_refuses_is_one_line_that_says_how_to_log_in(tmp_path: Path, here: Any) -> None:
    run = write_run(tmp_path / "run", UNET)
    export_run(run, onnx=False)
    here.refuses = True
    with pytest.raises(DatafreeError) as caught:
        push_run(run, "me/it")
    assert here.asked[0] == "/api/repos/create" and not here.files
    line = str(caught.value)
    assert line.startswith("cannot upload to me/it: ") and "hf auth login" in line and "\n" not in line


def test_a_dry_run_says_what_would_be_uploaded_and_makes_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", UNET)
    before = push_run(run, "me/it", dry_run=True)
    assert (before.files, before.url) == ({}, None)
    assert "would be made first" in before.notes[0] and not (run / "export").exists()
    sizes = export_run(run, onnx=False).sizes
    again = push_run(run, "me/it", dry_run=True)
    assert (again.files, again.url) == (sizes, None)


def test_offline_it_says_what_it_would_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = write_run(tmp_path / "run", UNET)
    export_run(run, onnx=False)
    with pytest.raises(DatafreeError, match=r"HF_HUB_OFFLINE is set, .* to me/it; it would be: student.safetensors \("):
        push_run(run, "me/it")


def test_what_is_no_run_or_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        push_run(tmp_path, "me/it", dry_run=True)
    with pytest.raises(DatafreeError, match="is no repository's name, such as me/my-student"):
        push_run(write_run(tmp_path / "run", UNET), "a/b/c", dry_run=True)
