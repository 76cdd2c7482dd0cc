"""Launching a command on several processes of this machine, by torch's elastic launcher (torchrun's)."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence

from datafree.errors import DatafreeError

_KNOWN = (2, 3, 75)  # exit codes that mean something: a worker's is the command's
_PATIENCE = 6.0  # seconds that the others leave the first for its last words; longer than a launcher takes to notice


def launched() -> bool:
    """Whether this process was started by a launcher, beside others."""
    return "WORLD_SIZE" in os.environ


def first() -> bool:
    """Whether this process was started alone, or is the first of those that a launcher started."""
    return not launched() or os.environ.get("RANK") == "0"


def let_the_first_speak() -> None:
    """What all processes find, the first says: its end ends the others. What it does not find, they say later."""
    if not first():
        with contextlib.suppress(KeyboardInterrupt):  # who wants it to end now is told now
            time.sleep(_PATIENCE)


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `datafree ARGUMENTS` on `count` processes; returns the exit code of the first that ended badly, or 0.

    A signal reaches all of them: they stop at the same step, which is waited for as they wait for one another; a second
    one ends them at once. Each has an equal share of this machine's processor cores
    (OMP_NUM_THREADS, where it is set, says otherwise). Raises DatafreeError where torch has no launcher.
    """
    from datafree.distributed.replicas import PATIENCE

    try:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    except ImportError as error:
        raise DatafreeError("this torch was built without torch.distributed; leave out --processes") from error
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCHELASTIC_ERROR_FILE", os.devnull)
    # From a signal to SIGKILL; torch has 30 seconds, and a step with an update of the source may take minutes.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(PATIENCE.total_seconds())))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # a worker's own line says what was wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"datafree-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "datafree", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
        return next((code for code in codes if code in _KNOWN), 1)
    except SignalException:
        return 75  # the workers have had the signal, too, and saved
    return 0
