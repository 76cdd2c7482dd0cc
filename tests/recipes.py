"""A small valid recipe, and what a test does with it: load it, or list its faults."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.config import yaml
from datafree.errors import RecipeError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.unet import unet
from datafree.recipe.recipe import Recipe, dump, load_recipe
from datafree.sources import SOURCES

VALID: dict[str, Any] = {
    "task": {"kind": "segmentation", "num_classes": 3, "image_size": [32, 48]},
    "teacher": {"network": "datafree/unet", "args": {"width": 4}, "mean": [0.5, 0.4, 0.3]},
    "student": {"network": "datafree/unet"},
    "source": {"method": "noise"},
    "training": {"steps": 10},
}


WRITTEN: dict[object, bytes] = {}


def write_once(key: object, file: Path, write: Callable[[Path], None]) -> Path:
    """`file` as `write` makes it from seed 7, which is called once in a session for each `key`."""
    torch.manual_seed(7)
    key = key, torch.get_default_dtype()
    if key not in WRITTEN:
        write(file)
        WRITTEN[key] = file.read_bytes()
        torch.manual_seed(7)  # what follows draws the same numbers, whether this was made or copied
    else:
        file.write_bytes(WRITTEN[key])
    return file


def write_teacher(folder: Path, classes: int = 3, **args: int) -> Path:
    """Weights of a datafree/unet whose BatchNorm has seen something; always the same ones."""

    def write(file: Path) -> None:
        network = unet(classes, **args)
        for _ in range(5):
            network(torch.rand(8, 3, 32, 32))
        save_weights(network, file)

    return write_once(("unet", classes, *sorted(args.items())), folder / "teacher.safetensors", write)


def changed(**sections: Any) -> dict[str, Any]:
    return {**copy.deepcopy(VALID), **sections}


def write(folder: Path, content: dict[str, Any] | str, name: str = "street.yaml") -> str:
    file = folder / name
    file.write_text(content if isinstance(content, str) else yaml.render(content), encoding="utf-8")
    return str(file)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, as a run's directory holds it."""
    return yaml.render(dump(recipe))


def load(folder: Path, content: dict[str, Any] | str = VALID, *overrides: str) -> Recipe:
    return load_recipe(write(folder, content), overrides)


def faults(folder: Path, content: dict[str, Any] | str = VALID, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(folder, content, *overrides)
    assert all(problem and "\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def fault(folder: Path, content: dict[str, Any] | str = VALID, *overrides: str) -> str:
    problems = faults(folder, content, *overrides)
    assert len(problems) == 1, problems
    return problems[0]


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    """A section for each method, with what it requires."""
    needed: dict[str, dict[str, Any]] = {
        "dataset": {"path": str(folder)},
        "folder": {"path": str(folder)},
        "degan": {"proxy": {"path": str(folder)}},
        "mixed": {"parts": [{"method": "noise", "kind": "gaussian"}, {"method": "folder", "path": str(folder)}]},
    }
    return {name: {"method": name, **needed.get(name, {})} for name in SOURCES}


def small(section: dict[str, Any]) -> dict[str, Any]:
    """A source's section with whatever costs time made small, as far as its method has it and uses it."""
    costs: dict[str, Any] = {"width": 2, "latent": 4, "batch_size": 3, "warmup": 4, "update_every": 5, "iterations": 2}
    costs |= {"bank_size": 64, "stages": [{"iterations": 2}]}
    has = {field.name: field.default for field in dataclasses.fields(SOURCES[section["method"]])}
    used = {name for name, default in has.items() if default or name == "bank_size"}
    return {**section, **{name: value for name, value in costs.items() if name in used}}
