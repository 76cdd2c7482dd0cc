"""Several processes come to what one comes to: for every source and task, and for each part a shared pass is made of.

In float64, where rounding has no time to grow: what is left in float32 is rounding, which an adversarial method blows
up within a few steps, as it does when only the number of threads changes.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from datafree.distributed import collectives, divided, replicas
from datafree.networks import features
from datafree.networks.batchnorm import StatisticsMatch
from datafree.networks.normalized import bare
from datafree.ops import modes
from datafree.ops.performance import Speed
from datafree.sources import SOURCES
from datafree.sources.base import SourceContext
from datafree.tasks import TASKS
from pretended_device import pretended
from test_contract import make_network, make_source, make_task
from thorough import some

P = 2
PAIRS = [(method, kind) for method in SOURCES for kind in TASKS if issubclass(TASKS[kind], SOURCES[method].serves)]
# Each way of making images once, each task twice; all pairs are among the slow ones, with more steps.
SHORT = [(method, "classification") for method in ("noise", "degan", "cgdd", "cmi")]
SHORT += [("noise", "segmentation"), ("folder", "detection"), ("diode", "detection")]
# torch has no float64 convolution for weights whose channels lie last and whose gradients are taken twice over.
PLAIN = Speed(channels_last=False)


def on_processes(folder: Path, act: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What `act` returns on each of P processes that know one another; it is given the process's number."""
    mp.start_processes(_process, (folder, act), nprocs=P, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(P)]


def _process(rank: int, folder: Path, act: Callable[[int], dict[str, Tensor]]) -> None:
    torch.set_num_threads(1)
    group = collectives.process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=P)
    with group, collectives.over_lines(timedelta(minutes=1)):
        torch.save(act(rank), folder / f"{rank}.pt")


def learnt(method: str, kind: str, photos: Path, steps: int) -> dict[str, Tensor]:
    """The student, and images held out, after some steps of a source and task, with batches that P does not divide."""
    task = make_task(kind)
    teacher = replicas.share(make_network(task, 1).eval().requires_grad_(False))
    student = replicas.share(make_network(task, 2))
    source = make_source(method, photos, task)
    modes.seed_everything(0)
    source.attach(SourceContext(task=task, teacher=teacher, steps=steps, batch_size=5, speed=PLAIN))
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    for step in range(-source.warmup, steps):
        if source.due(step):
            source.update(student, step)
        if step < 0:
            continue
        images = source.sample(5).images
        with torch.no_grad():
            answers = teacher(images)
        optimizer.zero_grad()
        torch.autograd.backward(task.distill_loss(student(images), answers))
        optimizer.step()
    return {
        **{name: value.clone() for name, value in bare(student).state_dict().items()},
        "": source.validation_images(8),
    }


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """How far two sets of tensors are from each other, relative to their length."""
    assert first.keys() == second.keys()
    one, other = (torch.cat([value.double().flatten() for value in state.values()]) for state in (first, second))
    return float((one - other).norm() / other.norm())


def distance(method: str, kind: str, folder: Path, photos: Path, steps: int) -> float:
    """How far two processes come from where one does. Among themselves they are equal to the bit."""
    copies = [shutil.copytree(photos, folder / f"photos-{rank}") for rank in range(P)]
    alone = learnt(method, kind, photos, steps)
    together = on_processes(folder, lambda rank: learnt(method, kind, copies[rank], steps))
    assert apart(together[0], together[1]) == 0
    return apart(together[0], alone)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("method", "kind"), some(SHORT, ("cgdd", "classification")))
def test_two_processes_learn_what_one_learns(
    method: str, kind: str, tmp_path: Path, photos: Callable[..., Path]
) -> None:
    assert distance(method, kind, tmp_path, photos(), 3) < 1e-12


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_two_processes_learn_what_one_learns_for_twenty_steps(
    method: str, kind: str, tmp_path: Path, photos: Callable[..., Path]
) -> None:
    assert distance(method, kind, tmp_path, photos(), 20) < 1e-10


