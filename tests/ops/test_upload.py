"""Numbers of the host that are sent to a device."""

import pytest
import torch
from torch import Tensor

from datafree.ops.upload import uploaded


def test_large_tensors_lie_in_pinned_memory_before_cuda_copies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """From other memory CUDA's copy waits as soon as it is of more than 64 KB."""
    pinned: list[int] = []
    sent: list[object] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.nbytes)
        return tensor

    def to(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        sent.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    images = torch.zeros(1, 3, 128, 128)
    for values, where in ((images, "cuda"), (images, "mps"), ([1, 2], "cuda"), (images.byte(), "cuda")):
        uploaded(values, torch.device(where))
    assert pinned == [4 * 3 * 128 * 128]
    assert sent == [(where, True) for where in ("cuda", "mps", "cuda", "cuda")]


def test_what_needs_no_device_stays_where_it_is() -> None:
    values = torch.arange(3.0)
    assert uploaded(values, None) is values
    assert torch.equal(uploaded([0, 1, 2], torch.device("cpu"), torch.float32), values)
