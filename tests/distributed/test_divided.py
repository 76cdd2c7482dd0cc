"""Batches shared out among processes: what of it is one process's to the last figures, and that all stay together."""

import copy
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from test_replicas import PAIRS, PLAIN, P, apart, made, on_processes
from torch import Tensor

from datafree.distributed import divided, own_state, replicas
from datafree.engine.nonfinite import NotFinite, Watch
from datafree.engine.out_of_memory import OutOfMemory
from datafree.engine.recovery import STUDENT_STEP, Recovery
from datafree.engine.shared_batches import part_of, require_alike
from datafree.engine.student_step import StudentStep
from datafree.errors import DatafreeError, Interrupted, TrainingError
from datafree.health.guard import Guard
from datafree.networks.generators import Generator, ResizeGenerator
from datafree.networks.normalized import bare
from datafree.ops import augment, modes, whole_batch
from datafree.ops.augment import Move
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources.base import ImageSource, SourceContext, UpdateSize
from datafree.sources.parts.memory_bank import Bank
from datafree.tasks.classification import Classification
from small_runs import labelled, recipe_for, stop_after
from test_contract import make_network, make_source, make_task
from thorough import some

CPU = torch.device("cpu")
B = 4  # images of a batch


def flat(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in bare(network).state_dict().items()}


class Rig:
    """A source and a student that learns from it; its batches are shared out where there are several processes."""

    def __init__(self, method: str, kind: str, photos: Path, **options: Any) -> None:
        task = make_task(kind)
        self.teacher = replicas.share(make_network(task, 1).eval().requires_grad_(False))
        self.student = replicas.share(make_network(task, 2))
        whole = make_source(method, photos, task)
        for each in whole.all_sources():
            if (size := each.update_size()) is not None:
                each.resize_updates(replace(size, images=B))
        for name, value in options.items():
            setattr(whole, name, value)
        self.training, self.source = part_of(Training(batch_size=B, optimizer="sgd", lr=0.01, speed=PLAIN), whole)
        modes.seed_everything(0)
        size = self.training.batch_size
        context = SourceContext(task=task, teacher=self.teacher, steps=20, batch_size=size, speed=PLAIN)
        self.source.attach(context)
        divided.seed(0)
        self.step = StudentStep(
            task=task,
            teacher=self.teacher,
            student=self.student,
            training=self.training,
            pairs={},
            optimizer=self.training.make_optimizer(self.student),
            watch=Watch(CPU),
            recovery=Recovery(),
        )

    def run(self, steps: int) -> Tensor:
        """The images that were learnt last."""
        images = torch.empty(0)
        for step in range(-self.source.warmup, steps):
            if self.source.due(step):
                self.source.update(self.student, step)
            if step >= 0:
                batch = self.source.sample(self.training.batch_size)
                self.step.learn(batch, step)
                images = batch.images
        return images

    def networks(self) -> dict[str, Tensor]:
        networks = {"student": self.student, **self.source.artefacts()}
        return {f"{who}.{name}": value for who, net in networks.items() for name, value in flat(net).items()}


@contextmanager
def sharing() -> Iterator[None]:
    with divided.sharing(True):
        yield


# --- equal to one process ---


def folder_run(tmp_path: Path, photos: Path, rank: int, **training: Any) -> dict[str, Tensor]:
    """The student of a run on files, whose order is the same however many processes read it."""
    home = tmp_path / f"home-{rank}"
    home.mkdir()
    recipe = recipe_for(home, {"method": "folder", "path": str(photos)}, batch_size=B, steps=8, track=[], **training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        run_recipe(recipe, tmp_path / "run" if rank >= 0 else tmp_path / "alone")
    return load_file(tmp_path / ("run" if rank >= 0 else "alone") / "student.safetensors") if rank <= 0 else {}


@pytest.mark.usefixtures("double")
def test_a_run_on_files_ends_with_one_processs_student(tmp_path: Path, photos: Callable[..., Path]) -> None:
    """23 images are learnt from in batches of 4: epochs end within batches."""
    folder = photos(25)
    alone = folder_run(tmp_path, folder, -1)
    both = on_processes(tmp_path, lambda rank: folder_run(tmp_path, folder, rank, data_parallel="divided"))
    assert apart(both[0], alone) < 1e-12


@contextmanager
def fixed_draws(rank: int, parts: int) -> Iterator[None]:
    """Latents, targets and noise are rows of the same whole batches; nothing is moved."""
    calls = [0]

    def rows(n: int, make: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        calls[0] += 1
        return make(n * parts, torch.Generator().manual_seed(calls[0]))[rank * n :][:n].clone()

    def latents(self: Any, n: int, device: Any, generator: Any = None) -> Tensor:
        return rows(n, lambda count, draw: torch.randn(count, self.latent, generator=draw))

    def targets(self: Any, n: int, device: Any, generator: Any = None) -> Tensor:
        return rows(n, lambda count, draw: torch.randint(self.num_classes, (count,), generator=draw))

    randn = torch.randn

    def noise(*shape: int, **given: Any) -> Tensor:
        if len(shape) != 4 or "generator" in given:
            return randn(*shape, **given)
        return rows(shape[0], lambda count, draw: randn(count, *shape[1:], generator=draw))

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Generator, ResizeGenerator):
            patch.setattr(kind, "draw_latents", latents)
        patch.setattr(Classification, "sample_targets", targets)
        patch.setattr(torch, "randn", noise)
        patch.setattr(augment, "shift_and_flip", lambda images, *_: (images, Move()))
        patch.setattr(augment, "roll_and_flip", lambda images, *_: (images, Move()))
        yield


def updated(method: str, photos: Path, rank: int, **options: Any) -> dict[str, Tensor]:
    """Networks of a source after three updates beside an untaught student, and the mean of what it then makes."""
    rig = Rig(method, "classification", photos, **options)
    with fixed_draws(rank, whole_batch.parts()):
        for step in range(3):
            rig.source.update(rig.student, step)
    made = whole_batch.whole_mean(sampled(rig.source).mean(0))
    return {**rig.networks(), "images": made}


def sampled(source: ImageSource) -> Tensor:
    """The images of a bank as they lie in it; of a source without one those of its networks are enough."""
    pool = getattr(source, "_pool", None)
    return torch.zeros(1) if pool is None else pool._bank._train.images[: len(pool._bank)].float()


UPDATES: dict[str, dict[str, Any]] = {
    "degan": {"entropy_weight": 1.0},
    "cgdd": {"balance_weight": 1.0, "bn_weight": 1.0, "student_mode": "train"},
    "dafl": {},
    "dfad": {"objective": "log"},
    "zskt": {"clip": 0.01},
    "fast": {"reset_at": 0.0},
    "inversion": {"tv_l2_weight": 0.1, "l2_weight": 0.1},
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("method", some(UPDATES, "cgdd", "inversion"))
def test_updates_from_the_same_draws_are_one_processs(method: str, tmp_path: Path, photos: Callable[..., Path]) -> None:
    """Class balance, BatchNorm statistics in the teacher and in the student, clipping, norms of the whole batch."""
    folder = photos()
    alone = updated(method, folder, 0, **UPDATES[method])

    def act(rank: int) -> dict[str, Tensor]:
        with sharing():
            return updated(method, folder, rank, **UPDATES[method])

    for mine in on_processes(tmp_path, act):
        assert apart(mine, alone) < 1e-12


@pytest.mark.usefixtures("double")
def test_a_pass_of_a_part_has_the_whole_batchs_statistics_inside(tmp_path: Path) -> None:
    """Answers, gradients and running statistics of BatchNorm in train mode, against a pass of all images."""
    torch.manual_seed(5)
    images, aims = torch.rand(6, 3, 8, 8), torch.randn(6, 6)

    def passed(rows: slice) -> dict[str, Tensor]:
        network = replicas.share(made())
        mine = images[rows].clone().requires_grad_()
        answers = network(mine)
        torch.autograd.backward((answers - aims[rows]).square().mean())
        divided.average_gradients(network.parameters())
        whole_batch.scale_own_gradients([mine])
        assert mine.grad is not None
        found = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
        found |= {f"buffer {name}": value.clone() for name, value in network.named_buffers()}
        return {**found, "answers": answers.detach(), "to images": mine.grad}

    def act(rank: int) -> dict[str, Tensor]:
        with sharing():
            return passed(slice(3 * rank, 3 * rank + 3))

    alone = passed(slice(None))
    for rank, mine in enumerate(on_processes(tmp_path, act)):
        assert mine.keys() == alone.keys()
        for name, value in alone.items():
            wanted = value[3 * rank :][:3] if name in ("answers", "to images") else value
            torch.testing.assert_close(mine[name], wanted, rtol=1e-10, atol=1e-12, msg=name)


def test_one_process_is_the_same_in_either_mode_to_the_bit(tmp_path: Path, photos: Callable[..., Path]) -> None:
    folder = photos()
    plain = Rig("cgdd", "classification", folder)
    plain.run(2)
    with sharing():
        other = Rig("cgdd", "classification", folder)
        assert not divided.is_on()
        other.run(2)
    assert all(torch.equal(value, other.networks()[name]) for name, value in plain.networks().items())


# --- together ---


def learnt(method: str, kind: str, photos: Path, rank: int) -> dict[str, Tensor]:
    with sharing():
        rig = Rig(method, kind, photos)
        images = rig.run(3)
        own_state.require_equal({"student": rig.student, **rig.source.artefacts()})
        return {**rig.networks(), "images": images}


DEFAULT = [("noise", "segmentation"), ("degan", "classification"), ("cmi", "classification"), ("diode", "detection")]


# A run has another source in the place of `auto` before batches are shared out.
@pytest.mark.parametrize(("method", "kind"), some([pair for pair in PAIRS if pair[0] != "auto"], *DEFAULT))
def test_networks_stay_equal_to_the_bit_and_images_do_not(
    method: str, kind: str, tmp_path: Path, photos: Callable[..., Path]
) -> None:
    folder = photos()
    copies = [shutil.copytree(folder, tmp_path / f"photos-{rank}") for rank in range(P)]
    first, second = on_processes(tmp_path, lambda rank: learnt(method, kind, copies[rank], rank))
    assert len(first["images"]) == len(second["images"]) == B // P
    assert not torch.equal(first.pop("images"), second.pop("images"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_detectors_loss_that_leaves_out_a_head_on_one_process_holds_up_nobody(tmp_path: Path) -> None:
    """BatchNorm exchanges on the way back: without the anchor the processes would wait for one another for ever."""

    def act(rank: int) -> dict[str, Tensor]:
        task = make_task("detection")
        with sharing():
            student = replicas.share(make_network(task, 2))
            answers = student(torch.rand(2, 3, *task.image_size))
            loss = answers.heads[rank % len(answers.heads)].square().mean()
            torch.autograd.backward(divided.anchored(loss, answers))
            divided.average_gradients(student.parameters())
        return {name: value.grad for name, value in student.named_parameters() if value.grad is not None}

    first, second = on_processes(tmp_path, act)
    assert all(torch.equal(first[name], second[name]) for name in {**first, **second})


def test_what_one_process_finds_wrong_all_find_at_the_same_look(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        said = []
        with sharing():
            watch = Watch(CPU)
            for step, value in enumerate((1.0, float("nan") if rank else 2.0, 3.0)):
                watch.begin(step)
                watch.see("the images", [torch.tensor([value])])
                try:
                    watch.look()
                except NotFinite as fault:
                    said.append(str(fault))
            try:
                watch.check_state({"a": float("inf") if rank else 0.0})
            except NotFinite as fault:
                said.append(str(fault))
        wanted = ["not finite at step 1: the images", "not finite at step 2: the state's a"]
        return {"said": torch.tensor(said == wanted)}

    assert all(mine["said"] for mine in on_processes(tmp_path, act))


def test_a_guard_decides_alike_on_all_by_the_mean_of_their_signals(tmp_path: Path) -> None:
    task = make_task("classification")

    def act(rank: int) -> dict[str, Tensor]:
        part = torch.nn.Linear(1, 1)
        guard = Guard(parts={"part": part}, what="source.lr", say=lambda line: None, every=1, patience=2)
        torch.manual_seed(rank)
        good, answers = torch.rand(4, 3, 4, 4), torch.eye(3)[[0, 1, 2, 0]] * 9
        cautions = []
        with sharing():
            for grey in (False, rank == 1, rank == 1, True, True):  # on one process for two looks, then on both
                images = torch.full_like(good, 0.5) if grey else good
                guard.after(0, task, images, answers)
                cautions.append(guard.caution)
        return {"cautions": torch.tensor(cautions)}

    first, second = on_processes(tmp_path, act)
    assert first["cautions"].tolist() == second["cautions"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.5]


# --- resuming ---


def small_recipe(folder: Path) -> Recipe:
    recipe = recipe_for(folder, {"method": "cgdd"}, batch_size=4, steps=6, data_parallel="divided", track=[])
    recipe.source.resize_updates(UpdateSize(images=4))
    student = replace(recipe.student, init="teacher")  # refitted on images, which differ
    return replace(recipe, student=student, data=labelled(folder / "labelled"))


def pieces(recipe: Recipe, out: Path, stops: list[int]) -> dict[str, Tensor]:
    """The steps after which a run of 6 ended, piece by piece; -1 where it was stopped before."""
    ends = []
    for stop in stops:
        try:
            ends.append(run_recipe(copy.deepcopy(recipe), out, stop=stop_after(stop)).chosen.step)
        except Interrupted:
            ends.append(-1)
    return {"ends": torch.tensor(ends)}


def on_two(tmp_path: Path, act: Callable[[int], dict[str, Tensor]]) -> list[list[int]]:
    (tmp_path / "meet").unlink(missing_ok=True)
    return [one["ends"].tolist() for one in on_processes(tmp_path, act)]


def test_a_run_stopped_and_gone_on_with_ends_with_the_same_bits(tmp_path: Path) -> None:
    recipe, whole, broken = small_recipe(tmp_path), tmp_path / "whole", tmp_path / "broken"
    assert on_two(tmp_path, lambda rank: pieces(recipe, whole, [99])) == [[6], [6]]
    assert on_two(tmp_path, lambda rank: pieces(recipe, broken, [9, 99])) == [[-1, 6], [-1, 6]]
    students = [load_file(run / "student.safetensors") for run in (whole, broken)]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    scores = [json.loads((run / "result.json").read_text())["scores"] for run in (whole, broken)]
    assert scores[0] == scores[1] and scores[0]["student"]["values"]["pixel_accuracy"] > 0
    state = torch.load(broken / "state" / "state.pt", weights_only=True)
    (other,) = state[own_state.OTHERS]
    paths = {"/".join(map(str, path)) for path, _ in other["leaves"]}
    assert "random/torch" in paths and any("bank" in path for path in paths)
    assert not any("generator" in path or "optimizer" in path for path in paths)  # the same on all: saved once


@pytest.mark.thorough
def test_a_run_of_two_processes_goes_on_with_one_and_a_run_of_one_with_two(tmp_path: Path) -> None:
    recipe, fewer, more = small_recipe(tmp_path), tmp_path / "fewer", tmp_path / "more"
    assert on_two(tmp_path, lambda rank: pieces(recipe, fewer, [9])) == [[-1], [-1]]
    assert pieces(recipe, fewer, [99])["ends"].tolist() == [6]
    assert pieces(recipe, more, [9])["ends"].tolist() == [-1]
    assert on_two(tmp_path, lambda rank: pieces(recipe, more, [99])) == [[6], [6]]


def test_a_bank_saved_at_another_size_keeps_its_latest_images(tmp_path: Path) -> None:
    bank = Bank(capacity=4, reserve=1)
    for value in range(7):  # the fourth place on are overwritten
        bank.add(torch.full((1, 3, 2, 2), value / 255))
    for capacity, kept in ((3, {4, 5, 6}), (6, {3, 4, 5, 6})):
        other = Bank(capacity=capacity, reserve=1)
        other.load_state_dict(bank.state_dict(), CPU)
        assert set(other._train.images[: len(other), 0, 0, 0].tolist()) == kept
        other.add(torch.full((1, 3, 2, 2), 7 / 255))
        newest = set(sorted(kept | {7})[-capacity:])
        assert set(other._train.images[: len(other), 0, 0, 0].tolist()) == newest


# --- refused ---


def test_what_cannot_be_shared_out_is_refused_in_one_line(tmp_path: Path, photos: Callable[..., Path]) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        said = []
        with sharing():
            for size, updates in ((5, 4), (1, 4), (4, 7)):
                source = make_source("cgdd", tmp_path, make_task("classification"))
                source.resize_updates(UpdateSize(images=updates))
                with pytest.raises(DatafreeError) as caught:
                    part_of(Training(batch_size=size), source)
                said.append(str(caught.value))
        assert said[0].startswith(
            "training.batch_size is 5, which 2 processes cannot share out evenly: set it to 4 or 6"
        )
        assert "training.batch_size is 1," in said[1] and "set it to 2," in said[1]
        assert "batch_size of cgdd is 7" in said[2] and "training.data_parallel=exact" in said[2]
        return {}

    on_processes(tmp_path, act)


def test_processes_that_were_started_differently_are_refused(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        require_alike({"training": {"steps": 3}})
        with pytest.raises(
            DatafreeError, match=r"process 1 of 2 has another training.steps than process 0 \('4', '3'\)"
        ):
            require_alike({"training": {"steps": 3 + rank}})
        torch.set_num_threads(1 + rank)
        with pytest.raises(DatafreeError, match=r"another number of threads than process 0 \('2', '1'\)"):
            require_alike({"training": {"steps": 3}})
        with pytest.raises(DatafreeError, match="another fingerprint of its source than process 0"):
            own_state.require_same_start(lambda: {"fingerprint": str(rank), "files": {"stamps": str(rank)}})
        own_state.require_same_start(lambda: {"files": {"stamps": str(rank)}})
        return {}

    on_processes(tmp_path, act)


@pytest.mark.parametrize("parts", [True, False])
def test_memory_that_runs_out_on_one_process_ends_the_run_since_the_others_wait(parts: bool, tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        network, source = torch.nn.Linear(1, 1), make_source("noise", tmp_path, make_task("classification"))
        wanted = f"out of memory in the student's step at step 7, on process {rank} of 2; the checkpoint of step 4"
        with divided.sharing(parts), pytest.raises(TrainingError, match=wanted):
            Recovery().with_memory(OutOfMemory(STUDENT_STEP), Training(), 4, source, network, 7, lambda: 1)
        return {}

    on_processes(tmp_path, act)


def test_weights_that_come_apart_are_noticed_by_all(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        network = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(network.weight, rank)
        torch.nn.init.constant_(network.bias, 0)
        with sharing(), pytest.raises(TrainingError, match="weights of the generator are no longer the same"):
            own_state.require_equal({"generator": network})
        return {}

    on_processes(tmp_path, act)


def _joined(rank: int, port: int, folder: Path, hangs: bool) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    replicas.PATIENCE, replicas.LAST_WORDS = timedelta(seconds=2), 0.0
    try:
        with replicas.joined("cpu"):
            replicas.all_agree(None)
            if rank and hangs:
                time.sleep(5)
            replicas.all_agree(None)
            if rank:
                os._exit(1)  # killed
            time.sleep(0.5)
            replicas.all_agree(None)
    except DatafreeError as error:
        (folder / f"{rank}").write_text(str(error))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("hangs", [True, False])
def test_who_waits_for_a_process_that_hangs_or_died_says_so_in_one_line(hangs: bool, tmp_path: Path) -> None:
    running = mp.start_processes(_joined, (_free_port(), tmp_path, hangs), nprocs=2, start_method="fork", join=False)
    for process in running.processes:
        process.join(30)
    said = (tmp_path / "0").read_text()
    assert said.startswith("process 0 of 2 has lost the others, or waited for one longer than 0:00:02 (")
    assert "\n" not in said and "run the same command again" in said


def _meets(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with replicas.joined("cpu"):
            pass
    except DatafreeError as error:
        (folder / "said").write_text(str(error))


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        mp.start_processes(_meets, (taken.getsockname()[1], tmp_path), nprocs=1, start_method="fork")
    said = (tmp_path / "said").read_text()
    assert said.startswith("process 0 of 2 cannot reach the others (") and "address already in use" in said.lower()
    assert "\n" not in said