class Net(nn.Module):
    """BatchNorm in two dimensions and one, a layer that changes its input in place, dropout on demand."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False))

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(images).mean((2, 3)))
        return answer


def made(dropout: float = 0.0) -> Net:
    torch.manual_seed(3)
    return Net(dropout)


def looked_into(batch: int) -> dict[str, Tensor]:
    """All that a pass gives, forward and backward, with the looks inside."""
    network = replicas.share(made())
    torch.manual_seed(4)
    images = torch.rand(batch, 3, 8, 8, requires_grad=True)
    match = StatisticsMatch(network=network)
    with match.watching(), features.watched(network, ["body.1"]) as maps:
        answers = network(images)
    loss = answers.square().mean() + answers[:2].sum() + match.distance() + maps["body.1"].square().sum((1, 2, 3)).std()
    torch.autograd.backward(loss)
    assert images.grad is not None
    found = {"answers": answers, "images": images.grad, "distance": match.distance(), "maps": maps["body.1"]}
    found |= {f"gradient {name}": value.grad for name, value in network.named_parameters() if value.grad is not None}
    found |= {f"buffer {name}": value.clone() for name, value in network.named_buffers()}
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("batch", [6, 7, 3])
def test_a_shared_pass_is_the_whole_pass_inside_and_out(batch: int, tmp_path: Path) -> None:
    alone = looked_into(batch)
    for mine in on_processes(tmp_path, lambda rank: looked_into(batch)):
        assert mine.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_a_batch_with_fewer_images_than_processes_is_computed_by_each(tmp_path: Path) -> None:
    def passed() -> dict[str, Tensor]:
        network = replicas.share(made().eval())
        torch.manual_seed(4)
        answers = network(torch.rand(1, 3, 8, 8))
        torch.autograd.backward(answers.sum())
        assert network.head[1].weight.grad is not None
        return {"answers": answers.detach(), "gradient": network.head[1].weight.grad}

    alone = passed()
    for mine in on_processes(tmp_path, lambda rank: passed()):
        assert all(torch.equal(mine[name], alone[name]) for name in alone)


def test_random_numbers_stay_the_same_on_all_when_parts_draw_unequally_many(tmp_path: Path) -> None:
    def drawn() -> dict[str, Tensor]:
        network = replicas.share(made(dropout=0.5))
        torch.manual_seed(4)
        answers = network(torch.rand(7, 3, 8, 8)).detach()
        return {"answers": answers, "next": torch.rand(5)}

    first, second = on_processes(tmp_path, lambda rank: drawn())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_random_numbers_of_a_device_stay_the_same_on_all_too(tmp_path: Path) -> None:
    def drawn() -> dict[str, Tensor]:
        with pretended() as device:
            network = replicas.share(made(dropout=0.5).to(device))
            torch.manual_seed(4)
            answers = network(torch.rand(7, 3, 8, 8, device=device)).detach()
            return {"answers": answers.cpu(), "next": torch.rand(5, device=device).cpu()}

    first, second = on_processes(tmp_path, lambda rank: drawn())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_copy_of_a_shared_network_passes_through_itself(tmp_path: Path) -> None:
    def both() -> dict[str, Tensor]:
        import copy

        network = replicas.share(made().eval())
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.head[1].bias.add_(1.0)
            images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            return {"network": network(images), "other": other(images)}

    for mine in on_processes(tmp_path, lambda rank: both()):
        assert float((mine["other"] - mine["network"]).min()) > 0.5


def test_what_one_process_decides_all_hear(tmp_path: Path) -> None:
    def heard(rank: int) -> dict[str, Tensor]:
        words = [replicas.all_agree("time is up" if rank == 1 else None), replicas.all_agree(None)]
        return {"words": torch.tensor([words == ["time is up", None], replicas.is_first() == (rank == 0)])}

    assert all(mine["words"].all() for mine in on_processes(tmp_path, heard))


def test_one_process_is_left_as_it_is() -> None:
    network = made()
    assert replicas.share(network) is network and "forward" not in vars(network)
    assert (replicas.count(), replicas.rank(), replicas.is_first()) == (1, 0, True)
    assert replicas.all_agree("a reason") == "a reason"
    with replicas.joined("cpu") as device:
        assert device == "cpu" and replicas.count() == 1


def test_processes_on_gpus_meet_by_nccl_and_tell_one_another_things_by_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met: list[str] = []

    @contextmanager
    def process_group(backend: str, **meeting: object) -> Iterator[None]:
        met.append(backend)
        yield

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(collectives, "process_group", process_group)
    monkeypatch.setattr(collectives, "over_lines", lambda patience: nullcontext())
    monkeypatch.setattr(modes, "choose_device", lambda name: torch.device("cuda:1" if name == "auto" else name))
    for name, device in (("auto", "cuda:1"), ("cpu", "cpu")):
        with replicas.joined(name) as mine:
            assert mine == device
    assert met == ["cpu:gloo,cuda:nccl", "gloo"]


def test_a_process_without_a_gpu_of_its_own_says_so_before_it_meets_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.errors import DatafreeError

    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DatafreeError, match="no GPU for process 1 of 2 on this machine"), replicas.joined("auto"):
        pass


def _on_gpus(rank: int, folder: Path) -> None:
    """A group as on GPUs, with a stand-in for NCCL that nothing may ask."""
    dist.Backend.register_backend("standin", dist.ProcessGroupGloo, devices=["cuda"])
    meeting = {"init_method": f"file://{folder / 'meet'}", "rank": rank, "world_size": P}
    with collectives.process_group("cpu:gloo,cuda:standin", **meeting), collectives.over_lines(timedelta(minutes=1)):
        assert collectives._lines  # asked at every step, so it should cost little
        dist.barrier()
        assert replicas.all_agree(None) is None
        assert replicas.all_agree("time is up" if rank == 1 else None) == "time is up"
        assert replicas.broadcast_from_rank0(lambda: rank) == 0
        assert divided.gathered_objects(rank) == [0, 1]


def test_a_group_of_gpus_needs_none_for_what_is_on_the_host(tmp_path: Path) -> None:
    mp.start_processes(_on_gpus, (tmp_path,), nprocs=P, start_method="fork")


def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.errors import DatafreeError

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(DatafreeError, match="process 0 of 2 cannot reach the others"), replicas.joined("cpu"):
        pass
