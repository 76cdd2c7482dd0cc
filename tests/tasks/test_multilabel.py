"""tasks/multilabel.py and data/multilabel_folder.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

import datafree
from datafree.data.labelled import NamesFiles
from datafree.data.multilabel_folder import MultiLabelFolder
from datafree.errors import DataError, NetworkError
from datafree.evaluation.scoring import evaluate
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.tasks.multilabel import MultiLabel

C = 4
TASK = MultiLabel(num_classes=C, image_size=(16, 16))


def logits(count: int, seed: int) -> Tensor:
    return 3 * torch.randn(count, C, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_binary_cross_entropy_with_soft_labels_but_for_a_constant(temperature: float) -> None:
    task = MultiLabel(num_classes=C, image_size=(16, 16), temperature=temperature)
    student, teacher = logits(8, 0).requires_grad_(), logits(8, 1)
    soft = torch.sigmoid(teacher / temperature)
    ours = torch.sigmoid(student / temperature)
    kl = soft * (soft / ours).log() + (1 - soft) * ((1 - soft) / (1 - ours)).log()
    torch.testing.assert_close(task.distill_loss(student, teacher), temperature**2 * kl.mean())
    assert float(task.distill_loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(task.distill_loss(student, teacher), student)
    bce = F.binary_cross_entropy_with_logits(student / temperature, soft) * temperature**2
    torch.testing.assert_close(gradient, torch.autograd.grad(bce, student)[0])


def test_classes_do_not_compete_as_in_a_softmax() -> None:
    """A shift of one class's logit leaves the others' share of the loss as it is."""
    student, teacher = logits(8, 0), logits(8, 1)
    moved = student.clone()
    moved[:, 0] += 5
    alone = TASK.distill_loss(moved[:, :1], teacher[:, :1]) - TASK.distill_loss(student[:, :1], teacher[:, :1])
    together = TASK.distill_loss(moved, teacher) - TASK.distill_loss(student, teacher)
    torch.testing.assert_close(C * together, alone)


def test_a_row_that_sums_to_one_by_chance_has_the_right_form() -> None:
    row = torch.tensor([[0.3, 0.2, 0.501, 0.0]])
    assert TASK.check_form(row, "network") is row
    with pytest.raises(NetworkError, match="probabilities"):
        TASK.check(row, "network")


def test_scores_equal_torchmetrics() -> None:
    outputs, targets = logits(40, 0), (logits(40, 1) > 1).long()
    outputs[3], outputs[7] = outputs[5], outputs[5]  # images of equal score
    metric = TASK.new_metric(list("abcd"))
    for part in (slice(0, 25), slice(25, 40)):
        metric.update(outputs[part], targets[part])
    scores = metric.compute()
    each = MultilabelAveragePrecision(C, average="none")(outputs.sigmoid(), targets)
    assert list(scores.per_class["ap"].values()) == pytest.approx(each.tolist(), abs=1e-6)
    assert scores.values["map"] == pytest.approx(float(each.mean()), abs=1e-6)
    f1 = MultilabelF1Score(C, average="micro")(outputs.sigmoid(), targets)
    assert scores.values["f1"] == pytest.approx(float(f1), abs=1e-6)


def test_a_class_that_no_image_shows_has_no_average_precision() -> None:
    targets = torch.zeros(6, C, dtype=torch.int64)
    targets[0, 1] = 1
    metric = TASK.new_metric(list("abcd"))
    metric.update(logits(6, 0), targets)
    scores = metric.compute()
    assert list(scores.per_class["ap"]) == ["b"]
    assert scores.remarks == ["3 of 4 classes are not scored, no labelled image is of them: 'a', 'c', 'd'"]
    with pytest.raises(DataError, match="no image shows any class"):
        TASK.new_metric().compute()


def test_mean_average_precision_is_over_all_classes_whatever_their_names() -> None:
    outputs, targets = logits(40, 0), (logits(40, 1) > 1).long()
    found = []
    for names in (list("abcd"), list("aaab")):
        metric = TASK.new_metric(names)
        metric.update(outputs, targets)
        found.append(metric.compute().values["map"])
    assert found[0] == found[1]


def test_sure_answers_are_ranked_by_their_logits() -> None:
    outputs = torch.tensor([20.0, 25, 30, 35])[:, None].expand(4, C)  # their float32 probabilities are all 1
    metric = TASK.new_metric()
    metric.update(outputs, torch.tensor([0, 0, 1, 1])[:, None].expand(4, C))
    scores = metric.compute()
    assert scores.values["map"] == 1.0
    assert scores.values["f1"] == pytest.approx(2 * 2 / (4 + 2))


def test_agreement_is_f1_of_the_labels() -> None:
    student = torch.tensor([[9.0, 9, -9, -9], [9, -9, -9, -9]])
    teacher = torch.tensor([[9.0, -9, 9, -9], [9, -9, -9, -9]])
    assert TASK.agreement(student, teacher) == pytest.approx(2 * 2 / (3 + 3))
    assert TASK.class_agreement(student, teacher) == [1.0, 0.0, 0.0, None]
    assert TASK.agreement(torch.cat([student, -student.abs()]), torch.cat([teacher, -student.abs()])) == 2 * 2 / (3 + 3)


def test_there_is_no_agreement_where_neither_network_names_a_class() -> None:
    nothing = -logits(8, 0).abs() - 1
    assert TASK.agreement(nothing, nothing - 1) is None
    assert TASK.agreement(nothing, -nothing) == 0.0


def test_targets_hold_every_class_and_some_images_two() -> None:
    targets = TASK.sample_targets(400, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert targets.shape == (400, C)
    assert set(targets.flatten().tolist()) == {0, 1}
    shown = targets.sum(1)
    assert set(shown.tolist()) == {1, 2}
    assert 0.25 < float((shown == 2).float().mean()) < 0.5
    assert targets.sum(0).min() >= 100
    assert TASK.class_maps(targets).shape == (400, C, 1, 1)


def folder(path: Path, text: str, name: str = "labels.csv") -> Path:
    (path / "images").mkdir(exist_ok=True)
    for index in range(3):
        Image.new("RGB", (16, 16), (80 * index, 9, 200)).save(path / "images" / f"{index}.png")
    (path / name).write_text(text)
    return path


GOOD = "file,red,round,large,old\nimages/0.png,1,0,1,0\nimages/1.png,0,0,0,0\nimages/2.png,0,1,1,1\n"


@pytest.mark.parametrize("name", ["labels.csv", "_classes.csv"])
def test_labels_are_read_from_a_table(name: str, tmp_path: Path) -> None:
    data = TASK.open_dataset(folder(tmp_path, GOOD.replace(",", ", "), name))
    assert data.class_names == ["red", "round", "large", "old"]
    ((images, targets),) = data.batches(8)
    assert images.shape == (3, 3, 16, 16)
    assert targets.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    scores = evaluate(Normalized(resnet(C, depth=8, width=4)), TASK, data, device=torch.device("cpu"))
    assert list(scores.values) == ["map", "f1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no image"),
        ("file,a,b\nimages/0.png,1,0\n", "has 2 classes, but the task has num_classes 4"),
        (GOOD + "images/0.png,1,0\n", "line 5: .* is not a 0 or 1 for each of 4 classes"),
        (GOOD.replace("1,0,1,0", "1,0,x,0"), "line 2"),
        (GOOD.replace("images/0.png", "../0.png"), "no image below"),
        (GOOD.replace("images/0.png", "/etc/0.png"), "no image below"),
        (GOOD.replace("large", "red"), "names the class 'red' twice, in columns 2 and 4; give each class its own name"),
        (GOOD.replace("round", " "), "column 3 of 5 has no class name; name it"),
        (
            GOOD + "\n./images/1.png,1,0,0,0\n",
            r"names the image '\./images/1\.png' twice, in lines 3 and 6; remove one",
        ),
    ],
)
def test_tables_that_do_not_serve_are_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said) as caught:
        MultiLabelFolder(folder(tmp_path, text), image_size=(16, 16), num_classes=C)
    assert "\n" not in str(caught.value)


def test_an_image_and_its_labels_are_read_from_named_files(tmp_path: Path) -> None:
    data = TASK.open_dataset(folder(tmp_path, GOOD))
    assert isinstance(data, NamesFiles)
    assert list(data.files(1)) == [tmp_path / "images" / "1.png", tmp_path / "labels.csv"]


def test_a_folder_without_a_table_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv: a line"):
        TASK.open_dataset(tmp_path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    targets = TASK.sample_targets(3, torch.device("cpu"))
    names = ["a, b", 'c "d"', "e", "f"]
    made = [TASK.write_example(tmp_path, f"0/{i}", torch.rand(3, 16, 16), targets[i], names) for i in range(3)]
    assert all(map(TASK.is_entry, made))
    assert not TASK.is_entry({"file": "x", "labels": [2, 0, 0, 0]})
    TASK.write_index(tmp_path, lambda: [made], names)
    data = TASK.open_dataset(tmp_path)
    assert data.class_names == names
    assert torch.equal(next(data.batches(3))[1], targets)


def test_a_multi_label_teacher_teaches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = datafree.distill(
        teacher=resnet(C, depth=8, width=4),
        student=resnet(C, depth=8, width=2),
        task=TASK,
        source="noise",
        training={"steps": 4, "batch_size": 4, "device": "cpu"},
        data=folder(tmp_path, GOOD),
        out=tmp_path / "run",
    )
    assert set(result.scores["student"].values) == {"map", "f1"}
