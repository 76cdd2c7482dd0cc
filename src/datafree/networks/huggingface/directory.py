"""A model directory's files, read as data: config.json, its weights, preprocessor_config.json.

Nothing is downloaded and no code of the directory runs: a config that names code to import is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.config import paths
from datafree.errors import NetworkError
from datafree.networks.checkpoints.index import MAX_BYTES, unique
from datafree.text import one_line, show

PREFIX = "hf/"
_WEIGHTS = (  # the first that is there is read; those of pickle as tensors only
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_OTHERS = {  # what else such a directory may hold, and what to do
    "tf_model.h5": "Keras",
    "flax_model.msgpack": "Flax",
    "adapter_config.json": "an adapter (LoRA) alone",
}


@dataclass(frozen=True, kw_only=True)
class ModelDirectory:
    """What a directory says of its network."""

    path: Path
    config: dict[str, Any]

    @property
    def timm_name(self) -> str | None:
        """Its architecture's name in timm, where that library wrote it; else None."""
        name = self.config.get("architecture")
        return name if isinstance(name, str) and self.config.get("model_type") in (None, "timm_wrapper") else None

    @property
    def weights(self) -> Path | None:
        """The file of its weights, or their index; None where there is none."""
        return next((self.path / name for name in _WEIGHTS if (self.path / name).is_file()), None)

    @property
    def class_names(self) -> list[str] | None:
        """In the order of the ids; None where it has but numbers. Raises NetworkError for ids with gaps."""
        given = self.config.get("id2label")
        if isinstance(given, dict):
            names = [given.get(str(c)) for c in range(len(given))]
            if not all(isinstance(name, str) for name in names):
                raise NetworkError(
                    f"{self.path / 'config.json'}: id2label does not name the classes 0 to {len(names) - 1}"
                )
            return None if all(str(name).startswith("LABEL_") for name in names) else [str(name) for name in names]
        given = self.config.get("label_names")
        return list(map(str, given)) if self.timm_name is not None and isinstance(given, list) else None

    @property
    def multilabel(self) -> bool:
        """Whether it was trained with a sigmoid for each class."""
        return self.config.get("problem_type") == "multi_label_classification"

    @property
    def classes(self) -> int:
        """How many its head tells apart; transformers' own default is two. Raises NetworkError."""
        config = self.config
        if self.timm_name is not None:
            head = config.get("pretrained_cfg")
            given = config.get("num_classes", head.get("num_classes") if isinstance(head, dict) else None)
        else:
            names = config.get("id2label")
            given = len(names) if isinstance(names, dict) else config.get("num_labels", 2)
            _ = self.class_names  # as many as there are ids, without gaps
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise NetworkError(
                f"{self.path / 'config.json'} says nothing of classes (num_classes {show(given)}): it is a network "
                "without a head, which answers features"
            )
        return given


def located(network: str) -> str:
    """The same with an absolute path, as a recipe has it; as it is where its path cannot be read."""
    try:
        return PREFIX + paths.shorten(paths.expand(network.removeprefix(PREFIX)))
    except ValueError:  # to be said by who opens it
        return network


def open_directory(network: str) -> ModelDirectory:
    """The directory that "hf/DIR" names. Raises NetworkError."""
    try:
        path = paths.expand(network.removeprefix(PREFIX))
    except ValueError as error:
        raise NetworkError(str(error)) from error
    if not path.is_dir():
        what = "is a file; give the folder that holds config.json" if path.exists() else "is no folder here"
        raise NetworkError(f"{network}: {path} {what} (nothing is downloaded: fetch it first, `hf download NAME`)")
    config = read_json(path / "config.json")
    if config is None:
        way = "give the folder in which save_pretrained has written"
        raise NetworkError(
            f"{network}: {path} holds no config.json; {way}, or name the architecture and give `weights`"
        )
    _refuse_code(config, path / "config.json")
    return ModelDirectory(path=path, config=config)


def require_weights_file(directory: ModelDirectory) -> Path:
    """The file of its weights. Raises NetworkError where there is none that can be read."""
    if directory.weights is not None:
        return directory.weights
    held = next((f"{what} ({name})" for name, what in _OTHERS.items() if (directory.path / name).exists()), "none")
    raise NetworkError(
        f"{directory.path} holds no model.safetensors; its weights are {held}: load it with its own library and "
        "write it again with save_pretrained(DIR)"
    )


def read_json(file: Path) -> dict[str, Any] | None:
    """A small JSON object from a file that is not trusted; None where there is no such file. Raises NetworkError."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise NetworkError(f"{file} has more than {MAX_BYTES:,} bytes; is it a config?")
        made = json.loads(content, object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise NetworkError(f"{file} cannot be read ({one_line(error)}); fetch it again") from error
    if not isinstance(made, dict):
        raise NetworkError(f"{file} holds {show(made)}, no config")
    return made


def _refuse_code(config: Any, file: Path) -> None:
    """Raise NetworkError where a config, or one inside it, names code to import or numbers in need of other code."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        if value.get("auto_map"):
            raise NetworkError(
                f"{file} names code of its own to run (auto_map), which is never done; convert it to a network that "
                "transformers itself has, or import it yourself as 'package.module:callable'"
            )
        if value.get("quantization_config"):
            raise NetworkError(f"{file}: its weights are quantised; give the directory of the float network")
