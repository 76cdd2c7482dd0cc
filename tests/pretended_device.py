"""A pretended accelerator: its tensors are wrappers around the CPU's, so that whatever runs on it really computes.

It refuses what CUDA refuses (`pretended_rules`): operands on the host beside operands on the device, a generator of the
other side. Every place where the host would have to wait for the device is noted with its line. Random numbers of the
device come from a state of their own. What it cannot show: kernels, their rounding, streams and memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pretended_log import LOG, Faulty, note
from pretended_rules import generators, refuse_mixture, waits

NAME = "pretended"
HOST_GENERATOR = torch.Generator
aten: Any = torch.ops.aten


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; `inner` holds its values, on the CPU, in the same layout."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Self:
        assert type(inner) is not OnDevice
        tensor: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        tensor.inner = inner
        return tensor

    def __repr__(self, **kwargs: Any) -> str:
        return f"{NAME}({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    # So that Module.to swaps parameters, which keeps tied ones tied.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> OnDevice:
        return OnDevice(inner["inner"])

    # Where its values lie says which tensors share them.
    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        note("tolist")
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")
        note("to the CPU")
        return self.inner.detach().numpy()

    # Saved as a tensor of the host: what a checkpoint that is read with map_location="cpu" gives.
    def __reduce_ex__(self, protocol: Any) -> Any:
        note("to the CPU")
        return self.inner.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        with torch.no_grad():
            copy: Any = OnDevice(self.inner.clone())
        copy.requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        if self.grad is not None:
            copy.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = copy
        return copy


class _Random:
    """The device's random state, beside the host's."""

    def __init__(self) -> None:
        self.state = HOST_GENERATOR().manual_seed(0).get_state()

    @contextlib.contextmanager
    def drawn_from(self) -> Iterator[None]:
        host = torch.default_generator.get_state()
        torch.default_generator.set_state(self.state)
        try:
            yield
        finally:
            self.state = torch.default_generator.get_state()
            torch.default_generator.set_state(host)


RANDOM = _Random()
OURS: set[int] = set()  # generators that were made for the device, by where they are


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator, on the values inside; refused where CUDA refuses it, noted where the host waits."""
    LOG.operators += 1
    ours: dict[int, OnDevice] = {}  # inner -> its wrapper, for operators that answer with what they were given
    host: list[Tensor] = []

    def inside(value: Any) -> Any:
        if isinstance(value, OnDevice):
            ours[id(value.inner)] = value
            return value.inner
        if isinstance(value, Tensor):
            host.append(value)
        return value

    plain_args, plain_kwargs = tree_map(inside, args), tree_map(inside, kwargs)
    asked = kwargs.get("device")
    here = bool(ours) if asked is None else torch.device(asked).type == NAME
    first = next((value for value in args if isinstance(value, Tensor)), None)
    first_is_host = first is not None and not isinstance(first, OnDevice)
    if func is aten.copy_.default:
        here = not first_is_host
    left_out = (aten.copy_.default, aten.scalar_tensor.default)  # a number may lie on the host
    made = here and not ours and func not in left_out  # made there, or brought there
    if made and Faulty.current is not None and Faulty.current.strikes():
        here = False
    if ours and host:
        refuse_mixture(func, args, host, first_is_host)
    for generator in generators(args, kwargs):
        if (generator._cdata in OURS) != here:
            kinds = (NAME, "cpu") if here else ("cpu", NAME)
            raise RuntimeError(f"Expected a '{kinds[0]}' device type for generator but found '{kinds[1]}'")
    if ours or here:
        copied = args[1] if func is aten.copy_.default else args[0] if args else None
        given = args[2] if len(args) > 2 and func is aten.copy_.default else False
        silent = bool(kwargs.get("non_blocking", given))
        from_host = isinstance(copied, Tensor) and not isinstance(copied, OnDevice)
        if why := waits(func, args, from_host=from_host, onto_host=not here, non_blocking=silent):
            note(why)
    if asked is not None:
        plain_kwargs["device"] = torch.device("cpu") if here or torch.device(asked).type == NAME else asked
    if plain_kwargs.get("pin_memory"):
        del plain_kwargs["pin_memory"]
    own = here and torch.Tag.nondeterministic_seeded in func.tags and not generators(args, kwargs)
    with RANDOM.drawn_from() if own else contextlib.nullcontext():
        answer = func(*plain_args, **plain_kwargs)

    def outside(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnDevice):
            return value
        if id(value) in ours:
            return ours[id(value)]
        if not here:
            return value
        return OnDevice(value.clone() if any(value is tensor for tensor in host) else value)

    return tree_map(outside, answer)


class Pretended(TorchDispatchMode):
    """While it is on, tensors can be made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Event:
    """Everything that was asked of the device is done at once."""

    def __init__(self, device: Any = None, **options: Any) -> None:
        self.recorded = False

    def record(self, stream: Any = None) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.recorded

    def synchronize(self) -> None:
        assert self.recorded


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a device's module: torch.pretended."""

    def is_available(self) -> bool:
        return _Hook.on

    def manual_seed_all(self, seed: int) -> None:
        RANDOM.state = HOST_GENERATOR().manual_seed(seed).get_state()

    def get_rng_state_all(self) -> list[Tensor]:
        return [RANDOM.state.clone()]

    def set_rng_state_all(self, states: list[Tensor]) -> None:
        (RANDOM.state,) = states

    def get_rng_state(self, device: Any = None) -> Tensor:
        return RANDOM.state.clone()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        RANDOM.state = state

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(backend_registration._DummyPrivateUse1Hook):
    on = False

    def is_available(self) -> bool:
        return _Hook.on


_kept: list[torch.library.Library] = []


def _register() -> None:
    """Make the device known to torch, once in a process. It is available within `pretended` only."""
    if _kept:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_Hook())
    library = torch.library.Library("aten", "IMPL")
    for op in (aten.empty.memory_format, aten.empty_strided.default):  # torch.tensor and the like ask below all modes

        def make(*args: Any, op: Any = op, **kwargs: Any) -> Any:
            return run(op, args, {**kwargs, "device": torch.device(NAME, 0)})

        library.impl(op, make, "PrivateUse1")

    def copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        return run(aten.copy_.default, (target, source, non_blocking), {})

    library.impl("_copy_from", copy, "PrivateUse1")
    _kept.append(library)


@contextlib.contextmanager
def pretended() -> Iterator[torch.device]:
    """Within it there is the device that is yielded; backward passes run in the thread that asks for them."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot have a device written in Python (2.10 can)")
    if torch.cuda.is_available():
        pytest.skip("there is a real one, which torch would no longer find in this process")
    _register()
    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "Event", Event)
    patch.setattr(torch.accelerator, "synchronize", lambda device=None: None)
    patch.setattr(torch.accelerator, "empty_cache", lambda: None)
    patch.setattr(torch, "Generator", _Generator)
    patch.setattr(_Hook, "on", True)
    LOG.clear()
    RANDOM.state = HOST_GENERATOR().manual_seed(0).get_state()
    try:
        with Pretended(), torch.autograd.set_multithreading_enabled(False):
            yield torch.device(NAME, 0)
    finally:
        patch.undo()
        OURS.clear()


class _AnyGenerator(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, HOST_GENERATOR)


class _Generator(metaclass=_AnyGenerator):
    """torch.Generator, of the pretended device too."""

    def __new__(cls, device: Any = "cpu") -> Any:
        generator = HOST_GENERATOR()
        if torch.device(device).type == NAME:
            OURS.add(generator._cdata)
        return generator
