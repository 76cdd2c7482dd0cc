"""`student.init: teacher` in a run: what a student starts as, what is said, what is refused before any work."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.engine.build_networks import with_source, with_student
from datafree.engine.loop import distill
from datafree.engine.student_init import check_start
from datafree.errors import Interrupted, NetworkError, WeightsError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized, bare
from datafree.networks.unet import unet
from datafree.recipe.recipe import Recipe, dump, make_recipe
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources.noise import Noise
from datafree.storage.run_directory import Run
from datafree.tasks.segmentation import Segmentation
from recipes import VALID, changed, fault
from small_runs import SMALL, assert_same, everything, recipe_for, stop_after

TASK = Segmentation(num_classes=3, image_size=(16, 16))
SPEC = NetworkSpec(network="datafree/unet", init="teacher")


def started(tmp_path: Path, **options: Any) -> Recipe:
    recipe = recipe_for(tmp_path, {"method": "noise"}, **options)
    return replace(recipe, student=replace(recipe.student, init="teacher"))


def network(width: int, seed: int = 0) -> Normalized:
    torch.manual_seed(seed)
    made = unet(3, width=width, depth=1)
    for _ in range(3):
        made(torch.rand(4, 3, 16, 16))
    return Normalized(made).eval()


def test_a_student_of_its_teachers_shape_starts_as_its_teacher_before_its_first_step(tmp_path: Path) -> None:
    teacher, student = network(4), network(4, seed=1)
    wanted = copy.deepcopy(bare(teacher).state_dict())
    seen: list[dict[str, torch.Tensor]] = []

    training = Training(steps=1, batch_size=4, lr=1e-3)
    run = Run(tmp_path / "run", {})
    handle = student.register_forward_pre_hook(
        lambda module, _: (
            seen.append({k: v.clone() for k, v in bare(student).state_dict().items()}) if module.training else None
        )
    )
    try:
        chosen = distill(
            task=TASK, teacher=teacher, student=student, source=Noise(), training=training, run=run, init="teacher"
        )
    finally:
        handle.remove()
        run.close()
    assert all(torch.equal(seen[0][name], value) for name, value in wanted.items())
    assert chosen.start[0].startswith("student: starts as its teacher")


def test_a_narrower_student_starts_nearer_to_its_teacher_than_at_random(tmp_path: Path) -> None:
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    distances = {}
    for init in ("random", "teacher"):
        teacher, student = network(8), network(4, seed=1)
        run = Run(tmp_path / init, {})
        training = Training(steps=1, batch_size=8, lr=1e-9)
        distill(task=TASK, teacher=teacher, student=student, source=Noise(), training=training, run=run, init=init)
        run.close()
        with torch.no_grad():
            distances[init] = float((teacher(images) - student.eval()(images)).square().mean())
    assert distances["teacher"] < 0.5 * distances["random"]


@pytest.mark.thorough
def test_a_stopped_run_that_started_from_its_teacher_resumes_to_the_same_bits_and_notes(tmp_path: Path) -> None:
    whole = run_recipe(started(tmp_path), tmp_path / "unbroken")
    for pieces in (1, 4):
        with pytest.raises(Interrupted):
            run_recipe(started(tmp_path), tmp_path / "broken", stop=stop_after(pieces))
    resumed = run_recipe(started(tmp_path), tmp_path / "broken")
    assert_same(everything(tmp_path / "unbroken"), everything(tmp_path / "broken"))
    assert any(note.startswith("student: starts") for note in whole.notes)
    assert resumed.notes == whole.notes


def test_layers_that_do_not_correspond_are_named_before_any_work(tmp_path: Path) -> None:
    recipe = started(tmp_path)
    other = NetworkSpec(network="smp/unet?encoder=mobilenet_v2", init="teacher")
    with pytest.raises(NetworkError, match=r"^student.init=teacher cannot start smp/unet: .*init") as caught:
        run_recipe(replace(recipe, student=other), tmp_path / "run")
    assert "\n" not in str(caught.value) and "random" in str(caught.value)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_check_leaves_the_student_and_random_numbers_as_they_were() -> None:
    teacher, student = network(8), network(4, seed=1)
    before = copy.deepcopy(bare(student).state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_start(SPEC, teacher, student, TASK)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in bare(student).state_dict().items())


def test_a_teacher_has_no_start_and_a_student_one_at_most(tmp_path: Path) -> None:
    assert fault(tmp_path, changed(teacher={**VALID["teacher"], "init": "teacher"})).startswith(
        "teacher.init: is a student's"
    )
    both = changed(student={"network": "datafree/unet", "init": "teacher", "weights": __file__})
    assert fault(tmp_path, both) == ("student.init: and weights both say what the student starts with: leave one out")
    assert dump(started(tmp_path))["student"]["init"] == "teacher"


@pytest.mark.parametrize(
    ("source", "student", "init", "said"),
    [
        ({"method": "noise"}, {"network": "datafree/unet", "args": SMALL}, "random", []),
        ({"method": "auto"}, {"network": "datafree/unet", "args": SMALL}, "teacher", ["source.method=auto"]),
        (
            {"method": "auto"},
            {"network": "smp/unet?encoder=mobilenet_v2"},
            "random",
            ["source.method=auto", "the student starts at random: "],
        ),
        ({"method": "auto"}, {"network": "datafree/unet", "init": "random"}, "random", ["source.method=auto"]),
    ],
)
def test_by_default_a_student_starts_from_its_teacher_with_auto_where_layers_correspond(
    tmp_path: Path, source: dict[str, Any], student: dict[str, Any], init: str, said: list[str]
) -> None:
    sections = dump(recipe_for(tmp_path, source))
    recipe = make_recipe({**sections, "source": source, "student": student}, "run")
    resolved, lines = with_source(recipe, torch.device("cpu"), torch.float32)
    assert resolved.student.init == init
    assert len(lines) == len(said) and all(map(str.startswith, lines, said))


def test_auto_keeps_a_student_that_comes_with_weights_of_its_own_as_it_is(tmp_path: Path) -> None:
    sections = dump(recipe_for(tmp_path, {"method": "noise"}))
    weights = sections["teacher"]["weights"]
    student = {**sections["teacher"], "weights": weights, "init": "auto"}
    recipe = make_recipe({**sections, "source": {"method": "auto"}, "student": student}, "run")
    resolved, _ = with_source(recipe, torch.device("cpu"), torch.float32)
    assert resolved.student == replace(recipe.student, init="random")


def test_a_student_chosen_by_size_starts_as_its_section_says(tmp_path: Path) -> None:
    sections = dump(recipe_for(tmp_path, {"method": "noise"}))
    for init in ("random", "teacher"):
        recipe = make_recipe({**sections, "student": {"network": "auto", "init": init}}, "run")
        assert with_student(recipe)[0].student.init == init


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("narrower", "(first: 'head.weight', (3, 4, 1, 1) in the file, (3, 6, 1, 1) in the network)"),
        ("another", "(first: 'stem.0.0.weight')"),
    ],
)
def test_an_initial_file_of_another_network_is_refused_before_any_work(kind: str, named: str, tmp_path: Path) -> None:
    recipe = started(tmp_path)
    file = tmp_path / "other.safetensors"
    resnet = NetworkSpec(network="datafree/resnet", args={"depth": 8})
    save_weights(bare(network(4)) if kind == "narrower" else bare(build_network(resnet, num_classes=3)), file)
    student = NetworkSpec(network="datafree/unet", args={"width": 6}, weights=file)
    with pytest.raises(WeightsError) as caught:
        run_recipe(replace(recipe, student=student), tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"weights {file} do not fit the network") and named in message
    assert message.endswith("(`datafree inspect FILE` tells which a file fits)") and "\n" not in message
    assert not (tmp_path / "run" / "recipe.yaml").exists()
