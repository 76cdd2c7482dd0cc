"""The run directory: everything a run leaves behind, and all it needs to be resumed.

    RUN/
      recipe.yaml           the resolved recipe
      chosen.yaml           the recipe as datafree chose it, with comments, where the user has written none
      environment.json      versions, hardware, when it began
      metrics.jsonl         one line for each logged step
      tensorboard/          the same for TensorBoard, unless `training.track` leaves it out
      trackers.json         what other trackers call the run
      samples/              what the source made, with the teacher's answers beside it
      state/state.pt        resumable state, exact; tensors and plain values only, with a checksum
      state/previous.pt     the state saved before it: what a damaged state.pt falls back to
      faults/NNNNNN.pt      a step whose numbers were not finite: its inputs and random states, to be looked into
      student.safetensors   the student's bare weights: loads without datafree
      generator.safetensors the source's generator, where it has one: `degan`'s can serve another run
      student.json          how to build it: network, arguments, classes, mean, std; the weights' digests
      result.json           written last: scores, notes, which checkpoint and how it was chosen; the others' digests
      .lock                 held by the process that writes here

Every file is written aside and renamed, or grows by whole lines, so that none is ever half-written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.config import yaml
from datafree.config.diff import check_same
from datafree.data.images import to_image
from datafree.errors import RunError
from datafree.storage import checkpoint, strict_json, written
from datafree.storage.atomic import Growing, remove_asides, require_ordinary_in, room_for, to_write, write_whole
from datafree.storage.environment import environment
from datafree.storage.lock import Lock
from datafree.storage.migrations import STATE_VERSION, migrated
from datafree.storage.places import entries_of_run, require_for_run
from datafree.storage.tensorboard import EventFile
from datafree.storage.trackers import Trackers

WRITTEN = (".html", ".json", ".jsonl", ".pt", ".safetensors", ".yaml")  # the files of a run, by their suffixes
NOTED = ("student.json", "measured.json", "recipe.yaml", "environment.json", "metrics.jsonl")  # by digest, at the end
PATIENCE = 3  # saves in a row that find no room: the last of them ends the run

# What may differ between the run and the recipe that resumes it: none of these changes a bit of the student.
FREE_KEYS = (
    "name",
    "data",
    "training.log_every",
    "training.save_every",
    "training.picture_every",
    "training.max_rollbacks",
    "training.track",
)


def require_same(path: Path, recipe: dict[str, Any]) -> None:
    """Raise RunError unless the run that was begun in `path` has this recipe, but for FREE_KEYS, or can be read."""
    free = set(FREE_KEYS)
    if recipe.get("training", {}).get("select") == "agreement":
        free.discard("training.save_every")  # it says which students compete
    check_same(path / "recipe.yaml", recipe, free.__contains__, "a run")


class Run:
    """One run directory, opened for writing. `saved` is the state to resume from, or None.

    Whoever opens it closes it: until then no other process may write there.
    """

    def __init__(self, path: Path, recipe: dict[str, Any], drafted: str | None = None) -> None:
        """Look at the directory: empty, or a run of the same recipe to resume. Writes nothing yet but a lock.

        `drafted`: the text of chosen.yaml.
        Raises RunError if the directory holds something else, a run whose recipe differs in what matters, or one that
        another process is at.
        """
        self.path = path
        self.recipe = recipe
        self.drafted = drafted
        self.saved: dict[str, Any] | None = None
        self.finished = False
        self.warnings: list[str] = []  # for the user, of what was found
        self._say: Callable[[str], None] = lambda line: None
        self._lock = Lock(path)
        self._metrics: Growing | None = None
        self._events: EventFile | None = None
        kinds = recipe.get("training", {}).get("track", ["tensorboard"])
        self._for_tensorboard, self._trackers = "tensorboard" in kinds, Trackers(path, recipe, kinds)
        self._failed = 0  # saves in a row that found no room
        self._mute: set[str] = set()  # what the user was told once
        self._began = False  # whether there was a run when it was looked at
        require_for_run(path)
        if not entries_of_run(path):
            return
        require_same(path, recipe)
        self._began, self.finished = True, (path / "result.json").is_file()
        if not self.finished:
            self._check_ordinary()
            self._take_lock()
            try:
                self.saved = self.last_state()
            except RunError:
                self.close()
                raise

    def _check_ordinary(self) -> None:
        """What a run writes over must be its own: no link to another file, no device."""
        try:
            require_ordinary_in(self.path, self.path / "state", suffixes=WRITTEN)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror}; move it away, or choose another --out") from error

    def last_state(self) -> dict[str, Any] | None:
        """The latest good state on disk, None where none was saved; a damaged one is passed over with a warning.

        Raises RunError if all are damaged, or of a version that is not known.
        """
        damaged = []
        for name in ("state.pt", "previous.pt"):
            file = self.path / "state" / name
            try:
                state = migrated(checkpoint.read(file), file)
            except FileNotFoundError:
                continue
            except checkpoint.Damaged as error:
                damaged.append(f"{file} is damaged ({error})")
                continue
            if damaged:
                self.warnings.append(
                    f"warning: {damaged[0]}: resuming from the previous checkpoint, of step {state['step']}"
                )
                self._put_previous_first = True
            return state
        if damaged:
            raise RunError(f"{damaged[0]} and the run cannot be resumed; choose another --out")
        return None

    _put_previous_first = False  # whether state.pt is damaged and previous.pt is not

    def start(self, index: int, say: Callable[[str], None] = lambda line: None) -> None:
        """Begin writing at update number `index` (0 = the first), or go back to it: later lines are dropped.

        `say` is told what went wrong with a file that a run can do without for a while. Raises RunError.
        """
        self._say = say
        self._close_logs()
        self._take_lock()
        if not self._began and (self.path / "recipe.yaml").exists():
            raise RunError(f"another process has started a run in {self.path}; run the same command again to resume it")
        self._began = True
        try:
            remove_asides(self.path, self.path / "state", self.path / "samples", self.path / "faults")
            if self._put_previous_first:
                (self.path / "state" / "previous.pt").replace(self.path / "state" / "state.pt")
                self._put_previous_first = False
            write_whole(self.path / "recipe.yaml", yaml.render(self.recipe).encode())
            if self.drafted is not None:
                write_whole(self.path / "chosen.yaml", self.drafted.encode())
            if not (self.path / "environment.json").exists():
                self.save_json("environment.json", environment())
            write_whole(self.path / "metrics.jsonl", self._lines_until(index))
            self._metrics = Growing(self.path / "metrics.jsonl")
            self._events = EventFile(self.path / "tensorboard", index) if self._for_tensorboard else None
            self._trackers.start(say)
        except OSError as error:
            raise self._cannot_write(self.path, error) from error

    def _lines_until(self, index: int) -> bytes:
        file, kept = self.path / "metrics.jsonl", []
        if index > 0 and file.exists():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if strict_json.parse(line)["index"] <= index:
                        kept.append(line)
                except (strict_json.Damaged, KeyError, TypeError):
                    continue  # a line torn by a power cut
        return "".join(f"{line}\n" for line in kept).encode()

    def _take_lock(self) -> None:
        try:
            self._lock.take()
        except OSError as error:
            raise self._cannot_write(self.path, error) from error

    def log(self, index: int, step: int, values: dict[str, float]) -> None:
        """Add a line to metrics.jsonl, scalars to the trackers. Without room it waits for the next line or save."""
        assert self._metrics is not None
        self._trackers.scalars(values, index)
        line = json.dumps({"index": index, "step": step, **values})
        adds = [partial(self._metrics.add, f"{line}\n".encode())]
        if self._events is not None:
            adds.append(partial(self._events.scalars, values, index))
        for add in adds:
            try:  # each by itself: what one of them does not take waits there
                add()
            except OSError as error:
                self._tell_once(f"cannot write the logs in {self.path}", error)

    def save_picture(self, index: int, picture: Tensor) -> None:
        """Write samples/NNNNNN.png and show it in the trackers. `picture`: (3, H, W) in [0, 1]. Not without room."""
        self._trackers.image("samples", picture.clamp(0, 1), index)
        content = io.BytesIO()
        to_image(picture).save(content, "PNG", optimize=True)
        try:
            write_whole(self.path / "samples" / f"{index:06d}.png", content.getvalue())
            if self._events is not None:
                self._events.image("samples", picture.clamp(0, 1), index)
        except OSError as error:
            self._tell_once(f"cannot write pictures into {self.path / 'samples'}", error)

    def save_state(self, state: dict[str, Any], *, must: bool = False) -> bool:
        """Write the resumable state (tensors and plain values only); the one before stays as state/previous.pt.

        False where there was no room: the run may continue, and the state before stays good. Raises RunError when it
        `must` be written, or could not be PATIENCE times in a row.
        """
        file = self.path / "state" / "state.pt"
        try:
            if self._metrics is not None:  # the lines of steps that are not done again
                self._metrics.flush(to_disk=True)
            checkpoint.write(file, {**state, "version": STATE_VERSION}, file.with_name("previous.pt"))
        except OSError as error:
            self._failed += 1
            problem = self._cannot_write(file, error)
            if must or self._failed >= PATIENCE:
                raise problem from error
            self._say(f"warning: {problem}; the run continues and saves later")
            return False
        self._failed = 0
        return True

    def save_fault(self, index: int, content: dict[str, Any]) -> Path | None:
        """Keep what is needed to look into update `index`, which went wrong; None where it cannot be written."""
        file = self.path / "faults" / f"{index:06d}.pt"
        try:
            checkpoint.write(file, {**content, "version": STATE_VERSION})
        except OSError as error:
            self._tell_once(f"cannot write {file}", error)
            return None
        return file

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into the run directory, sealed. Raises RunError."""
        try:
            write_whole(self.path / name, strict_json.sealed(content))
        except OSError as error:
            raise self._cannot_write(self.path / name, error) from error

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which is the last: with the digests of the files that `NOTED` names. Raises RunError."""
        self._close_logs()
        try:
            noted = written.digests(self.path, NOTED)
        except OSError as error:
            raise RunError(
                f"cannot read what was written in {self.path}: {error.strerror}; make it readable"
            ) from error
        self.save_json("result.json", {**result, "sha256": noted})

    def _cannot_write(self, file: Path, error: OSError) -> RunError:
        need = f" ({room_for(file, error.size)})" if isinstance(error, checkpoint.NoRoom) else ""
        way = to_write(error, "choose another --out")
        if (self.path / "state" / "state.pt").exists():
            way = "the last checkpoint is intact: fix that and run the same command to resume"
        return RunError(f"cannot write {file}: {error.strerror or error}{need}; {way}")

    def _tell_once(self, what: str, error: OSError) -> None:
        if what not in self._mute:
            self._mute.add(what)
            self._say(f"warning: {what}: {error.strerror or error}; the run continues without")

    def _close_logs(self) -> None:
        for log in (self._metrics, self._events):
            if log is not None:
                log.close()
        self._metrics = self._events = None

    def close(self) -> None:
        """Close the logs and give the directory back. Safe to call twice."""
        self._close_logs()
        self._trackers.close()
        self._lock.release()
