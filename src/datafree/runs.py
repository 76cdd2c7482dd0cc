"""The run directory: everything a run leaves behind, and all it needs to go on.

    RUN/
      recipe.yaml           the resolved recipe
      environment.json      versions, hardware, when it began
      metrics.jsonl         one line for each logged step
      tensorboard/          the same for TensorBoard
      samples/              what the source made, with the teacher's answers beside it
      state/state.pt        resumable state, exact; tensors and plain values only
      student.safetensors   the student's bare weights: loads without datafree
      generator.safetensors the source's generator, where it has one: `degan`'s can serve another run
      student.json          how to build it: network, arguments, classes, mean, std
      result.json           written last: scores, notes, which checkpoint and how it was chosen

Every file is written aside and renamed, so that none is ever half-written.
"""

from __future__ import annotations

import io
import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree import yaml12
from datafree.errors import RunError
from datafree.files import write_whole
from datafree.images import to_image

STATE_VERSION = 1

# What may differ between the run and the recipe that resumes it: none of these changes a bit of the student.
FREE_KEYS = ("name", "data", "training.log_every", "training.save_every", "training.picture_every")


class Run:
    """One run directory, opened for writing. `saved` is the state to go on from, or None."""

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        """Look at the directory: empty, or a run of the same recipe to go on with. Writes nothing yet.

        Raises RunError if the directory holds something else, or a run whose recipe differs in what matters.
        """
        self.path = path
        self.recipe = recipe
        self.saved: dict[str, Any] | None = None
        self.finished = False
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another --out")
        if path.is_dir() and any(path.iterdir()):
            self._check_same(recipe)
            self.finished = (path / "result.json").exists()
            if (path / "state" / "state.pt").exists():
                self.saved = self._read_state()
        self._writer: Any = None

    def _check_same(self, recipe: dict[str, Any]) -> None:
        from datafree.recipe import differences

        file = self.path / "recipe.yaml"
        if not file.exists():
            raise RunError(f"{self.path} is not empty and holds no run; choose another --out")
        try:
            before = yaml12.parse(file.read_text(encoding="utf-8"), str(file))
        except (ValueError, OSError) as error:
            raise RunError(f"{file} is damaged ({type(error).__name__}); choose another --out") from error
        free = set(FREE_KEYS)
        if recipe.get("training", {}).get("select") == "agreement":
            free.discard("training.save_every")  # it says which students compete
        changed = [d for d in differences(recipe, before) if d.split(":")[0] not in free]
        if changed:
            raise RunError(
                f"{self.path} holds a run of another recipe ({'; '.join(changed[:5])}); choose another --out"
            )

    def _read_state(self) -> dict[str, Any]:
        file = self.path / "state" / "state.pt"
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            version = state["version"]
        except Exception as error:  # a damaged archive raises anything from EOFError to RuntimeError
            raise RunError(
                f"{file} is damaged ({type(error).__name__}) and the run cannot go on from it; choose another --out"
            ) from error
        if version != STATE_VERSION:
            raise RunError(f"{file} has state version {version}, this datafree reads {STATE_VERSION}")
        return dict(state)

    def start(self, index: int) -> None:
        """Begin writing at update number `index` (0 = the first): later lines of a broken run are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self._write("recipe.yaml", yaml12.render(self.recipe).encode())
        if not (self.path / "environment.json").exists():
            self.save_json("environment.json", environment())
        file = self.path / "metrics.jsonl"
        kept = []
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["index"] <= index and index > 0:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # a line torn by a power cut
        self._write("metrics.jsonl", "".join(f"{line}\n" for line in kept).encode())
        self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=index)

    def log(self, index: int, step: int, values: dict[str, float]) -> None:
        """Add a line to metrics.jsonl and scalars to TensorBoard."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"index": index, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, index)

    def save_picture(self, index: int, picture: Tensor) -> None:
        """Write samples/NNNNNN.png and show it in TensorBoard. `picture`: (3, H, W) in [0, 1]."""
        content = io.BytesIO()
        to_image(picture).save(content, "PNG", optimize=True)
        self._write(f"samples/{index:06d}.png", content.getvalue())
        self._writer.add_image("samples", picture.clamp(0, 1), index)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the resumable state (tensors and plain values only)."""
        content = io.BytesIO()
        torch.save({"version": STATE_VERSION, **state}, content)
        self._write("state/state.pt", content.getvalue())

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into the run directory."""
        self._write(name, (json.dumps(content, indent=2) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_whole(self.path / name, content)
        except OSError as error:
            raise RunError(
                f"cannot write {self.path / name}: {error.strerror}; free some space, or choose another --out"
            ) from error

    def close(self) -> None:
        """Flush and close the logs. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def environment() -> dict[str, Any]:
    """Versions and hardware, as plain values."""
    names = (
        "datafree",
        "torch",
        "torchvision",
        "timm",
        "segmentation-models-pytorch",
        "numpy",
        "pillow",
        "safetensors",
    )
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "versions": versions,
        "hardware": hardware(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware() -> dict[str, Any]:
    """The processor, its threads and any accelerator."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }
