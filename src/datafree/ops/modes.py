"""Modes of networks while they are used: frozen, train or eval, precision, seeds and random states.

A network is touched only inside a `with` that puts everything back, also after an error.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datafree.errors import DatafreeError

Precision = Literal["auto", "fp32", "bf16"]


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Hold `networks` in eval mode with no gradients to their parameters; restore all of it afterwards.

    Gradients still flow through the networks to their inputs. BatchNorm uses and keeps its running
    statistics (the public DeGAN segmentation code trains with the teacher in train mode, so that its
    statistics drift: docs/methods.md).
    """
    modules = [m for network in networks for m in network.modules()]
    parameters = [p for network in networks for p in network.parameters()]
    was_training = [m.training for m in modules]
    required_grad = [p.requires_grad for p in parameters]
    try:
        for network in networks:
            network.eval().requires_grad_(False)
        yield
    finally:
        for module, training in zip(modules, was_training, strict=True):
            module.training = training
        for parameter, required in zip(parameters, required_grad, strict=True):
            parameter.requires_grad_(required)


@contextmanager
def parameters_fixed(*networks: nn.Module) -> Iterator[None]:
    """Stop gradients at the parameters of `networks`, whatever mode they are in; restore afterwards.

    For the half of an adversarial step that looks through a network (the discriminator in a generator's
    step): saves the backward pass to its parameters.
    """
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def looked_through(network: nn.Module, mode: Literal["train", "eval"]) -> Iterator[None]:
    """Hold `network` as a generator looks through it: no gradients to its parameters, no trace left in its buffers.

    "train" answers with batch statistics (as the public adversarial code does) but without moving the running ones,
    which are for the images the network learns from.
    """
    if mode == "eval":
        with frozen(network):
            yield
        return
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    kept = [(norm.momentum, norm.track_running_stats) for norm in norms]
    was_training = [m.training for m in network.modules()]
    try:
        network.train()
        for norm in norms:
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.track_running_stats = False
            else:  # InstanceNorm writes them all the same: running = 1 * running + 0 * batch
                norm.momentum = 0.0
        with parameters_fixed(network):
            yield
    finally:
        for module, training in zip(network.modules(), was_training, strict=True):
            module.training = training
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.track_running_stats = momentum, tracked


def copied_state(network: nn.Module) -> dict[str, Any]:
    """What `load_state_dict` of it puts back: a copy of its tensors, and of all else that its modules save."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in network.state_dict().items()
    }


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU.

    Of the processes that a launcher started on this machine, "auto" and "cuda" give each a GPU of its own. A GPU with a
    number becomes this process's current one, whose streams and random numbers are used where no device is named.
    Raises DatafreeError for a name that is none, a device that this machine has not, or more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        name = f"cuda:{_own_gpu(int(os.environ['LOCAL_RANK']))}"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        torch.ones(1, device=device).add(1).item()  # "meta" has tensors, but computes nothing
    except Exception as error:  # RuntimeError, AssertionError, ModuleNotFoundError, by the device
        raise DatafreeError(f"this machine has no device {name!r}; use auto, cpu, or one that it has") from error
    return device


def _own_gpu(number: int) -> int:
    """The GPU of the process with this number on this machine. Raises DatafreeError where there are too few."""
    there, beside = torch.cuda.device_count(), os.environ.get("LOCAL_WORLD_SIZE", "several")
    if number < there:
        return number
    if there == 1 and beside == "1":  # its launcher started no other here, so that the one GPU it sees is its own
        return 0
    own = ", or, where each sees one GPU of its own (SLURM), set LOCAL_WORLD_SIZE=1" if there == 1 else ""
    raise DatafreeError(
        f"there is no GPU for process {number} of {beside} on this machine (LOCAL_RANK={number}): it sees {there}; "
        f"start at most {there} on a machine, or set training.device=cpu{own}"
    )


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of the forward passes: "auto" is bfloat16 where `device` computes it natively."""
    if precision == "fp32" or (precision == "auto" and not _has_native_bf16(device)):
        return torch.float32
    return torch.bfloat16


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":  # the processor's units say nothing of another device
        return False
    try:  # torch's own test of the processor is private and has moved between releases
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Forward passes in `dtype` (a no-op for float32)."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def runs_ahead(device: torch.device) -> bool:
    """Whether the host gets on while `device` is still at work, and events tell when it is done."""
    return device.type not in ("cpu", "mps", "meta")


def wait_for(device: torch.device) -> None:
    """Return when `device` has done all that it was asked."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # that would keep every call, with its traceback, for a device that never comes: a data set seeds every shard
        torch.default_generator.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Every random state of this process, made of tensors and plain values only; of devices, the current one's."""
    numpy: Any = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "cuda": [module.get_rng_state()] if (module := _device_random()) else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned; that of a device becomes the current one's, whatever its number."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and (module := _device_random()):
        here = module.current_device()
        module.set_rng_state(state["cuda"][here if here < len(state["cuda"]) else 0])  # older ones are of all devices


def generator_state(device: torch.device) -> Tensor:
    """The state of the random numbers that are drawn on `device`, a tensor of the host; empty if it has none."""
    if device.type == "cpu":
        return torch.get_rng_state()
    module = torch.get_device_module(device)
    return module.get_rng_state(device) if hasattr(module, "get_rng_state_all") else torch.empty(0)


def set_generator_state(device: torch.device, state: Tensor) -> None:
    """Put back what `generator_state` returned."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _device_random() -> Any:
    """The module of the accelerator there is, torch.cuda for instance, if it can tell its random states; else None."""
    module = torch.get_device_module() if torch.accelerator.is_available() else None
    return module if hasattr(module, "get_rng_state_all") else None
