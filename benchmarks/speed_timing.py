"""Seconds of work on a device, in turns; what is over the floor, and where a profiler finds it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from datafree.errors import Interrupted
from datafree.ops import modes
from speed_passes import Rig

Metrics = dict[str, float]
Stop = Callable[[], str | None]  # why to stop now, or None
TOP = 6  # kinds of work beside the networks that a profile names
REST = "rest: "  # begins the names of their metrics
OUTSIDE = "outside of operators"  # in a profile, such as a file that is read


def never() -> str | None:
    """Nobody stops it."""
    return None


class Stopwatch:
    """Begins when it is made. On a GPU its own events tell the time, else the clock."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._began = self._mark()

    def seconds(self) -> float:
        """Since it began, once the device has done its work."""
        ended = self._mark()
        if not self._cuda:
            return float(ended - self._began)
        torch.cuda.synchronize()
        return float(self._began.elapsed_time(ended)) / 1000

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`."""
    watch = Stopwatch(device)
    work()
    return watch.seconds()


def in_turns(
    parts: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, stop: Stop = never
) -> dict[str, list[float]]:
    """Seconds of each part in each round; the parts take turns, so that what slows the machine slows all of them.

    Raises Interrupted when `stop`, asked before each round, says so.
    """
    for work in parts.values():
        work()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        if reason := stop():
            raise Interrupted(reason)
        for name, work in parts.items():
            seconds[name].append(timed(work, device))
    return seconds


def over(name: str, whole: Sequence[float], base: Sequence[float]) -> Metrics:
    """NAME, the median over rounds of the ratios whole : base, each of the same moment; NAME_low, _high: quartiles."""
    ratios = sorted(a / b for a, b in zip(whole, base, strict=True))
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    return {name: quartiles[1], f"{name}_low": quartiles[0], f"{name}_high": quartiles[2]}


def metrics(whole: Sequence[float], floor: Sequence[float], images: float) -> Metrics:
    """Of seconds in rounds; `images`: of one step."""
    return {**over("over_floor", whole, floor), "images_per_second": images / statistics.median(whole)}


def measure_step(rig: Rig, rounds: int, stop: Stop = never, *, profile: bool = False) -> Metrics:
    """The student's step in the loop, its bare passes before each. The loop's first step warms up, and makes images.

    `profile`: one more step is looked at as `profiled` looks at an update; what is no operator's time, such as reading
    files, is `rest: OUTSIDE`. Raises Interrupted when `stop` says so.
    """
    whole, floor = list[float](), list[float]()
    watch, looks = Stopwatch(rig.device), list[Look]()
    reason: str | None = None
    found: Metrics = {}

    def before() -> str | None:
        nonlocal watch, reason, found
        if looks:
            kinds = looks[0].kinds()
            total = max(statistics.median(whole[1:]), sum(kinds.values()))
            bare = kinds_of(lambda: rig.floor(rig.step_floor), rig.device)
            found = shares({**kinds, OUTSIDE: total - sum(kinds.values())}, bare, total)
            return "measured"
        if floor:
            whole.append(watch.seconds())
        reason = stop()
        if reason or (len(whole) > rounds and not profile):
            return "measured"
        if len(whole) > rounds:
            looks.append(Look(rig.device))
            return None
        floor.append(timed(lambda: rig.floor(rig.step_floor), rig.device))
        watch = Stopwatch(rig.device)
        return None

    rig.loop(before)
    if reason:
        raise Interrupted(reason)
    return metrics(whole[1:], floor[1:], rig.batch) | found


def measure_update(rig: Rig, rounds: int, stop: Stop = never) -> Metrics:
    """An update of the attached source and its bare passes. Raises Interrupted when `stop` says so."""
    parts = {"whole": rig.update, "floor": lambda: rig.floor(rig.update_floor)}
    with modes.frozen(rig.networks["teacher"]):
        seconds = in_turns(parts, rig.device, rounds, stop)
    found = metrics(seconds["whole"], seconds["floor"], rig.source.batch_size * rig.share)
    if rig.iterations:
        each = rig.source.batch_size * rig.iterations
        found["image_iterations_per_second"] = each / statistics.median(seconds["whole"])
    return found


# Where the time goes.


def profiled(rig: Rig) -> Metrics:
    """Of an update of the attached source: the share of its time that is the networks' own work, as a profiler sees it,
    and of the rest by kinds of work, the largest first (`rest: KIND`).

    The networks' own is what the bare passes do, kind by kind; on a GPU the time is that of kernels against the whole
    update's, so that a device that waits counts as rest.
    """
    with modes.frozen(rig.networks["teacher"]):
        rig.update()
        rig.floor(rig.update_floor)
        bare = kinds_of(lambda: rig.floor(rig.update_floor), rig.device)
        whole = kinds_of(rig.update, rig.device)
        total = sum(whole.values())
        if rig.device.type == "cuda":
            total = timed(rig.update, rig.device)
    return shares(whole, bare, total)


def shares(whole: Mapping[str, float], bare: Mapping[str, float], total: float) -> Metrics:
    """From the seconds of each kind of work: "in_networks", and "rest: KIND" of the most, as shares of `total`."""
    rest = Counter({kind: seconds - bare.get(kind, 0.0) for kind, seconds in whole.items()})
    own = sum(min(seconds, bare.get(kind, 0.0)) for kind, seconds in whole.items())
    most = {f"{REST}{kind}": seconds / total for kind, seconds in rest.most_common(TOP) if seconds > 0.002 * total}
    return {"in_networks": own / total, **most}


class Look:
    """A profiler that looks from when it is made, at operators on a CPU, at kernels on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._profile = profile(activities=[ProfilerActivity.CUDA if self._cuda else ProfilerActivity.CPU])
        self._profile.start()

    def kinds(self) -> dict[str, float]:
        """Seconds of each kind of work until now; it looks no longer."""
        if self._cuda:
            torch.cuda.synchronize()
        self._profile.stop()
        events: Any = self._profile.key_averages()
        found = Counter[str]()
        for event in events:
            micros = event.self_device_time_total if self._cuda else event.self_cpu_time_total
            found[event.key[:60]] += micros / 1e6
        return dict(found)


def kinds_of(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of each kind of work."""
    look = Look(device)
    work()
    return look.kinds()
