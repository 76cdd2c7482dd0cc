"""Residual sums: layers whose answers are added to another map, seen while a network runs."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from datafree.networks.normalized import bare


class SumWatch(TorchDispatchMode, ABC):  # type: ignore[no-untyped-call]
    """Within it, `answered` is told of the answers of layers, and `added` makes the sums that they go into.

    `layers`: layer -> the module whose answer counts, its BatchNorm or itself; names that are no modules are left out.
    A BatchNorm's is what normalising gives, which a module with an activation of its own (timm's) does not answer. One
    that an activation has changed in place meanwhile is not the layer's any more.
    """

    def __init__(self, network: nn.Module, layers: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = dict(bare(network).named_modules())
        self.busy = False
        self._answers: dict[int, tuple[weakref.ref[Tensor], int, int, str]] = {}  # id -> itself, version, turn, layer
        self.handles: list[Any] = []
        self._gains: dict[int, str] = {}  # id of a BatchNorm's gain -> the layer before it
        for layer, name in layers.items():
            module = self.modules.get(name)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self._gains[id(module.weight)] = layer
            elif module is not None:
                self.handles.append(module.register_forward_hook(self._after(layer)))

    def answered(self, layer: str, answer: Tensor) -> None:
        """The layer's answer has been made."""

    @abstractmethod
    def added(self, known: Mapping[str, int], func: Any, args: tuple[Tensor, Tensor]) -> Tensor:
        """Make the sum of `args` by `func`.

        `known`: layer -> which of them is its answer; the layer that ran last stands last.
        """

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Layers that run within it are not seen."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def _after(self, layer: str) -> Any:
        def hook(module: nn.Module, inputs: object, answer: Tensor) -> None:
            self._made(layer, answer)

        return hook

    def _made(self, layer: str, answer: Tensor) -> None:
        if not self.busy:
            self._answers[id(answer)] = (weakref.ref(answer), answer._version, len(self._answers), layer)
            self.answered(layer, answer)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.name in ("aten::add", "aten::add_") and len(args) == 2 and not kwargs:
            one, other = args
            if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
                found = [(self._layer(x), turn) for turn, x in enumerate((one, other))]
                known = sorted((made[0], made[1], turn) for made, turn in found if made is not None)
                if known:
                    return self.added({layer: turn for _, layer, turn in known}, func, args)
        answer = func(*args, **(kwargs or {}))
        gain = args[1] if len(args) > 1 and "batch_norm" in func._schema.name else None
        if id(gain) in self._gains:
            self._made(self._gains[id(gain)], answer[0] if isinstance(answer, tuple) else answer)
        return answer

    def _layer(self, x: Tensor) -> tuple[int, str] | None:
        reference, version, turn, layer = self._answers.get(id(x), (None, 0, 0, ""))
        return (turn, layer) if reference is not None and reference() is x and x._version == version else None

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]
