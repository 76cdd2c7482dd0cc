"""The example of a user's own detector: FastestDet behind `Detector`, and the figures that its page gives."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.config import schema, yaml
from datafree.errors import NetworkError
from datafree.evaluation.scoring import evaluate
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.checkpoints.weights import read_tensors
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized, bare
from datafree.networks.pruning.start import StartOptions, start_from_teacher
from datafree.ops import modes
from datafree.ops.boxes import Labelled, pack
from datafree.ops.detections import detect
from datafree.ops.predictions import Predictions
from datafree.tasks.detection import Detection

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are only in the repository")

NOTHING = (torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(EXAMPLES)  # as the page says; a recipe's import path is looked up there
    monkeypatch.syspath_prepend(EXAMPLES)
    sys.modules.pop("fastestdet", None)
    return importlib.import_module("fastestdet")


class Fixed(nn.Module):
    """A network whose heads are given."""

    def __init__(self, heads: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.heads


def random_heads(batch: int = 2, classes: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Raw heads of images of 64 x 96 pixels: 4 x 6 cells."""
    torch.manual_seed(0)
    return tuple(torch.randn(batch, n, 4, 6, dtype=dtype) for n in (1, 4, classes))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- The network ----------------------------------------------------------------------------------------------------


def test_the_network_has_the_published_number_of_parameters_and_batchnorm_layers(example: ModuleType) -> None:
    detector = example.make()
    names = batchnorm_layers(bare(detector))
    assert sum(parameter.numel() for parameter in detector.parameters()) == 244_490
    assert len(names) == 70
    assert sum(name.startswith(f"{detector.backbone}.") for name in names) == 55


def test_a_narrower_network_has_that_share_of_all_channels_and_starts_from_the_whole_one(example: ModuleType) -> None:
    torch.manual_seed(0)
    whole, half = (example.make(num_classes=5, width=width) for width in (1.0, 0.5))
    norms = [[layer.num_features for layer in batchnorm_layers(bare(network)).values()] for network in (whole, half)]
    answers = {1, 4, 5}  # the heads' channels are what they say
    assert all(ours == (theirs if theirs in answers else theirs / 2) for theirs, ours in zip(*norms, strict=True))
    images = torch.rand(4, 3, 64, 64)
    started = start_from_teacher(whole, half, images, StartOptions(refit=None))
    assert started.copied.new <= 0.001 * started.copied.parameters
    assert example.make(num_classes=5, width=0.5)(images).scores.shape == half(images).scores.shape


def test_a_width_that_leaves_no_channel_is_refused(example: ModuleType) -> None:
    with pytest.raises(NetworkError, match=r"width of fastestdet is 0\.01"):
        example.make(width=0.01)


def test_the_authors_weights_fit_the_network_strictly(example: ModuleType, shared_data: Path) -> None:
    tensors = read_tensors(weights_of(shared_data))
    example.make().network.load_state_dict(tensors, strict=True)


def test_an_untrained_network_answers_in_train_and_eval_mode_with_signals_of_ordinary_size(
    example: ModuleType,
) -> None:
    torch.manual_seed(0)
    detector = example.make(num_classes=5)
    images = torch.rand(4, 3, 64, 64)
    for mode in (True, False):
        predictions = detector.train(mode)(images)
        assert Detection(num_classes=5, image_size=(64, 64)).check(predictions, "network") is predictions
        for head in predictions.heads:
            assert 0.01 < head.std() < 10


