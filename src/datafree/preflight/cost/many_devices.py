"""What work costs on several devices that are all like one that was timed: what they divide, what they exchange.

P devices, B images of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from datafree.preflight.cost.calibration import CostItem
from datafree.preflight.cost.pass_cost import Cost

WAIT = 50e-6  # seconds that an exchange takes however small it is


@dataclass(frozen=True, kw_only=True)
class On:
    """So many devices like this one."""

    devices: int
    seconds: float
    device_hours: float
    step: float  # seconds of a step of the student; of a shard
    exchanged: float  # bytes that each device sends and receives for a step of the student, about


def rounds(shards: int, devices: int, carries: bool) -> int:
    """How often P devices make a shard each until all are made; one after the other where each `carries` on."""
    return shards if carries else -(-shards // devices)


def divided(each: Cost, devices: int, link: float) -> tuple[float, float]:
    """Seconds of some work on P devices, and the bytes that each of them exchanges for it.

    Passes are divided: a device computes ceil(B / P) of B images; all else is done by each alike. What is gathered
    goes around a ring, (P - 1) / P of it over each link, what is summed twice. A batch of fewer than P images is
    computed whole by each.
    """
    if devices == 1 or each.images < devices:
        return each.seconds, 0.0
    around = (devices - 1) / devices
    exchanged = around * (each.gathered + 2 * each.summed)
    part = -(-each.images // devices) / each.images
    return each.seconds - (1 - part) * each.passes + exchanged / link + WAIT * each.exchanges, exchanged


def together(work: list[CostItem], devices: int, link: float) -> float:
    """Seconds of all work of a run on P devices."""
    return sum(part.often * divided(part.each, devices, link)[0] for part in work)


def on_devices(devices: int, seconds: float, step: tuple[float, float]) -> On:
    """A line of a plan, from its seconds and from what `divided` says of a step."""
    hours = devices * seconds / 3600
    return On(devices=devices, seconds=seconds, device_hours=hours, step=step[0], exchanged=step[1])
