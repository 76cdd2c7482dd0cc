"""What is imported is declared in pyproject.toml, and what a user has to install is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from syntax import nodes_of

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FORMATS = ("openvino", "litert", "coreml", "executorch")
FOR_CODE = ("onnx", "onnx-gradients", *FORMATS, "remote", "transformers")  # extras that are imported by name
FOR_USERS = [
    *PROJECT["dependencies"],
    *(line for name in FOR_CODE for line in EXTRAS[name]),
]
USERS_OWN = {"ultralytics"}  # imported where a user has it, and never asked for: its licence is AGPL-3.0
SCRIPTS = ("benchmarks", "scripts", "examples")  # their files import one another, and the tests'


@cache  # a second or two, so not while tests are collected
def distributions() -> Mapping[str, list[str]]:
    """The distributions that hold a top-level module."""
    return packages_distributions()


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(lines: list[str]) -> set[str]:
    """The distributions that requirements name."""
    return {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}


def imported(folder: str) -> set[str]:
    """Top-level modules imported below a folder, at any depth of a file, but the standard library's and datafree."""
    found: set[str] = set()
    for node in (node for file in (ROOT / folder).rglob("*.py") for node in nodes_of(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"datafree"}


def is_declared(module: str, known: set[str]) -> bool:
    """Whether one of the distributions that hold a module is known; one that is not installed goes by its own name."""
    return any(normal(name) in known for name in distributions().get(module, [module]))


def test_every_package_that_src_imports_is_declared_for_users() -> None:
    modules = imported("src")
    assert {"torch", "yaml", "PIL"} <= modules
    assert {module for module in modules if not is_declared(module, declared(FOR_USERS))} == USERS_OWN
    assert not declared([line for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]) & USERS_OWN


def test_every_package_that_users_must_install_is_imported_by_src() -> None:
    used = {normal(name) for module in imported("src") for name in distributions().get(module, [module])}
    assert declared(PROJECT["dependencies"]) - used == set()


@pytest.mark.parametrize("folder", SCRIPTS)
def test_every_package_that_a_script_imports_is_declared(folder: str) -> None:
    known = declared([*FOR_USERS, *EXTRAS["dev"]])
    own = {file.stem for other in (*SCRIPTS, "tests") for file in (ROOT / other).rglob("*.py")}
    modules = imported(folder) - (own - set(distributions()))
    assert {module for module in modules if not is_declared(module, known)} == set()
