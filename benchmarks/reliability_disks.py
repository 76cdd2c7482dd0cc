"""Disks that are full, read-only or closed to the user."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from datafree.errors import RunError
from datafree.storage.run_directory import Run
from reliability_cases import run_tests
from reliability_kills import in_child, wait

NOBODY = 65534
RECIPE: dict[str, Any] = {"name": "disks", "training": {"select": "last"}}


def disks(folder: Path) -> dict[str, Any]:
    """The tests of tests/faults/test_disk.py, and permission lost by a user who is not root."""
    found = run_tests(folder, "test_disk.py")
    if os.geteuid() != 0:
        return found  # the test of permissions ran there
    place, errors = Path("/tmp") / f"datafree-disks-{os.getpid()}", folder / "error.txt"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    code = wait(in_child(lambda: _lose_permission(place / "run"), errors))
    shutil.rmtree(place)
    if code != 0:
        found["broken"].append(errors.read_text().strip().splitlines()[-1])
    return {**found, "permission_lost_as": "nobody"}


def _lose_permission(out: Path) -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    run = Run(out, RECIPE)
    run.start(0)
    state = {"weights": torch.arange(9.0), "recovery": {}}
    run.save_state({**state, "step": 1})
    (out / "state").chmod(0o500)
    try:
        run.save_state({**state, "step": 2}, must=True)
    except RunError as error:
        assert "Permission denied" in str(error), error
    else:
        raise AssertionError("a state was written without permission")
    run.close()
    again = Run(out, RECIPE)
    assert again.saved is not None and again.saved["step"] == 1
    again.close()
    (out / "state").chmod(0o700)
    again = Run(out, RECIPE)
    again.start(1)
    again.save_state({**state, "step": 2}, must=True)
    again.close()