def test_a_student_from_scratch_learns_a_batch(example: ModuleType) -> None:
    torch.manual_seed(0)
    detector = example.make(num_classes=2).train()
    images = torch.rand(4, 3, 64, 64)
    targets = pack([(torch.tensor([i % 2]), torch.tensor([[8.0, 16.0, 40.0 + 8 * i, 48.0]])) for i in range(4)], 4)
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.01)
    values = []
    for _ in range(12):
        loss = detector(images).own_loss(targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.75 * values[0]


# ---- The adapter ----------------------------------------------------------------------------------------------------


def test_the_adapter_takes_fewer_than_60_lines(example: ModuleType) -> None:
    assert len(inspect.getsource(example.FastestDetDetector).splitlines()) < 60


def test_a_cell_is_decoded_as_by_hand(example: ModuleType) -> None:
    heads = random_heads()
    predictions = example.FastestDetDetector(Fixed(heads))(torch.zeros(2, 3, 64, 96))
    objectness, box, classes = (head[1, :, 2, 5].tolist() for head in heads)  # of the second image, row 2, column 5
    x, y = (5 + math.tanh(box[0])) / 6 * 96, (2 + math.tanh(box[1])) / 4 * 64
    width, height = sigmoid(box[2]) * 96, sigmoid(box[3]) * 64
    total = sum(map(math.exp, classes))
    best = max(range(3), key=classes.__getitem__)
    score = sigmoid(objectness[0]) ** 0.6 * (math.exp(classes[best]) / total) ** 0.4
    place = 2 * 6 + 5
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    assert predictions.boxes[1, place].tolist() == pytest.approx(corners, rel=1e-5)
    assert predictions.centres[1, place].tolist() == [80, 32]
    assert predictions.class_logits[1, place].tolist() == classes
    assert predictions.scores[1, place].tolist() == pytest.approx([score * (c == best) for c in range(3)], rel=1e-5)


def test_heads_are_the_raw_tensors_and_everything_is_float32_in_bfloat16_too(example: ModuleType) -> None:
    heads = random_heads()
    detector = example.FastestDetDetector(Fixed(heads))
    answered = detector(torch.zeros(2, 3, 64, 96)).heads
    assert all(torch.equal(ours, given) for ours, given in zip(answered, heads, strict=True))
    with modes.autocast(torch.device("cpu"), torch.bfloat16):
        predictions = example.make(3).eval()(torch.rand(1, 3, 64, 64))
    tensors = (predictions.class_logits, predictions.scores, predictions.boxes, predictions.centres)
    assert {tensor.dtype for tensor in (*tensors, *predictions.heads)} == {torch.float32}


def test_its_heads_are_taught_raw_among_its_own_kind_alone(example: ModuleType) -> None:
    heads = random_heads()
    predictions = example.FastestDetDetector(Fixed(heads))(torch.zeros(2, 3, 64, 96))
    assert predictions.decoding == (("family", "FastestDet"), ("cell", 16))
    task = Detection(num_classes=3, image_size=(64, 96))
    assert task.distill_loss(predictions, predictions) == 0
    assert task.distill_loss(replace(predictions, decoding=(("family", "other"),)), predictions) > 0


def test_certain_answers_have_finite_gradients(example: ModuleType) -> None:
    heads = tuple((100 * head).requires_grad_() for head in random_heads())
    predictions = example.FastestDetDetector(Fixed(heads))(torch.zeros(2, 3, 64, 96))
    (predictions.scores.sum() + predictions.boxes.sum()).backward()
    assert predictions.scores.min() >= 0 and predictions.scores.max() <= 1
    assert all(torch.isfinite(head.grad).all() for head in heads)  # type: ignore[arg-type]


def test_sides_that_are_no_multiples_of_32_are_refused_with_a_way_out(example: ModuleType) -> None:
    with pytest.raises(NetworkError, match="not 64 x 80: set input_size"):
        example.make()(torch.zeros(1, 3, 64, 80))
    network = Normalized(example.make().eval(), input_size=(64, 96))
    assert isinstance(network(torch.zeros(1, 3, 64, 80)), Predictions)


# ---- The loss -------------------------------------------------------------------------------------------------------


def looped_siou(ours: list[float], theirs: list[float]) -> float:
    """IoU - (distance + shape) / 2 of two boxes (centre x, y, width, height); Gevorgyan, arXiv 2205.12740, 1-10."""
    (x, y, w, h), (u, v, p, q) = ours, theirs
    shared = max(min(x + w / 2, u + p / 2) - max(x - w / 2, u - p / 2), 0)
    shared *= max(min(y + h / 2, v + q / 2) - max(y - h / 2, v - q / 2), 0)
    iou = shared / (w * h + p * q - shared)
    across = max(x + w / 2, u + p / 2) - min(x - w / 2, u - p / 2)
    along = max(y + h / 2, v + q / 2) - min(y - h / 2, v - q / 2)
    sine = abs(v - y) / math.hypot(u - x, v - y)
    angle = 1 - 2 * math.sin(math.asin(sine) - math.pi / 4) ** 2
    distance = sum(1 - math.exp(-(2 - angle) * rho) for rho in (((u - x) / across) ** 2, ((v - y) / along) ** 2))
    shape = sum((1 - math.exp(-abs(a - b) / max(a, b))) ** 4 for a, b in ((w, p), (h, q)))
    return iou - (distance + shape) / 2


def looped_loss(heads: tuple[Tensor, ...], targets: list[Labelled]) -> float:
    """FastestDet's loss, one cell after another."""
    objectness, box, classes = (head.tolist() for head in heads)
    batch, _, height, width = heads[0].shape
    pairs = []  # image, row, column, class, SIoU
    for image, (labels, corners) in enumerate(targets):
        for label, (x1, y1, x2, y2) in zip(labels.tolist(), corners.tolist(), strict=True):
            wanted = [(x1 + x2) / 32, (y1 + y2) / 32, (x2 - x1) / 16, (y2 - y1) / 16]  # in cells
            for row in (int(wanted[1]), int(wanted[1]) + 1):
                for column in (int(wanted[0]), int(wanted[0]) + 1):
                    if row < height and column < width:
                        raw = [box[image][k][row][column] for k in range(4)]
                        place = [column + math.tanh(raw[0]), row + math.tanh(raw[1])]
                        found = [*place, sigmoid(raw[2]) * width, sigmoid(raw[3]) * height]
                        pairs.append((image, row, column, label, looped_siou(found, wanted)))
    mean = sum(pair[4] for pair in pairs) / max(len(pairs), 1)
    pairs = [pair for pair in pairs if pair[4] >= mean]
    box_loss = class_loss = objectness_loss = 0.0
    for image, row, column, label, fit in pairs:
        logits = [plane[row][column] for plane in classes[image]]
        box_loss += (1 - fit) / len(pairs)
        class_loss += (math.log(sum(map(math.exp, logits))) - logits[label]) / len(pairs)
    for image in range(batch):
        number = sum(pair[0] == image for pair in pairs)
        for row in range(height):
            for column in range(width):
                fits = [pair[4] for pair in pairs if pair[:3] == (image, row, column)]
                weight = 0.25 * height * width / number if fits else 0.75
                apart = abs(sigmoid(objectness[image][0][row][column]) - max(fits, default=0))
                smooth = apart**2 / 2 if apart < 1 else apart - 0.5
                objectness_loss += weight * smooth / (batch * height * width)
    return 8 * box_loss + 16 * objectness_loss + class_loss


TARGETS = [
    (torch.tensor([2, 0, 1]), torch.tensor([[3.0, 5, 40, 50], [1, 9, 38, 52], [70, 40, 96, 64]])),  # two share cells
    (torch.tensor([1]), torch.tensor([[50.0, 1, 90, 30]])),
]


@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], NOTHING], [NOTHING, TARGETS[1]], [NOTHING, NOTHING]])
def test_the_loss_is_that_of_loops_over_cells(example: ModuleType, targets: list[Labelled]) -> None:
    heads = random_heads(dtype=torch.float64)
    loss = example.FastestDetDetector(Fixed(heads)).loss(heads, targets)
    assert loss.item() == pytest.approx(looped_loss(heads, targets), rel=1e-6)


