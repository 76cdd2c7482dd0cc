"""The recipe that is chosen for a teacher: what is told, what is asked for, and that it is a recipe."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from datafree.config import yaml
from datafree.errors import DatafreeError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.instances import live_name
from datafree.networks.load import NetworkSpec
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.preflight.cost.short_time import FEW
from datafree.preflight.draft import LEARNING, Draft, draft
from datafree.preflight.draft_lines import hardly_smaller
from datafree.preflight.draft_text import flow, recipe_text
from datafree.preflight.first_student import FirstStudent
from datafree.preflight.wishes import Wishes, recipe_overrides, source_section
from datafree.recipe.recipe import Recipe, read_recipe

SEEN: dict[str, Any] = {"size": "32", "mean": "0.5", "std": "0.25,0.2,0.3"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with weights of a datafree/resnet in small.safetensors."""
    torch.manual_seed(0)
    save_weights(resnet(7, depth=8, width=8), tmp_path / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_of(made: Draft) -> Recipe:
    return read_recipe(made.text, "drafted", "drafted")


def refusal(teacher: str, **said: Any) -> str:
    with pytest.raises(DatafreeError) as caught:
        draft(teacher, Wishes(**said))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_weights_file_alone_makes_a_recipe_that_loads(here: Path) -> None:
    made = draft("small.safetensors", Wishes(**SEEN))
    recipe = recipe_of(made)
    assert recipe.name == "small"
    assert (recipe.task.num_classes, recipe.task.image_size) == (7, (32, 32))
    assert (recipe.teacher.network, recipe.teacher.args) == ("datafree/resnet", {"depth": 8, "width": 8})
    assert recipe.teacher.weights == here / "small.safetensors"  # from whichever directory it is run
    assert (recipe.teacher.mean, recipe.teacher.std) == ((0.5, 0.5, 0.5), (0.25, 0.2, 0.3))
    assert (recipe.student.network, recipe.student.args) == ("datafree/resnet", {"depth": 8, "width": 4})
    assert recipe.student.init == "teacher"
    assert recipe.student.mean == recipe.teacher.mean
    assert recipe.training.time == "30m"
    assert recipe.training.shift == 32 // 8
    assert {key: getattr(recipe.training, key) for key in LEARNING} == LEARNING
    assert recipe.source == read_recipe(made.text, "", "x").source


def test_five_lines_or_so_say_what_was_chosen_and_what_is_uncertain(here: Path) -> None:
    made = draft("small.safetensors", Wishes(**SEEN))
    heads = [line.partition(":")[0] for line in made.lines]
    assert heads == ["teacher", "task", "student", "source", "uncertain"]
    text = "\n".join(made.lines)
    count = len(resnet(7, depth=8, width=8).state_dict())
    assert f"its {count} tensors have the names and shapes of datafree/resnet?depth=8&width=8" in text
    assert "starts from the teacher's weights" in text
    assert "the first convolution's stride is 1" in text
    for line in made.lines:
        assert f"# {line}" in made.text
    assert "# suggested: the form of its answers" in made.text


def test_what_cannot_be_told_is_asked_for(here: Path) -> None:
    assert "give --size HEIGHTxWIDTH" in refusal("small.safetensors", mean="0.5", std="0.25")
    assert "give --mean R,G,B and --std R,G,B" in refusal("small.safetensors", size="32")
    assert "has no weights, so it has nothing to teach: give --weights FILE" in refusal("timm/test_resnet")
    assert "--weights" in refusal("small.safetensors", weights=here / "small.safetensors", **SEEN)
    assert "--time 'soon' is not a time" in refusal("small.safetensors", time="soon", **SEEN)
    assert "nothing is there" in refusal("timm/test_resnet", weights=here / "none.pth")
    assert "needs photos" in refusal("small.safetensors", source="folder", **SEEN)
    assert "there is no task 'classify'" in refusal("small.safetensors", task="classify", **SEEN)
    assert "answers (2, 7), but the task needs" in refusal("small.safetensors", task="segmentation", **SEEN)


def test_another_number_of_classes_than_the_last_layers_have_is_refused_with_both(here: Path) -> None:
    said = refusal("small.safetensors", classes=5, **SEEN)
    assert "--classes is 5, but the last layers in small.safetensors are of 7: leave --classes out" in said
    assert recipe_of(draft("small.safetensors", Wishes(classes=7, **SEEN))).task.num_classes == 7


def test_weights_of_another_network_say_how_to_find_theirs(here: Path) -> None:
    said = refusal("torchvision/resnet18", weights=Path("small.safetensors"), **SEEN)
    assert "do not fit the network" in said
    assert "`datafree inspect FILE` tells which a file fits" in said


def test_mean_and_std_are_each_credited_to_who_said_it(here: Path) -> None:
    save_weights(timm.create_model("test_resnet", num_classes=4), here / "mine.safetensors")
    (line,) = (line for line in draft("mine.safetensors", Wishes(mean="0.5")).lines if line.startswith("task:"))
    assert "mean 0.5, 0.5, 0.5 (--mean) and std 0.5, 0.5, 0.5 (timm's default_cfg" in line
    assert "--std" not in line


def test_an_order_that_is_stated_is_the_recipes_also_where_a_library_has_another(here: Path) -> None:
    save_weights(timm.create_model("test_resnet", num_classes=4), here / "mine.safetensors")
    assert recipe_of(draft("mine.safetensors", Wishes(channel_order="bgr"))).teacher.channel_order == "bgr"


def test_a_time_that_holds_next_to_nothing_is_said_with_one_that_would_do(here: Path) -> None:
    save_weights(timm.create_model("test_resnet", num_classes=4), here / "mine.safetensors")
    line = draft("mine.safetensors", Wishes(time="1s")).lines[-1]
    found = re.fullmatch(
        r"warning: 1s .* (\d+) steps?, which teach(es)? next to nothing: some 1,000 take \w+ or more here \(--time\)",
        line,
    )
    assert found is not None, line
    assert int(found[1]) < FEW
    assert not draft("mine.safetensors", Wishes(time="9h")).lines[-1].startswith("warning")


def test_a_student_hardly_smaller_than_its_teacher_is_uncertain() -> None:
    student = FirstStudent(spec=NetworkSpec(network="timm/a"), parameters=100, why="", start="", wanted=4.0)
    (said,) = hardly_smaller(student, 108)
    assert said == (
        "the student is only 1.08 times smaller than its teacher, 4 times were wanted: nothing nearer is known for it "
        "(--student NAME gives another)"
    )
    assert hardly_smaller(student, 90)[0].startswith("the student is not smaller than its teacher")
    assert not hardly_smaller(student, 201)
    assert not hardly_smaller(replace(student, wanted=None), 108)  # it was named


def test_a_librarys_numbers_are_uncertain_for_weights_of_ones_own(here: Path) -> None:
    save_weights(timm.create_model("test_resnet", num_classes=4), here / "mine.safetensors")
    made = draft("mine.safetensors", Wishes())
    assert recipe_of(made).task.image_size == (160, 160)
    assert "the image size is that of its library's own weights (--size)" in made.lines[-1]
    assert "mean and std" in made.lines[-1]
    assert recipe_of(made).training.batch_size == 16  # of large images


def test_options_and_overrides_have_their_way(here: Path) -> None:
    (here / "photos").mkdir()
    wishes = Wishes(
        student="datafree/resnet?depth=8&width=2",
        photos=Path("photos"),
        data=Path("photos"),
        time="20s",
        device="cpu",
        seed=3,
        **SEEN,
    )
    recipe = recipe_of(draft("small.safetensors", wishes, ["training.lr=0.01", "name=mine"]))
    assert (recipe.student.args["width"], recipe.name, recipe.data) == (2, "mine", here / "photos")
    assert (recipe.training.time, recipe.training.device, recipe.training.seed) == ("20s", "cpu", 3)
    assert recipe.training.lr == 0.01
    section = yaml.parse(draft("small.safetensors", wishes).text, "x")["source"]
    assert section == {"method": "auto", "photos": str(here / "photos")}


def test_nothing_is_said_of_a_student_that_overrides_have_changed(here: Path) -> None:
    made = draft("small.safetensors", Wishes(**SEEN), ["student.args.width=3"])
    assert made.lines[2] == "student: datafree/resnet, as the overrides have it"
    assert recipe_of(made).student.args == {"depth": 8, "width": 3}
    assert not re.search(r"parameters; |times fewer", made.text)


@pytest.mark.parametrize("override", ["training=5", "source=noise", "task=[]", "teacher=x"])
def test_a_section_that_is_a_plain_value_is_a_line(here: Path, override: str) -> None:
    with pytest.raises(DatafreeError, match="is not a section of"):
        draft("small.safetensors", Wishes(**SEEN), [override])


def test_a_student_whose_layers_do_not_correspond_starts_at_random(here: Path) -> None:
    made = draft("small.safetensors", Wishes(student="timm/test_resnet", **SEEN))
    assert recipe_of(made).student.init == "random"  # so that nothing tries again, and says so again
    assert "it starts from random weights (" in made.lines[2]
    assert "choose" not in made.text


def test_a_teacher_of_no_family_gets_a_common_student(here: Path) -> None:
    (here / "df_own.py").write_text(
        "from datafree.networks.unet import unet\ndef net():\n    return unet(5, width=12, depth=2)\n"
    )
    made = draft("df_own:net", Wishes(size="32x48", mean="0", std="1"))
    recipe = recipe_of(made)
    assert (recipe.task.num_classes, recipe.task.image_size) == (5, (32, 48))
    assert recipe.student.network == "datafree/unet"
    assert "a common one" in made.lines[2]


def test_several_yes_and_no_get_a_common_classifier(here: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = draft(live_name(network, values=True), Wishes(**SEEN, task="multilabel"), given=network)
    assert (made.sections["task"]["kind"], made.sections["student"]["network"]) == ("multilabel", "datafree/resnet")


def test_a_network_that_is_an_object_needs_only_its_images(here: Path) -> None:
    network = unet(3, width=4, depth=2)
    made = draft(live_name(network, values=True), Wishes(**SEEN), given=network)
    assert made.sections["task"] == {"kind": "segmentation", "num_classes": 3, "image_size": [32, 32]}
    assert made.sections["name"] == "UNet"


def test_answers_that_fit_no_task_are_a_line(here: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2))
    with pytest.raises(DatafreeError, match="the form of no task"):
        draft(live_name(network, values=True), Wishes(**SEEN), given=network)


@pytest.mark.parametrize(
    "value", [1, 0.001, 1e-7, "30m", "auto", "a: b, c]", "no", "null", "Null", "TRUE", "1e4", [1, "x y"], {"a": [1]}]
)
def test_a_value_in_one_line_of_yaml_is_read_as_it_was(value: Any) -> None:
    assert yaml.parse(recipe_text({"section": {"key": value}}, [], {("section", "key"): "why"}), "x") == {
        "section": {"key": value}
    }
    assert "\n" not in flow(value)


def test_options_become_overrides_of_a_recipe_that_was_written(here: Path) -> None:
    (here / "a.pth").touch()
    wishes = Wishes(
        weights=Path("a.pth"), args=("depth=8",), mean="0.5", classes=5, time="2m", source="cgdd", student="auto"
    )
    assert recipe_overrides(wishes, (32, 48)) == [
        "teacher.args.depth=8",
        'teacher.weights="a.pth"',
        "teacher.mean=[0.5, 0.5, 0.5]",
        "task.num_classes=5",
        "task.image_size=[32, 48]",
        'training.time="2m"',
        'source={"method": "cgdd"}',
        'student={"network": "auto", "args": {}}',
    ]
    assert recipe_overrides(Wishes(), None) == []


def test_photos_go_where_the_method_takes_them() -> None:
    photos = Path("photos")
    assert source_section("folder", photos) == {"method": "folder", "path": "photos", "crop": "random", "flip": True}
    assert source_section("degan", photos)["proxy"]["path"] == "photos"
    with pytest.raises(DatafreeError, match="takes no photos"):
        source_section("cgdd", photos)


def test_answers_of_a_lower_resolution_are_enlarged_where_the_user_says_so(here: Path) -> None:
    (here / "df_coarse.py").write_text(
        "from torch import nn\n\n\ndef teacher():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 5, 1))\n"
    )
    assert "set teacher.upsample=true" in refusal("df_coarse:teacher", **{**SEEN, "mean": "0", "std": "1"})
    made = draft("df_coarse:teacher", Wishes(size="32", mean="0", std="1"), ["teacher.upsample=true"])
    recipe = recipe_of(made)
    assert recipe.teacher.upsample
    assert (recipe.task.num_classes, recipe.task.image_size) == (5, (32, 32))


def test_a_size_that_a_network_does_not_take_is_one_that_images_can_be_brought_to(here: Path) -> None:
    vit = "timm/vit_tiny_patch16_224"
    save_weights(timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1), here / "vit.safetensors")
    said: dict[str, Any] = {"weights": here / "vit.safetensors", "size": "48", "args": ("depth=1",)}
    assert "teacher.input_size=[224,224]" in refusal(vit, **said)
    sections = draft(vit, Wishes(**said), ["teacher.input_size=[224,224]"], chooses_student=False).sections
    assert (sections["teacher"]["input_size"], sections["task"]["image_size"]) == ([224, 224], [48, 48])
