"""TensorBoard's log of a run, written as it happens: no thread of its own, nothing that fails a run."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.storage.atomic import Growing


class EventFile:
    """A new file of events in `folder`. What earlier files hold of steps after `last` counts no more.

    Its methods raise OSError (`Growing.add`: what found no room is kept for the next call).
    """

    def __init__(self, folder: Path, last: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = Growing(folder / name)
        self._add(0, file_version="brain.Event:2")
        self._add(last + 1, session_log=SessionLog(status=SessionLog.START))  # readers drop this step and later ones

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add numbers by their names, as one event: without room all of them wait."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard.summary import scalar

        summary = Summary()
        for name, value in values.items():
            summary.MergeFrom(scalar(name, value))  # type: ignore[no-untyped-call]
        self._add(step, summary=summary)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Add a picture (3, H, W) in [0, 1]."""
        from torch.utils.tensorboard.summary import image

        self._add(step, summary=image(name, picture, dataformats="CHW"))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close it. Safe to call twice."""
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = Event(wall_time=time.time(), step=step, **content)
        RecordWriter(_Piece(self._file)).write(event.SerializeToString())


class _Piece:
    """What a `RecordWriter` writes to."""

    def __init__(self, file: Growing) -> None:
        self._file = file

    def write(self, record: bytes) -> None:
        self._file.add(record)
