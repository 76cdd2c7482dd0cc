"""Which errors say that memory ran out."""

import pytest
import torch

from datafree.engine.out_of_memory import ran_out

# As torch 2.14 words them; those of its libraries come before its own allocator has a word to say.
SAID = {
    "the allocator": "CUDA out of memory. Tried to allocate 20.00 MiB.",
    "the driver": "CUDA error: out of memory",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "a convolution": "GET was unable to find an engine to execute this computation",
    "a convolution that is timed first": "FIND was unable to find an engine to execute this computation",
}


@pytest.mark.parametrize("who", SAID)
def test_each_way_to_run_out_of_a_gpus_memory_is_recognised(who: str) -> None:
    assert ran_out(RuntimeError(SAID[who]))
    assert not ran_out(ValueError(SAID[who]))


@pytest.mark.parametrize(
    "text", ["CUDA error: CUBLAS_STATUS_NOT_SUPPORTED", "cuDNN error: CUDNN_STATUS_BAD_PARAM", "device-side assert"]
)
def test_other_faults_of_a_gpu_are_not(text: str) -> None:
    assert not ran_out(RuntimeError(text))
    assert ran_out(torch.OutOfMemoryError("")) and ran_out(MemoryError())