def test_the_losss_gradient_is_its_slope(example: ModuleType) -> None:
    heads = tuple(head.requires_grad_() for head in random_heads(dtype=torch.float64))
    loss = example.FastestDetDetector(Fixed(heads)).loss
    assert torch.autograd.gradcheck(lambda *heads: loss(heads, TARGETS), heads, fast_mode=True)


def test_a_box_that_is_right_already_costs_nothing_and_has_a_finite_gradient(example: ModuleType) -> None:
    heads = tuple(torch.zeros(1, n, 2, 2, requires_grad=True) for n in (1, 4, 3))  # boxes of 16 x 16 at 32 x 32 pixels
    fits = example.siou(torch.tensor([[1.0, 1, 1, 1]], requires_grad=True), torch.tensor([[1.0, 1, 1, 1]]))
    assert fits.item() == pytest.approx(1)
    loss = example.FastestDetDetector(Fixed(heads)).loss(
        heads, [(torch.tensor([2]), torch.tensor([[8.0, 8.0, 24.0, 24.0]]))]
    )
    loss.backward()
    off = 0.25 * 0.5 * 0.5**2 + 0.75 * 0.75 * 0.5 * 0.5**2  # objectness 1/2: the one right cell; the three others
    assert loss.item() == pytest.approx(16 * off + math.log(3), rel=1e-5)
    assert all(torch.isfinite(head.grad).all() for head in heads)  # type: ignore[arg-type]


