"""Experiment trackers (`training.track`): Weights & Biases, Trackio, MLflow get the metrics that metrics.jsonl has.

Each package is imported only if it is named. RUN/trackers.json holds what a tracker calls the run, so that a resumed
one goes on under the same name. A tracker that fails is told once and left out: training matters more.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from datafree.config.diff import flat
from datafree.data.images import to_image
from datafree.errors import RecipeError
from datafree.ops import modes
from datafree.storage.atomic import write_whole
from datafree.text import one_line

PROJECT = "datafree"  # what runs are kept under
FILE = "trackers.json"


class Tracker(Protocol):
    """One tracker's run. Its methods may raise anything."""

    def scalars(self, values: dict[str, float], index: int) -> None:
        """Numbers by name, at update number `index` (0 = the run's first)."""

    def image(self, name: str, picture: Tensor, index: int) -> None:
        """A picture (3, H, W) in [0, 1]."""

    def close(self) -> None:
        """Nothing more follows."""


class Wandb:
    """A run of Weights & Biases; where it goes say its own WANDB_MODE, WANDB_PROJECT and the like."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], names: dict[str, str]) -> None:
        wandb = self._wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=names.setdefault("wandb", uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(folder),
            config=dict(recipe),
        )
        self._run.define_metric("*", step_metric="index")  # its own steps may not go back, and a resumed run does

    def scalars(self, values: dict[str, float], index: int) -> None:
        self._run.log({**values, "index": index})

    def image(self, name: str, picture: Tensor, index: int) -> None:
        self._run.log({name: self._wandb.Image(to_image(picture)), "index": index})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, on this machine unless TRACKIO_SPACE_ID names a Space; TRACKIO_DIR says where."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], names: dict[str, str]) -> None:
        self._trackio = importlib.import_module("trackio")
        name = names.setdefault("trackio", f"{folder.name}-{uuid.uuid4().hex[:6]}")
        self._run = self._trackio.init(
            project=PROJECT,
            name=name,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow",
            config={key: str(value) for key, value in flat(recipe)},
            embed=False,
        )

    def scalars(self, values: dict[str, float], index: int) -> None:
        self._run.log(dict(values), step=index)

    def image(self, name: str, picture: Tensor, index: int) -> None:
        self._run.log({name: self._trackio.Image(to_image(picture))}, step=index)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names, else MLflow's own default."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], names: dict[str, str]) -> None:
        self._client = importlib.import_module("mlflow").MlflowClient()
        if "mlflow" in names:
            self._id = names["mlflow"]
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        place = self._client.create_experiment(experiment) if known is None else known.experiment_id
        self._id = names["mlflow"] = self._client.create_run(place, run_name=folder.name).info.run_id
        for key, value in flat(recipe):
            self._client.log_param(self._id, key, str(value)[:500])

    def scalars(self, values: dict[str, float], index: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=index)

    def image(self, name: str, picture: Tensor, index: int) -> None:
        self._client.log_image(self._id, to_image(picture), artifact_file=f"{name}/{index:06d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


KINDS: dict[str, Callable[[Path, Mapping[str, Any], dict[str, str]], Tracker]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def require(names: Iterable[str]) -> None:
    """Raise RecipeError, with what installs it, for each tracker whose package is not there."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise RecipeError(
            [f"training.track names {name}, which is not installed: pip install 'datafree[{name}]'" for name in missing]
        )


class Trackers:
    """Those of one run, opened at its first line and closed at its end."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], kinds: Iterable[str]) -> None:
        """Nothing is imported or opened yet."""
        self._folder, self._recipe = folder, recipe
        self._say: Callable[[str], None] = lambda line: None
        self._waiting = [kind for kind in dict.fromkeys(kinds) if kind in KINDS]
        self._open: dict[str, Tracker] = {}

    def start(self, say: Callable[[str], None]) -> None:
        """`say` is told which tracker fails, once."""
        self._say = say

    def scalars(self, values: dict[str, float], index: int) -> None:
        """Numbers by name."""
        self._each(lambda tracker: tracker.scalars(values, index))

    def image(self, name: str, picture: Tensor, index: int) -> None:
        """A picture (3, H, W) in [0, 1]."""
        self._each(lambda tracker: tracker.image(name, picture, index))

    def close(self) -> None:
        """Close them. Safe to call twice."""
        self._waiting = []
        self._each(lambda tracker: tracker.close())
        self._open = {}

    def _each(self, act: Callable[[Tracker], None]) -> None:
        if not self._waiting and not self._open:
            return
        with _aside():
            for kind in self._waiting:
                self._try(kind, lambda kind=kind: self._begin(kind))  # type: ignore[misc]
            self._waiting = []
            for kind, tracker in list(self._open.items()):
                self._try(kind, lambda tracker=tracker: act(tracker))  # type: ignore[misc]

    def _begin(self, kind: str) -> None:
        file = self._folder / FILE
        names: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        before = dict(names)
        self._open[kind] = KINDS[kind](self._folder, self._recipe, names)
        if names != before:
            write_whole(file, (json.dumps(names, indent=2) + "\n").encode())

    def _try(self, kind: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a package of anyone's raises, or its server
            self._open.pop(kind, None)
            self._say(f"warning: {kind} does not take the run's metrics: {one_line(error)}; the run continues without")


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Within it, what a package prints goes to standard error; no random number of the run's is drawn."""
    before = modes.random_state()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        modes.set_random_state(before)
