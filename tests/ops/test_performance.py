"""The speed-ups of `training.speed` and `training.precision`: on or off, the student is the same but for rounding.

In float64 rounding has no time to grow, so that the switches alone are seen; what they come to in float32 has the
tolerance that docs/scale.md states.
"""

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.engine.build_networks import prepare
from datafree.errors import Interrupted, RunError
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized, bare
from datafree.ops import modes, moments
from datafree.ops.performance import Speed, as_it_came
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources import SOURCES
from datafree.sources.base import ImageSource
from datafree.sources.parts.pixel_optimizer import BestSoFar
from datafree.tasks.base import Task
from recipes import VALID, faults, load
from small_runs import recipe_for, stop_after
from test_contract import make_network, make_source, make_task
from thorough import some

SWITCHES = [field.name for field in fields(Speed)]
# Beside cgdd, which uses all that is switched, each way of making images.
OTHERS = [("cmi", "classification"), ("fast", "detection"), ("inversion", "segmentation"), ("diode", "detection")]
OFF = Speed(**dict.fromkeys(SWITCHES, False))


class Rig:
    """A source attached to a frozen teacher, with a student that learns, as a run makes them of a `Training`."""

    def __init__(self, method: str, kind: str, photos: Path, **training: Any) -> None:
        self.training = Training(steps=20, batch_size=4, **{"lr": 1e-2, "device": "cpu", **training})
        self.task: Task = make_task(kind)
        self.dtype = modes.choose_precision(self.training.precision, torch.device("cpu"))
        self.teacher = self._network(1).eval().requires_grad_(False)
        self.student = self._network(2)
        self.source: ImageSource = make_source(method, photos, self.task)
        modes.seed_everything(0)
        self.source.attach(
            self.training.source_context(
                self.task, self.teacher, torch.device("cpu"), self.dtype, say=lambda line: None
            )
        )
        self.optimizer = self.training.make_optimizer(self.student)

    def _network(self, seed: int) -> Normalized:
        network = make_network(self.task, seed)
        assert isinstance(network, Normalized)
        network.dtype = self.dtype
        return self.training.speed.laid_out(network)

    def learn(self, steps: int) -> Tensor:
        """The student's numbers after some steps, one after the other, as a run takes them."""
        for step in range(-self.source.warmup, steps):
            if self.source.due(step):
                self.source.update(self.student, step)
            if step < 0:
                continue
            images = self.source.sample(4).images
            with torch.no_grad():
                answers = self.teacher(images)
            self.optimizer.zero_grad()
            torch.autograd.backward(self.task.distill_loss(self.student(images), answers))
            self.optimizer.step()
        return torch.cat([value.double().flatten() for value in bare(self.student).state_dict().values()])


def apart(first: Tensor, second: Tensor) -> float:
    """How far two students are from each other, relative to their length."""
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("on", [True, False])
def test_optimizers_that_are_not_fused_are_torchs_own_choice(on: bool) -> None:
    """Which takes all weights of a GPU in few kernels; told False, it would take one after another."""
    speed, weights = Speed(fused_optimizers=on), [nn.Parameter(torch.ones(3))]
    for optimizer in (speed.adam(weights, 0.1), speed.sgd(weights, 0.1, 0.9, 0.0)):
        assert (optimizer.defaults["fused"], optimizer.defaults["foreach"]) == (True if on else None, None)


# The same student.


@pytest.mark.parametrize("switch", some(SWITCHES, "fused_statistics"))
def test_a_switch_changes_nothing_but_rounding(switch: str, photos: Callable[..., Path], double: None) -> None:
    folder = photos()
    fast = Rig("cgdd", "classification", folder).learn(3)
    slow = Rig("cgdd", "classification", folder, speed=Speed(**{switch: False})).learn(3)
    assert apart(fast, slow) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), OTHERS)
def test_all_switches_together_change_nothing_but_rounding(
    method: str, kind: str, photos: Callable[..., Path], double: None
) -> None:
    folder = photos()
    fast, slow = (Rig(method, kind, folder, speed=speed).learn(3) for speed in (Speed(), OFF))
    assert apart(fast, slow) < 1e-12


