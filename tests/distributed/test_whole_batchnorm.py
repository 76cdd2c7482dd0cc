"""BatchNorm by the statistics of all processes, as far as kernels of a GPU can be asked without one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from datafree.distributed import whole_batchnorm


class Calls(TorchDispatchMode):
    """Keeps what an operator was called with."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator, self.given = operator, list[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.operator:
            self.given.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch has no kernels of CUDA")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cudas_kernel_takes_what_the_backward_pass_gives_it(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is entered with tensors of the host: it looks at its arguments before it needs a GPU, and there it fails."""
    monkeypatch.setattr(whole_batchnorm, "average", lambda total: None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    kernel = torch.ops.aten.native_batch_norm_backward.default
    images: Tensor = torch.randn(4, 5, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
    with Calls(kernel) as calls, whole_batchnorm.of_equal_parts(4):
        nn.BatchNorm2d(5)(images).square().sum().backward()
    (given,) = calls.given
    on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError) as failed:
        kernel.redispatch(on_cuda, *given)
    assert "should always be defined" not in str(failed.value)
    assert "CUDA" in str(failed.value)
