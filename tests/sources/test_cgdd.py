"""CGDD: the sum it minimises term by term, its bank, its guard, teachers without BatchNorm."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import Interrupted, TrainingError
from datafree.health import guard
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.recipe.recipe import Recipe
from datafree.run import run_recipe
from datafree.sources import Cgdd
from datafree.sources.base import SourceContext
from datafree.tasks.classification import Classification
from recipes import load

C, SIZE, B = 4, (32, 32), 16


def network(seed: int, norm: bool = True) -> nn.Module:
    """A classifier whose BatchNorm, if it has any, has seen something."""
    torch.manual_seed(seed)
    if norm:
        made: nn.Module = resnet(C, depth=8, width=4)
    else:
        made = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(8 * 8 * 8, C)),
        )
    wrapped = Normalized(made, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for _ in range(5):
        wrapped(torch.rand(16, 3, *SIZE))
    return wrapped


class Rig:
    """The source attached to a frozen teacher, a student beside it, and what the user was told."""

    def __init__(self, teacher: nn.Module | None = None, **options: Any) -> None:
        self.task = Classification(num_classes=C, image_size=SIZE)
        self.teacher = (network(1) if teacher is None else teacher).eval().requires_grad_(False)
        self.student = network(2)
        self.said: list[str] = []
        self.source = Cgdd(**{"width": 4, "latent": 8, "batch_size": B, "warmup": 2, "bn_momentum": 0.0, **options})
        modes.seed_everything(0)
        self.source.attach(
            SourceContext(task=self.task, teacher=self.teacher, steps=100, batch_size=8, say=self.said.append)
        )

    @property
    def generator(self) -> nn.Module:
        return self.source.artefacts()["generator"]


def distances_of_batchnorm(teacher: nn.Module, images: Tensor) -> Tensor:
    """Sum over layers of ||mean - running mean||_2 + ||variance - running variance||_2, of the layers' inputs."""
    found: list[Tensor] = []

    def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        var, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        found.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

    handles = [m.register_forward_hook(look) for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    teacher(images)
    for handle in handles:
        handle.remove()
    return torch.stack(found).sum()


def by_hand(rig: Rig, generator: nn.Module, student: nn.Module) -> dict[str, Tensor]:
    """The terms of a generator step, each as the module states it, on the batch that the next update will draw."""
    targets = rig.task.sample_targets(B, torch.device("cpu"))
    z = torch.randn(B, 8)
    images = generator.train()(z, torch.eye(C)[targets][:, :, None, None])
    logits = rig.teacher(images)
    p = logits.softmax(1)
    q = p.mean(0)
    deepest: list[Tensor] = []
    inner: Any = rig.teacher.network
    handle = inner.layer3.register_forward_hook(lambda layer, inputs, output: deepest.append(output))
    rig.teacher(images)
    handle.remove()
    s = student.train()(images).softmax(1)
    m = (p + s) / 2
    js = ((p * (p / m).log()).sum(1) + (s * (s / m).log()).sum(1)) / 2
    return {
        "target": -p[range(B), targets].log().mean(),
        "balance": (q * q.log()).sum(),
        "bn": distances_of_batchnorm(rig.teacher, images),
        "activation": -deepest[0].abs().mean(),
        "adversarial": -(js * (p.argmax(1) == s.argmax(1))).mean(),
    }


WEIGHTS = {
    "target_weight": 0.7,
    "balance_weight": 3.0,
    "bn_weight": 0.2,
    "activation_weight": 0.1,
    "adversarial_weight": 2.0,
}


def assert_one_update_is(rig: Rig, step: int, expected_terms: list[str], scale: float = 1.0) -> None:
    """The logged terms, and the generator's gradient, are those of the sum written out."""
    generator, student = copy.deepcopy(rig.generator), copy.deepcopy(rig.student)
    random = torch.get_rng_state()
    terms = by_hand(rig, generator, student)
    torch.set_rng_state(random)
    logs = rig.source.update(rig.student, step)
    figures = {name: value for name, value in logs.items() if name in terms}
    assert list(figures) == expected_terms
    for name, value in figures.items():
        torch.testing.assert_close(value, terms[name].detach(), rtol=1e-4, atol=1e-6)
    weights = {name: WEIGHTS[f"{name}_weight"] * (scale if name == "adversarial" else 1) for name in expected_terms}
    loss = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
    parameters = dict(generator.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for (name, parameter), grad in zip(rig.generator.named_parameters(), grads, strict=True):
        assert parameter.grad is not None
        assert grad is not None
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_generators_loss_is_the_sum_of_its_stated_terms() -> None:
    rig = Rig(**WEIGHTS)
    assert_one_update_is(rig, 0, ["target", "balance", "bn", "activation", "adversarial"])


def test_the_adversarial_term_is_off_in_the_warm_up_and_the_student_is_not_asked() -> None:
    rig = Rig(**WEIGHTS)
    assert_one_update_is(rig, -1, ["target", "balance", "bn", "activation"])

    class Unasked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("asked")

    rig.source.update(Unasked(), -1)
    with pytest.raises(AssertionError, match="asked"):
        rig.source.update(Unasked(), 0)


@pytest.mark.parametrize(("weight", "term"), [("bn_weight", "bn"), ("activation_weight", "activation")])
def test_a_term_of_weight_0_is_not_computed(weight: str, term: str) -> None:
    rig = Rig(**{**WEIGHTS, weight: 0.0})
    assert term not in rig.source.update(rig.student, 0)


def test_a_teacher_without_batchnorm_serves_and_the_user_is_told() -> None:
    rig = Rig(teacher=network(1, norm=False))
    assert len(rig.said) == 1
    assert "no BatchNorm statistics; source.bn_weight is off" in rig.said[0]
    logs = rig.source.update(rig.student, 0)
    assert "bn" not in logs
    assert {"target", "balance", "adversarial"} <= set(logs)
    assert Rig(teacher=network(1, norm=False), bn_weight=0.0).said == []
    assert Rig().said == []


def test_the_rate_falls_to_0_along_a_cosine_and_is_whole_in_the_warm_up() -> None:
    """Adam's first step moves each weight by its rate."""
    moved = {}
    for step in (-2, 0, 50, 75, 100):
        rig = Rig(lr=1e-2)
        before = [p.detach().clone() for p in rig.generator.parameters()]
        rig.source.update(rig.student, step)
        after = rig.generator.parameters()
        moved[step] = max((a - b).abs().max().item() for a, b in zip(after, before, strict=True))
    expected = {step: 1e-2 * (1 + math.cos(math.pi * max(step, 0) / 100)) / 2 for step in moved}
    assert moved == pytest.approx(expected, rel=1e-2, abs=1e-6)


@pytest.mark.thorough
def test_the_teacher_comes_to_see_the_preset_labels_in_what_the_generator_makes() -> None:
    rig = Rig(lr=3e-3, target_weight=1.0, bn_weight=0.0, balance_weight=0.0)
    first = rig.source.update(rig.student, -1)["target"]
    for _ in range(70):
        last = rig.source.update(rig.student, -1)["target"]
    assert last < 0.5 * first
    batch = rig.source.sample(64)
    assert batch.targets is not None
    assert (rig.teacher(batch.images).argmax(1) == batch.targets).float().mean() > 0.6


def test_statistics_of_past_batches_steady_those_of_this_one() -> None:
    seen: dict[float, list[float]] = {}
    for momentum in (0.0, 0.9):
        rig = Rig(bn_momentum=momentum, lr=1e-9)  # the batches are the same in both
        seen[momentum] = [rig.source.update(rig.student, -1)["bn"].item() for _ in range(8)]
    assert seen[0.0][0] == seen[0.9][0]
    spread = {momentum: max(figures[1:]) - min(figures[1:]) for momentum, figures in seen.items()}
    assert spread[0.9] < 0.5 * spread[0.0]


# The bank.


def in_bytes(images: Tensor) -> Tensor:
    """(B,) whether an image is exactly one of 8 bits a channel: those from the bank are, fresh ones are not."""
    scaled = images * 255
    return ((scaled - scaled.round()).abs() < 1e-3).flatten(1).all(1)


@pytest.mark.parametrize(("replay", "n", "old"), [(0.5, 20, 10), (0.25, 20, 5), (0.0, 8, 0), (1.0, 8, 8)])
def test_a_batch_holds_its_share_from_the_bank(replay: float, n: int, old: int) -> None:
    rig = Rig(replay=replay)
    batch = rig.source.sample(n)
    assert not in_bytes(batch.images).any()  # the bank is still empty
    rig.source.update(rig.student, 0)
    batch = rig.source.sample(n)
    assert batch.images.shape == (n, 3, *SIZE)
    assert batch.targets is not None
    assert batch.targets.shape == (n,)
    assert batch.targets.dtype == torch.int64
    assert int(in_bytes(batch.images).sum()) == old
    assert batch.images.dtype == torch.float32


def test_images_from_the_bank_come_with_the_labels_they_were_made_for() -> None:
    rig = Rig(replay=1.0)
    made: dict[bytes, int] = {}
    for step in range(3):
        generator, random = copy.deepcopy(rig.generator), torch.get_rng_state()
        labels = rig.task.sample_targets(B, torch.device("cpu"))
        images = generator.train()(torch.randn(B, 8), rig.task.class_maps(labels))
        torch.set_rng_state(random)
        rig.source.update(rig.student, step)
        keys = (images * 255).round().byte()
        made |= {key.numpy().tobytes(): int(label) for key, label in zip(keys, labels, strict=True)}
    batch = rig.source.sample(50)
    assert batch.targets is not None
    found = [made[(image * 255).round().byte().contiguous().numpy().tobytes()] for image in batch.images]
    assert found == batch.targets.tolist()


# The guard.


def collapse(rig: Rig, updates: int, first: int = 0) -> None:
    """Updates of a generator that is forced to make the same image of everything."""
    last: Any = rig.generator.to_image  # type: ignore[union-attr]
    for step in range(first, first + updates):
        with torch.no_grad():
            last.weight.zero_()
        rig.source.update(rig.student, step)


@pytest.mark.thorough
def test_a_generator_that_collapses_is_put_back_and_the_user_is_told() -> None:
    rig = Rig(**WEIGHTS)
    for step in range(10):
        logs = rig.source.update(rig.student, step)
    assert logs["pixel_diversity"] > 0.01
    good = rig.generator.state_dict()["to_image.weight"].clone()
    collapse(rig, 30)
    torch.testing.assert_close(rig.generator.state_dict()["to_image.weight"], good)
    (line,) = rig.said
    assert "put back to its last healthy state" in line
    assert "source.adversarial_weight now times 0.5" in line
    assert rig.source.notes() == [line.removeprefix("warning: ")]
    assert_one_update_is(rig, 40, ["target", "balance", "bn", "activation", "adversarial"], scale=0.5)


@pytest.mark.thorough
def test_where_no_adversarial_term_is_at_work_the_rate_is_lowered_and_named() -> None:
    rig = Rig(**WEIGHTS)
    for step in range(-40, -30):
        rig.source.update(rig.student, step)
    collapse(rig, 30, first=-30)
    (line,) = rig.said
    assert "source.lr now times 0.5" in line
    rates: list[float] = []
    step_of, optimizer = rig.source._trainer.optimizer.step, rig.source._trainer.optimizer
    optimizer.step = lambda: (rates.append(optimizer.param_groups[0]["lr"]), step_of())  # type: ignore[assignment, method-assign]
    rig.source.update(rig.student, -1)
    rig.source.update(rig.student, 0)
    assert rates == [rig.source.lr / 2, rig.source.lr]


@pytest.mark.thorough
def test_on_collapse_says_what_happens() -> None:
    rig = Rig(on_collapse="stop")
    for step in range(10):
        rig.source.update(rig.student, step)
    with pytest.raises(TrainingError, match="its images are all alike"):
        collapse(rig, 30)
    rig = Rig(on_collapse="ignore")
    for step in range(10):
        assert "pixel_diversity" not in rig.source.update(rig.student, step)
    collapse(rig, 40)
    assert rig.said == []


# In a run.


def recipe_for(folder: Path, source: dict[str, Any] | None = None, **training: Any) -> Recipe:
    weights = folder / "classifier.safetensors"
    if not weights.exists():
        save_weights(network(1).network, weights)  # type: ignore[arg-type]
    content = {
        "task": {"kind": "classification", "num_classes": C, "image_size": list(SIZE)},
        "teacher": {"network": "datafree/resnet", "args": {"depth": 8, "width": 4}, "weights": str(weights)},
        "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 3}},
        "source": {"method": "cgdd", "width": 2, "latent": 4, "batch_size": 8, "warmup": 3, **(source or {})},
        "training": {"steps": 12, "batch_size": 6, "log_every": 2, "save_every": 5, "picture_every": 6, **training},
    }
    return load(folder, content)


@pytest.fixture
def forced_collapse(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make a guard find fault with all but its first so many looks, and look at every update."""

    def force(healthy: int) -> None:
        looks: list[int] = []

        def fault(self: guard.Guard, found: dict[str, float]) -> str | None:
            looks.append(1)
            return None if len(looks) <= healthy else "the test says so"

        monkeypatch.setattr(guard.Guard, "_fault", fault)
        made = guard.Guard.__init__
        monkeypatch.setattr(guard.Guard, "__init__", lambda self, **options: made(self, **{"every": 1, **options}))

    return force


def test_a_run_that_gives_up_is_exit_code_3_and_keeps_the_last_healthy_state(
    tmp_path: Path, forced_collapse: Callable[[int], None]
) -> None:
    forced_collapse(4)
    recipe = recipe_for(tmp_path, {"update_every": 1, "on_collapse": "stop"}, steps=20)
    with pytest.raises(TrainingError, match="the test says so") as caught:
        run_recipe(recipe, tmp_path / "run")
    assert caught.value.exit_code == 3
    saved = torch.load(tmp_path / "run" / "state" / "state.pt", weights_only=True)
    assert saved["step"] == 3  # updates at -3 to 0 were healthy, those at 1, 2 and 3 were not
    healthy = saved["source"]["guard"]["healthy"]["generator"]
    assert all(torch.equal(value, healthy[name]) for name, value in saved["source"]["generator"].items())
    assert not (tmp_path / "run" / "result.json").exists()


def test_restarts_are_told_during_the_run_and_in_its_notes(
    tmp_path: Path, forced_collapse: Callable[[int], None]
) -> None:
    forced_collapse(4)
    said: list[str] = []
    recipe = recipe_for(tmp_path, {"update_every": 1, "restarts": 2}, steps=8)
    outcome = run_recipe(recipe, tmp_path / "run", say=said.append)
    warnings = [line for line in said if "had collapsed at step" in line]
    assert [f"restart {n} of 2" in line for n, line in enumerate(warnings, start=1)] == [True, True]
    assert sum("had collapsed at step" in note for note in outcome.notes) == 2


@pytest.mark.thorough
def test_a_broken_run_that_learns_labels_and_attention_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options = {"label_weight": 0.5, "attention_weight": 100.0, "steps": 10}
    states = []
    for name, pieces in (("unbroken", []), ("broken", [2, 4, 3])):
        for count in pieces:
            left = iter([None] * count)
            with pytest.raises(Interrupted):
                run_recipe(
                    recipe_for(tmp_path, **options),
                    tmp_path / name,
                    stop=lambda left=left: next(left, "enough"),  # type: ignore[misc]
                )
        run_recipe(recipe_for(tmp_path, **options), tmp_path / name)
        states.append(torch.load(tmp_path / name / "state" / "state.pt", weights_only=True))
    for part in ("student", "source"):
        first, second = (dict(flat(state[part])) for state in states)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


def flat(value: Any, key: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor in nested dicts, with its place."""
    if isinstance(value, dict):
        return [pair for name, item in value.items() for pair in flat(item, f"{key}/{name}")]
    return [(key, value)] if isinstance(value, Tensor) else []
