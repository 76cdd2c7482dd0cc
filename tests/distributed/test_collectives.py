"""What a group of processes leaves behind."""

import subprocess
import sys
from pathlib import Path

import pytest

TRAINED_IN_A_GROUP = """
from pathlib import Path
import torch, torch.distributed as dist
from datafree.distributed.collectives import process_group
def of_the_group():
    return sum("gloo" in task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir())
with process_group("gloo", store=dist.HashStore(), rank=0, world_size=1):
    weight = torch.ones(3, requires_grad=True)
    torch.optim.SGD([weight], 0.1)  # imports what keeps the group that there is
    dist.all_reduce(torch.ones(3))
    print(of_the_group() > 0)
print(of_the_group())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where /proc shows them")
def test_no_thread_outlives_its_group() -> None:
    """One that lets go of a tensor while the interpreter ends aborts the process."""
    found = subprocess.run([sys.executable, "-c", TRAINED_IN_A_GROUP], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "0"]