@pytest.mark.parametrize(
    "method", ["cgdd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("inversion", "cmi", "fast", "degan"))]
)
def test_in_float32_they_stay_within_the_stated_tolerance(method: str, photos: Callable[..., Path]) -> None:
    folder, how = photos(), {"optimizer": "sgd", "precision": "fp32"}
    fast, slow = (Rig(method, "classification", folder, speed=speed, **how).learn(4) for speed in (Speed(), OFF))
    assert apart(fast, slow) < 1e-3


@pytest.mark.parametrize(
    "method", ["inversion", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cgdd", "cmi", "fast", "degan"))]
)
def test_bf16_stays_within_the_stated_tolerance(method: str, photos: Callable[..., Path]) -> None:
    folder = photos()
    fast, exact = (
        Rig(method, "classification", folder, optimizer="sgd", precision=name).learn(4) for name in ("bf16", "fp32")
    )
    assert 1e-7 < apart(fast, exact) < 1e-2


# A switch that is off reaches everything.


@pytest.mark.parametrize(
    "method",
    [
        "cgdd",
        "inversion",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in SOURCES
            if name not in ("cgdd", "inversion", "noise", "procedural", "folder", "dataset")
        ),
    ],
)
def test_what_is_off_is_used_nowhere(method: str, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    layouts: list[bool] = []
    fused: list[bool] = []
    statistics: list[Tensor] = []

    def convolved(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] > 1 and module.weight.shape[2] > 1:
            layouts.append(module.weight.is_contiguous())

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def act(optimizer: torch.optim.Optimizer, *rest: Any) -> Any:
            fused.extend(bool(group["fused"]) for group in optimizer.param_groups)
            return step(optimizer, *rest)

        return act

    for kind in (torch.optim.Adam, torch.optim.SGD):
        monkeypatch.setattr(kind, "step", counted(kind.step))
    for function in (moments._Moments, moments._Normalised):
        apply = function.apply
        monkeypatch.setattr(function, "apply", lambda x, *rest, apply=apply: statistics.append(x) or apply(x, *rest))
    kind_of_task = "detection" if method == "diode" else "classification"
    handle = torch.nn.modules.module.register_module_forward_hook(convolved)
    try:
        for off in (False, True):
            speed = Speed(**dict.fromkeys(SWITCHES, not off))
            rig = Rig(method, kind_of_task, photos(name=f"photos-{off}"), speed=speed)
            for seen in (layouts, fused, statistics):
                seen.clear()
            rig.learn(1)
            assert set(layouts) == {off}
            assert set(fused) == {not off}
            needs = SOURCES[method].needs_batchnorm or method in ("cgdd", "diode")
            assert bool(statistics) == (needs and not off)
    finally:
        handle.remove()


def test_networks_of_a_run_are_laid_out_as_asked() -> None:
    task, spec = make_task("classification"), NetworkSpec(network="datafree/resnet", args={"depth": 8, "width": 4})
    for on in (True, False):
        network = prepare(
            spec, task, "teacher", torch.device("cpu"), torch.float32, speed=Speed(channels_last=on)
        ).network
        weight = network.get_submodule("layer1.0.conv1").get_parameter("weight")
        assert weight.is_contiguous(memory_format=torch.channels_last if on else torch.contiguous_format)


# In a recipe.


def narrow_shortcut() -> nn.Sequential:
    """A strided 1 x 1 convolution of few channels between others, as a narrow ResNet's shortcut is."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2, bias=False), nn.Conv2d(4, 8, 3))


def test_a_layer_whose_kernel_corrupts_memory_computes_in_the_plain_layout() -> None:
    torch.manual_seed(0)
    plain = narrow_shortcut()
    laid = Speed().laid_out(copy.deepcopy(plain))
    seen: list[Tensor] = []
    laid[1].register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    images = torch.rand(2, 3, 8, 8)
    expected, answers = plain(images), laid(images.to(memory_format=torch.channels_last))
    assert seen[0].is_contiguous() and laid[1].weight.is_contiguous()
    assert laid[2].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(answers, expected)
    answers.square().mean().backward()
    expected.square().mean().backward()
    for ours, theirs in zip(laid.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("width", "stride", "kernel"), [(1, 2, 3), (1, 2, 7), (2, 3, 5), (2, 4, 5), (7, 2, 3)])
def test_the_gradient_of_a_strided_layer_is_of_its_images_alone(width: int, stride: int, kernel: int) -> None:
    """They lie in bfloat16 between numbers that a kernel which reads beyond them shows in the gradient."""
    torch.manual_seed(0)
    exact = nn.Conv2d(16, 16, kernel, stride=stride, padding=kernel // 2).double()
    for images in (1, 2, 3):
        memory = torch.full((images + 2, 3, width, 16), 1e20, dtype=torch.bfloat16)
        memory[1:-1] = torch.randn(images, 3, width, 16)
        shown = memory.permute(0, 3, 1, 2)[1:-1]
        for switch in (True, False):
            layer = Speed(channels_last=switch).laid_out(copy.deepcopy(exact).float())
            with modes.autocast(torch.device("cpu"), torch.bfloat16):
                answer = layer(shown)
            expected = exact(shown.double())
            assert answer.shape == expected.shape
            ours, theirs = answer.float().square().mean(), expected.square().mean()
            (gradient,), (truth,) = torch.autograd.grad(ours, layer.weight), torch.autograd.grad(theirs, exact.weight)
            torch.testing.assert_close(gradient.double(), truth, rtol=0.05, atol=0.02)


def test_a_network_that_is_handed_back_has_no_hook_left() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 4, 3, stride=2))
    mine = network[1].register_forward_pre_hook(lambda layer, inputs: None)
    for _ in range(2):
        Speed().laid_out(network)
    assert [len(layer._forward_pre_hooks) for layer in network] == [2, 2]  # not once more for each time
    as_it_came(network)
    assert [len(layer._forward_pre_hooks) for layer in network] == [0, 1] and mine.id in network[1]._forward_pre_hooks
    assert all(layer.weight.is_contiguous() for layer in network)


@pytest.mark.thorough
def test_steps_of_a_narrow_network_leave_the_memory_of_others_alone() -> None:
    """In a process of its own, whose heap glibc finds corrupted where that kernel runs with channels last."""
    steps = (
        "import torch; from torch import nn; from datafree.ops.performance import Speed\n"
        "layer = Speed().laid_out(nn.Sequential(nn.Conv2d(4, 4, 1, stride=2, bias=False)))\n"
        "kept = []\n"
        "for _ in range(60):\n"
        "    images = torch.rand(8, 4, 8, 8).to(memory_format=torch.channels_last)\n"
        "    layer(images).square().mean().backward()\n"
        "    kept.append([torch.rand(size) for size in range(1, 200, 7)])\n"
    )
    done = subprocess.run([sys.executable, "-c", steps], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_each_is_an_option_of_a_recipe(tmp_path: Path) -> None:
    assert load(tmp_path).training.speed == Speed()
    words = [f"training.speed.{switch}=false" for switch in SWITCHES]
    recipe = load(tmp_path, VALID, *words)
    assert recipe.training.speed == Speed(**dict.fromkeys(SWITCHES, False))
    (fault,) = faults(tmp_path, VALID, "training.speed.fused=true")
    assert fault.startswith("training.speed.fused: no such option")


def test_a_run_goes_on_with_the_switches_it_was_begun_with(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, device="cpu")
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", stop=stop_after(2))
    other = replace(recipe, training=replace(recipe.training, speed=Speed(channels_last=False)))
    with pytest.raises(RunError, match=r"training\.speed\.channels_last: False here, True in the run"):
        run_recipe(other, tmp_path / "run")


# No wait for a device.


@pytest.mark.parametrize(
    ("method", "kind"), [("cmi", "classification"), ("fast", "detection"), ("inversion", "classification")]
)
def test_no_iteration_asks_the_device_for_its_loss(
    method: str, kind: str, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    kept = Tensor.__float__
    monkeypatch.setattr(Tensor, "__float__", lambda self: asked.append(self) or kept(self))
    counts = []
    for iterations in (1, 4):
        rig = Rig(method, kind, photos(name=f"photos-{iterations}"))
        rig.source.iterations = iterations  # type: ignore[attr-defined]
        asked.clear()
        rig.source.update(rig.student, 0)
        counts.append(len(asked))
    assert counts[0] == counts[1]


def test_the_lowest_of_several_tries_is_kept_as_it_was() -> None:
    best, image = BestSoFar(), torch.zeros(2)
    for loss, value in ((3.0, 1.0), (1.0, 2.0), (float("nan"), 3.0), (1.0, 4.0), (2.0, 5.0)):
        image.fill_(value)  # in place, as pixels are changed
        best.offer(torch.tensor(loss, requires_grad=True), image)
    assert best.values[0].tolist() == [2, 2]
    assert not best.values[0].requires_grad
