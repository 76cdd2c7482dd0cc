"""`evaluate` on a run directory: what it needs, and what it will not do for one that is not trusted."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from datafree.cli.main import app
from datafree.errors import DatafreeError, NetworkError, RecipeError, RunError, WeightsError
from datafree.evaluation.scoring import agreement, agreement_of_run, evaluate, evaluate_run
from datafree.networks.normalized import Normalized
from datafree.networks.unet import unet
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation
from recipes import load, write_teacher
from run_directories import forge
from small_runs import SMALL, labelled


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe, its teacher and its finished run; tests change a copy of that."""
    folder = tmp_path_factory.mktemp("scored")
    content = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": [32, 32]},
        "teacher": {"network": "datafree/unet", "args": SMALL, "weights": str(write_teacher(folder, **SMALL))},
        "student": {"network": "datafree/unet", "args": SMALL},
        "source": {"method": "noise"},
        "training": {"steps": 2, "batch_size": 2},
    }
    run_recipe(load(folder, content), folder / "run")
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def test_perfect_and_opposite_networks_score_one_and_zero(tmp_path: Path) -> None:
    class Reader(torch.nn.Module):
        """Reads the class off the red channel, as `labelled` wrote it."""

        def __init__(self, shift: int) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ids = (images[:, 0] * 255).round().long() % 3
            return 5 * torch.nn.functional.one_hot((ids + self.shift) % 3, 3).movedim(-1, 1).float()

    task = Segmentation(num_classes=3, image_size=(32, 32))
    data = task.open_dataset(labelled(tmp_path / "data"))
    for shift, expected in ((0, 1.0), (1, 0.0)):
        scores = evaluate(Normalized(Reader(shift)), task, data, device=torch.device("cpu"))
        assert scores.values == {"miou": expected, "pixel_accuracy": expected}


