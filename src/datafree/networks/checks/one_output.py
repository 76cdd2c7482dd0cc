"""Networks of one output: a logit or a sigmoid that says yes, as of two classes.

B images, h x w places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from datafree.errors import NetworkError
from datafree.networks.normalized import Normalized, only_answer
from datafree.ops import modes

# What keeps probabilities what they are; views share their memory with what they view.
_KEEPING = ("_to_copy", "_unsafe_view", "clone", "clamp", "clamp_max", "clamp_min", "constant_pad_nd", "index", "flip")
_RESIZING = "upsample_"


@torch.no_grad()
def settle_one_output(network: Normalized, images: Tensor) -> str:
    """Have a network that answers (B, 1) or (B, 1, h, w) answer two classes, no and yes; a line that says so.

    "" for any other network, which stays as it is. `images` (B, 3, H, W) are any that it takes. Raises NetworkError for
    one output of whole numbers, which is no logit; and as `only_answer`.
    """
    last: list[object] = []
    with modes.frozen(network):
        outputs = network(images)
        if not isinstance(outputs, Tensor) or outputs.ndim not in (2, 4) or outputs.shape[1] != 1:
            return ""
        # Once more, now that it is worth the memory of all that is made on the way.
        handle = network.network.register_forward_hook(lambda module, given, answer: last.append(answer))
        try:
            with _Squashed() as squashed:
                network(images[:1])
        finally:
            handle.remove()
    answer = only_answer(last[0])
    assert isinstance(answer, Tensor)
    if not answer.is_floating_point():
        raise NetworkError(
            f"the network answers whole numbers, one each ({str(answer.dtype).removeprefix('torch.')}): the classes "
            "that it has chosen, perhaps, but logits are needed; take its last argmax or threshold off"
        )
    network.one_output = "probability" if squashed.has(answer) else "logit"
    what = "a sigmoid" if network.one_output == "probability" else "a logit"
    return f"it has one output, {what}: taken as two classes, 0 for no and 1 for yes"


class _Squashed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which values come out of a sigmoid, be it a layer or a function, and of nothing else behind it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept: list[Tensor] = []  # so that their memory is not taken again
        self._squashed: set[int] = set()  # places in memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = next((value for value in args if isinstance(value, Tensor)), None)
        kept = given is not None and self.has(given)
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(made, Tensor) and not func.is_view:
            within = name.rstrip("_")
            still = within == "sigmoid" or (kept and (within in _KEEPING or name.startswith(_RESIZING)))
            (self._squashed.add if still else self._squashed.discard)(_place(made))
            self._kept.append(made)
        return made

    def has(self, values: Tensor) -> bool:
        """Whether these came out of a sigmoid."""
        return _place(values) in self._squashed


def _place(values: Tensor) -> int:
    return values.untyped_storage().data_ptr()