def test_pairs_that_fit_equally_well_all_count(example: ModuleType) -> None:
    heads = tuple(torch.zeros(1, n, 2, 2, requires_grad=True) for n in (1, 4, 3))
    corner = [(torch.tensor([0]), torch.tensor([[17.0, 17.0, 32.0, 32.0]]))]  # the last cell alone is near
    between = [(torch.tensor([0]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))]  # the middle of four cells
    loss = example.FastestDetDetector(Fixed(heads)).loss
    for targets in (corner, between):
        value = loss(heads, targets)
        assert torch.isfinite(value)
        assert value.item() == pytest.approx(looped_loss(heads, targets), rel=1e-5)


def test_the_loss_reaches_the_pixels_with_and_without_boxes(example: ModuleType) -> None:
    torch.manual_seed(0)
    detector = example.make(num_classes=3).train()
    for _ in range(3):
        detector(torch.rand(8, 3, 64, 96))  # BatchNorm's statistics
    images = torch.rand(2, 3, 64, 96, requires_grad=True)
    for targets in (TARGETS, [NOTHING, NOTHING]):
        loss = detector.eval()(images).own_loss(pack(targets, 4))
        (gradient,) = torch.autograd.grad(loss, images)
        assert torch.isfinite(gradient).all()
        assert (gradient.abs().amax(1) > 0).float().mean() > 0.95


def test_larger_images_of_an_input_size_have_the_same_loss_for_larger_boxes(example: ModuleType) -> None:
    heads = random_heads()
    predictions = example.FastestDetDetector(Fixed(heads))(torch.zeros(2, 3, 64, 96))
    twice = [(labels, boxes * torch.tensor([2.0, 3.0, 2.0, 3.0])) for labels, boxes in TARGETS]
    larger = predictions.scaled(2, 3)
    assert larger.own_loss(pack(twice, 4)).item() == pytest.approx(predictions.own_loss(pack(TARGETS, 4)).item())


# ---- The page, and the real weights ---------------------------------------------------------------------------------


def weights_of(folder: Path) -> Path:
    path = folder / "weights" / "fastestdet-coco.safetensors"
    if not path.is_file():
        pytest.skip("DATAFREE_DATA holds no weights/fastestdet-coco.safetensors")
    return path


def sections() -> dict[str, Any]:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return dict(yaml.parse(block[1], "README.md"))


def spec_of(section: dict[str, Any]) -> NetworkSpec:
    spec: NetworkSpec = schema.build(NetworkSpec, section)
    return spec


def test_the_pages_sections_are_a_detection_task_its_teacher_and_a_student(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path))
    weights = tmp_path / "weights" / "fastestdet-coco.safetensors"  # that it exists is looked at first
    weights.parent.mkdir()
    weights.touch()
    content = sections()
    assert content["task"].pop("kind") == "detection"
    task: Detection = schema.build(Detection, content["task"])
    teacher, student = spec_of(content["teacher"]), spec_of(content["student"])
    assert teacher.weights == weights
    teacher.weights = None
    for spec in (teacher, student):
        network = spec.wrap(build_network(spec, num_classes=task.num_classes)).eval()
        task.check(network(torch.rand(1, 3, *task.image_size)), "network")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ap50_is_the_published_weights_and_falls_with_the_channels_swapped(
    example: ModuleType, shared_data: Path
) -> None:
    task = Detection(num_classes=80, image_size=(352, 352), nms_iou=0.45)
    data = task.open_dataset(shared_data / "coco-val128")
    found = {}
    for order in ("bgr", "rgb"):
        spec = spec_of({"network": "fastestdet:make", "weights": str(weights_of(shared_data)), "channel_order": order})
        network = spec.wrap(build_network(spec, num_classes=80))
        found[order] = evaluate(network, task, data, device=torch.device("cpu"), batch_size=16).values["ap50"]
    assert found["bgr"] == pytest.approx(0.326, abs=0.01)
    assert found["rgb"] == pytest.approx(0.248, abs=0.01)


@pytest.mark.slow
def test_a_location_is_detected_as_one_class(example: ModuleType, shared_data: Path) -> None:
    network = example.make().eval()
    network.network.load_state_dict(read_tensors(weights_of(shared_data)))
    with torch.no_grad():
        predictions = network(torch.rand(1, 3, 352, 352))
    (found,) = detect(predictions, score_threshold=0.001, nms_iou=0.45, max_detections=484, size=(352, 352))
    assert len(set(found.places.tolist())) == len(found.places) > 0
