"""A data set being made on disk: whole shards only, every file hashed, in the layout of its task.

    DIR/
      recipe.yaml        the resolved recipe
      environment.json   versions, hardware, when it began
      data/              the data set: the task's `open_dataset` and other trainers read it
        classes.txt      the classes' names, in the order of their ids
      shards/NNNNN.json  one for each whole shard: how many images, the SHA-256 of each file, what its update logged
      shards/preview.png images of the first shard, their targets drawn (`set_files`)
      state/             what the source goes on from, with checksums
      index.json         written last: how many images, the files that are about all of them
      .lock              held by those that write here, shared among them
      .claims/           which shards they are at (`claims`)

A shard is made aside, in `.NNNNN.part`; a record beside its files, written last, says that it is whole. Then the files
are moved into place, the record last. A move that was broken off is finished when the set is gone on with; what is not
whole is thrown away. Nothing here grows with the number of images but one number for each shard.

B images, H x W pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datafree.config import yaml
from datafree.config.diff import check_same
from datafree.data.labelled import names_text, place_below, read_names
from datafree.errors import RunError
from datafree.sources.base import Batch
from datafree.storage import checkpoint, strict_json
from datafree.storage.atomic import remove, remove_asides, require_ordinary, require_ordinary_in, sync, write_whole
from datafree.storage.environment import environment
from datafree.storage.held_folders import require_held
from datafree.storage.made_set import NAMES, RECORD, Record, damages, is_finished, names_changed, read_record
from datafree.storage.run_files import EnvironmentForm
from datafree.synthesis.claims import Claims
from datafree.synthesis.preview import writing
from datafree.synthesis.shard_index import sealed, write_index
from datafree.synthesis.shard_names import is_past, means_something, named, state_for
from datafree.tasks.base import Task

_WRITTEN = (".json", ".png", ".pt", ".safetensors", ".txt", ".yaml")  # the files of a set, by their suffixes


class Shards:
    """One data set, opened for making more of it. Looks, but writes nothing before `begin`.

    `is_free` says which keys of the recipe may differ from those that the set was begun with. Raises RunError if the
    directory holds something else, or the set of another recipe.
    """

    def __init__(self, path: Path, recipe: dict[str, Any], is_free: Callable[[str], bool] = lambda key: False) -> None:
        self.path = path
        self.place = str(path)  # as a user knows it
        self.if_killed = ""  # what is to be said of waiting for others: a dead one's locks end with it
        self.data = path / "data"
        self.recipe = recipe
        self.carries = False  # whether the source carries something on from one shard to the next
        self.class_names: list[str] | None = None  # those that the set was begun with
        self.origin: dict[str, Any] = {}  # what the set depends on besides its recipe, to be written down
        self._counts: dict[int, int] = {}  # images of each whole shard
        self._known: set[str] = set()  # their names
        self._is_free = is_free
        self._awaited = False  # whether another process was writing the index
        self._claims = Claims(path)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another --out")
        if path.is_dir() and any(map(means_something, path.iterdir())):
            self._check_same()
            self._read_names()
            self.look()

    @property
    def images(self) -> int:
        """Images of all whole shards."""
        return sum(self._counts.values())

    @property
    def count(self) -> int:
        """Whole shards."""
        return len(self._counts)

    def begin(self, class_names: list[str]) -> None:
        """Make the directory, or bring it in order after a run that was broken off.

        `class_names`: in the order of the ids; where the set was begun with others, those stay. Other processes may be
        at the set: then only what the dead have left is brought in order. Raises RunError.
        """
        with writing(self.path):
            alone = self._claims.enter()
            require_ordinary_in(self.path, self.path / "shards", self.data, self.path / "state", suffixes=_WRITTEN)
            if (self.path / "recipe.yaml").exists():  # another process may have begun it meanwhile
                self._check_same()
            self.look()
            (self.path / "shards").mkdir(exist_ok=True)
            for name, text in (
                ("recipe.yaml", yaml.render(self.recipe)),
                ("environment.json", strict_json.sealed({**environment(), "origin": self.origin}).decode()),
                (f"data/{NAMES}", names_text(class_names)),
            ):
                if not (self.path / name).exists():
                    write_whole(self.path / name, text.encode())
            if names_changed(self.path):  # the index would be written anew, with these
                raise RunError(
                    f"{self.data / NAMES} has changed since it was written; put it back, or choose another --out"
                )
            self._read_names()
            for part in sorted(self.path.glob(".[0-9]*.part")):
                number = int(part.name[1:-5])
                if (part / RECORD).exists() and self._claims.take(named(number)):
                    if (part / RECORD).exists():  # still
                        self._settle(part)
                    self._claims.drop(named(number))
            if alone:
                remove_asides(self.path, self.data, self.path / "state", self.path / "shards")
                self._claims.let_in()

    def begun_with(self) -> dict[str, Any]:
        """The `origin` of whoever has begun the set, as far as its environment.json says so."""
        try:
            return dict(strict_json.read(self.path / "environment.json", EnvironmentForm).get("origin", {}))
        except strict_json.Damaged:
            return {}

    def look(self) -> None:
        """Take note of the shards that are whole, whoever made them. Raises RunError for a damaged record."""
        for file in sorted((self.path / "shards").glob("*.json")):
            if file.stem not in self._known:
                self._note(read_record(file))

    def claim(self, images: int, each: int = 1) -> int | None:
        """The number of a shard that is missing until there are `images`, from now on this process's to make.

        `each`: images of a shard, as far as is known before there is one. None when other processes are at all that are
        missing: `look` again later. Raises RunError.
        """
        with writing(self.path):
            self.look()
            size = max(self._counts.values(), default=each)
            missing = -(-(images - self.images) // size)  # shards, as far as can be told
            number, tried = -1, 0
            while tried < missing:
                number += 1
                if number in self._counts:
                    continue
                tried += 1
                if self._claims.take(named(number)):
                    if not (self.path / "shards" / f"{named(number)}.json").exists():
                        return number
                    self._claims.drop(named(number))  # made since `look`
                    self.look()
                if self.carries:  # one after the other
                    break
            return None

    def leave(self, number: int) -> None:
        """Leave a claimed shard to others."""
        self._claims.drop(named(number))

    @contextmanager
    def alone_at(self, what: str) -> Iterator[bool]:
        """Within it, no other process is at `what`, if it yields True; else another is. Raises RunError."""
        with writing(self.path):
            mine = self._claims.take(what)
        try:
            yield mine
        finally:
            if mine:
                self._claims.drop(what)

    def close(self) -> None:
        """Let other processes write. Safe to call twice."""
        self._claims.close()

    def _read_names(self) -> None:
        file = self.data / NAMES
        self.class_names = read_names(file) if file.is_file() else None

    def write(self, number: int, task: Task, batch: Batch, state: dict[str, Any] | None = None) -> None:
        """Add a shard. `state`: what the source goes on from after it, where it carries something on."""
        part = self.path / f".{named(number)}.part"
        assert batch.targets is not None and self.class_names is not None
        with writing(self.path):
            require_held(part)
            remove(part)
            (part / "data").mkdir(parents=True)
            try:
                entries = []
                for index, (image, target) in enumerate(zip(batch.images.cpu(), batch.targets.cpu(), strict=True)):
                    name = f"{named(number)}/{index:05}"
                    require_held(part)
                    entries.append(task.write_example(part / "data", name, image, target, self.class_names))
                files = sorted(file for file in (part / "data").rglob("*") if file.is_file())
                record = {
                    "shard": number,
                    "images": len(entries),
                    "carries": state is not None,
                    "files": {file.relative_to(part / "data").as_posix(): sealed(file) for file in files},
                    "entries": [entry for entry in entries if entry is not None],
                    "figures": batch.figures,
                }
                if state is not None:  # before the shard: a shard is never there without what comes after it
                    self.save_state(state_for(number + 1), state)
                write_whole(part / RECORD, strict_json.sealed(record))
            finally:
                if not (part / RECORD).exists():
                    shutil.rmtree(part, ignore_errors=True)
            self._settle(part)
            self._claims.drop(named(number))

    def state_before(self, number: int) -> Any:
        """What the source goes on from for a shard; None where it carries nothing on. Raises RunError if it is gone."""
        if not self.carries or number == 0:
            return None
        if (state := self.load_state(state_for(number))) is None:
            raise RunError(
                f"shard {named(number)} of {self.path} is gone, and what its source had learnt by then, too: it cannot "
                "be made again alone; choose another --out"
            )
        return state

    def save_state(self, name: str, state: dict[str, Any], *, keep: bool = False) -> None:
        """Write state/NAME (tensors and plain values only); to `keep` the one before, as state/previous-NAME."""
        file = self.path / "state" / name
        with writing(self.path):
            checkpoint.write(file, {"state": state}, file.with_name(f"previous-{name}") if keep else None)

    def load_state(self, name: str) -> Any:
        """What `save_state` has put into state/NAME, or had before where that is damaged; None if there is neither."""
        problem = None
        for file in (self.path / "state" / name, self.path / "state" / f"previous-{name}"):
            try:
                return checkpoint.read(file)["state"]
            except FileNotFoundError:
                continue
            except (checkpoint.Damaged, KeyError) as error:
                problem = problem or RunError(f"{file} is damaged ({error}); choose another --out")
        if problem is not None:
            raise problem
        return None

    def keep(self, write: Callable[[Path], None]) -> None:
        """Have `write` write files that belong to the set into the folder it is given. Raises what it raises."""
        write(self.path)

    def damages(self) -> Iterator[tuple[str, str]]:
        """Every file that is not as it was written: its name below `place`, and what is wrong."""
        return damages(self.path)

    def finish(self, task: Task) -> bool:
        """Write what is about the whole set: the files of `Task.write_index`, and index.json at last.

        False where another process is doing so, perhaps without this one's shards: call it again later, when nothing
        is written if all is in it.
        """
        assert self.class_names is not None
        with self.alone_at("index") as mine:
            if mine and not (self._awaited and is_finished(self.path)):
                with writing(self.path):
                    write_index(self.path, task, self.class_names)
            self._awaited |= not mine
            return mine

    def _check_same(self) -> None:
        file = self.path / "recipe.yaml"
        if not file.is_file() or not (self.path / "shards").is_dir():
            raise RunError(f"{self.path} is not empty and holds no made data set; choose another --out")
        check_same(file, self.recipe, self._is_free, "the data set")

    def _settle(self, part: Path) -> None:
        """Move a whole shard's files into place, those that are not there yet, then its record; drop older states."""
        record = read_record(part / RECORD)
        folders = set()
        for name in record["files"]:
            place = self.data / name
            if (part / "data" / name).exists():
                require_held(part)
                place = place_below(self.path, f"data/{name}")
                require_ordinary(place)
                (part / "data" / name).replace(place)
            folders.add(place.parent)
        for folder in folders:
            sync(folder)
        (part / RECORD).replace(self.path / "shards" / f"{named(record['shard'])}.json")
        sync(self.path / "shards")
        shutil.rmtree(part)
        for file in (self.path / "state").glob("before-*.pt"):
            if is_past(file.name, record["shard"]):
                file.unlink()
        self._note(record)

    def _note(self, record: Record) -> None:
        self._counts[record["shard"]] = record["images"]
        self._known.add(named(record["shard"]))
        self.carries |= record["carries"]
