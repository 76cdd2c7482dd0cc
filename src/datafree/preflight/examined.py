"""What a look at a teacher has shown: what it answers, to images of which size, and what these have to be.

C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from datafree.networks.normalized import Normalized
from datafree.preflight.subject import Fact, Subject
from datafree.preflight.suitability import BatchNorm
from datafree.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A network that was built and run once, and what is known of it."""

    subject: Subject  # its `spec` as `network` was made
    network: Normalized
    task: Task
    kind: Fact  # of the task
    problem: str | None  # why its answers do not fit the task
    output: str  # the form of its answers
    classes: Fact  # C
    macs: int  # multiplications with an addition, for one image of `input_size`
    input_size: Fact  # (height, width): an image of this size has passed
    mean: Fact
    std: Fact
    channel_order: Fact
    doubts: list[str]  # what speaks against mean, std and order
    trained: bool  # whether it comes with weights, as far as anyone knows
    batchnorm: BatchNorm
    notes: list[str]  # the doubts among them