class Fixed(torch.nn.Module):
    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([logits]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


@pytest.mark.parametrize("logits", [[0.3, 0.701], [0.6, -0.8, 0.0]])
def test_a_batch_of_logits_is_scored_whatever_they_look_like(logits: list[float], tmp_path: Path) -> None:
    """Sums of 1 are probabilities' and lengths of 1 an embedding's: of one image each may be chance."""
    for name in "abc"[: len(logits)]:
        (tmp_path / name).mkdir()
        Image.new("RGB", (12, 12)).save(tmp_path / name / "0.png")
    task = Classification(num_classes=len(logits), image_size=(12, 12))
    data = task.open_dataset(tmp_path)
    scores = evaluate(Normalized(Fixed(logits)), task, data, device=torch.device("cpu"), batch_size=1)
    assert scores.values == {"top1": pytest.approx(1 / len(logits))}
    with pytest.raises(NetworkError, match="not finite"):
        evaluate(Normalized(Fixed([math.nan] * len(logits))), task, data, device=torch.device("cpu"))


# Agreement with the teacher on images that nobody has labelled.


class Brightest(torch.nn.Module):
    """Names the brightest of three bands of the image, `shift` further for images that are red at all."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift, self.unused = shift, torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bands = torch.stack([part.mean((1, 2, 3)) for part in images.chunk(3, 2)], 1)
        red = (images[:, 0].amax((1, 2)) > 0.9) & (images[:, 1].amax((1, 2)) < 0.9)
        return torch.where(red[:, None], bands.roll(self.shift, 1), bands)


def test_agreement_is_the_share_of_images_with_the_same_answer(tmp_path: Path) -> None:
    for i in range(40):
        image = Image.new("RGB", (18, 12))
        image.paste((255, 0, 0) if i % 4 == 0 else (255, 255, 255), (0, 4 * (i % 3), 18, 4 * (i % 3) + 4))
        image.save(tmp_path / f"{i}.png")
    task, device = Classification(num_classes=3, image_size=(12, 12)), torch.device("cpu")
    one, other = Normalized(Brightest()), Normalized(Brightest(1))
    assert agreement(one, one, task, tmp_path, device=device).share == 1
    assert agreement(other, one, task, tmp_path, device=device, batch_size=7).share == 30 / 40


def test_a_runs_student_is_compared_with_the_teacher_of_a_recipe(
    home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, recipe = labelled(tmp_path / "data") / "images", str(home / "street.yaml")
    values = load_file(home / "teacher.safetensors")
    last = list(unet(3, **SMALL).state_dict())[-2:]  # of the same network: to the logits
    save_file(values | {name: -values[name] for name in last}, run / "student.safetensors")
    forge(run / "student.safetensors", (run / "student.safetensors").read_bytes())
    assert agreement_of_run(run, photos, load_recipe(recipe)).share or 0 < 0.9
    shutil.copy(home / "teacher.safetensors", run / "student.safetensors")
    assert agreement_of_run(run, photos, load_recipe(recipe)).share == 1
    words = ["evaluate", str(run), "--images", str(photos)]
    app([*words, "--teacher", recipe], standalone_mode=False)
    assert f"agreement with the teacher: 100.0 % on 3 images of {photos}" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="--images DIR and --teacher RECIPE"):
        app(words, standalone_mode=False)


def test_evaluation_leaves_the_network_in_its_mode(tmp_path: Path) -> None:
    network = Normalized(unet(3, width=2, depth=2)).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    task = Segmentation(num_classes=3, image_size=(32, 32))
    evaluate(network, task, task.open_dataset(labelled(tmp_path / "data")), device=torch.device("cpu"))
    assert all(m.training for m in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_run_directory_may_not_name_code_to_import(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary_module.py").write_text("open('canary', 'w').close()\ndef make():\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    described = json.loads((run / "student.json").read_text())
    described["network"]["network"] = "canary_module:make"
    forge(run / "student.json", described)
    with pytest.raises(NetworkError, match="--student"):
        evaluate_run(run, labelled(tmp_path / "data"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("student.json", b"{", RunError),
        ("student.json", b"[]", RunError),
        ("student.json", b'{"network": {}, "task": {}}', RunError),
        ("student.json", b'{"network": {"network": "datafree/unet"}, "task": {"kind": "os:system"}}', RunError),
        ("student.safetensors", b"\xff" * 40, WeightsError),
    ],
)
def test_damaged_run_is_one_line(
    file: str, content: bytes, error: type[DatafreeError], run: Path, tmp_path: Path
) -> None:
    forge(run / file, content)
    with pytest.raises(error) as caught:
        evaluate_run(run, labelled(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def test_run_directory_has_nothing_downloaded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads((run / "student.json").read_text())
    described["network"] |= {"network": "smp/unet", "args": {"encoder": "mobilenet_v2", "encoder_weights": "imagenet"}}
    forge(run / "student.json", described)
    asked: list[object] = []
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *a, **k: asked.append(a))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: asked.append(a))
    with pytest.raises(WeightsError, match="do not fit"):  # it was built, without the library's weights
        evaluate_run(run, labelled(tmp_path / "data"))
    assert asked == []


@pytest.mark.parametrize("in_name", [True, False])
def test_run_directory_has_no_file_read(in_name: bool, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("[net]\na secret\n")
    described = json.loads((run / "student.json").read_text())
    described["network"] |= {"network": "datafree/yolov3", "args": {"cfg": str(secret)}}
    if in_name:
        described["network"] |= {"network": f"datafree/yolov3?cfg={secret}", "args": {}}
    forge(run / "student.json", described)
    data = labelled(tmp_path / "data")
    for student in (None, "datafree/yolov3"):  # a library's name again is no word on the file
        with pytest.raises(NetworkError, match=r"never done.*--student 'datafree/yolov3\?cfg=FILE'") as caught:
            evaluate_run(run, data, student=student)
        assert "line 2" not in str(caught.value)
    with pytest.raises(NetworkError, match="line 2"):  # the user's own word: it is read
        evaluate_run(run, data, student=f"datafree/yolov3?cfg={secret}")


def test_very_long_description_of_a_student_is_not_read(run: Path, tmp_path: Path) -> None:
    with (run / "student.json").open("r+b") as file:
        file.truncate(200_000_000)  # takes no space, but would take memory
    (run / "result.json").unlink()  # it notes a digest
    with pytest.raises(RunError, match=r"student\.json is damaged \(200,000,000 bytes, more than 10,000,000\)"):
        evaluate_run(run, tmp_path)


def test_run_of_an_own_task_asks_for_it(run: Path, tmp_path: Path) -> None:
    described = json.loads((run / "student.json").read_text())
    described["task"]["kind"] = "elsewhere:Mine"
    forge(run / "student.json", described)
    with pytest.raises(RunError, match="give yours with --task"):
        evaluate_run(run, labelled(tmp_path / "data"))
    own = "datafree.tasks.segmentation:Segmentation"
    assert evaluate_run(run, tmp_path / "data", task=own)["student"].values["miou"] >= 0


def test_unfinished_or_missing_run_says_what_to_do(run: Path, tmp_path: Path) -> None:
    (run / "student.json").unlink()
    with pytest.raises(RunError, match="run the same `datafree distill` again"):
        evaluate_run(run, tmp_path)
    with pytest.raises(RunError, match="is not a run directory"):
        evaluate_run(tmp_path / "nowhere", tmp_path)
