"""The YOLOv3 family: the published layers, boxes and loss written out naively, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darknet_files import save_darknet_weights
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.darknet.cfg import parse_cfg
from datafree.networks.darknet.layers import Shortcut
from datafree.networks.darknet.network import Darknet
from datafree.networks.darknet.weights import load_darknet_weights
from datafree.networks.darknet.yolov3 import ANCHORS, YoloDetector, cfg_text, yolov3
from datafree.networks.normalized import Normalized, bare
from datafree.ops.boxes import Labelled, pack
from datafree.ops.detections import detect
from datafree.ops.predictions import Predictions
from datafree.tasks.detection import Detection
from weights_files import refusal, same

# --- the published networks ---

# With 80 classes: the bytes of the published .weights files, and the parameters that learn.
PUBLISHED = {
    "tiny": (35_434_956, 8_852_366),
    "full": (248_007_048, 61_949_149),
    "spp": (252_209_544, 62_998_749),
}
# The filters of yolov3-tiny.cfg, and of the published cfgs' heads behind Darknet-53.
TINY = [16, 32, 64, 128, 256, 512, 1024, 256, 512, 255, 128, 256, 255]
FINER = [256, 256, 512, 256, 512, 256, 512, 255, 128, 128, 256, 128, 256, 128, 256, 255]
HEADS = {
    "full": [512, 1024, 512, 1024, 512, 1024, 255, *FINER],
    "spp": [512, 1024, 512, 512, 1024, 512, 1024, 255, *FINER],
}


def published(variant: str) -> Darknet:
    with torch.device("meta"):  # takes no room
        return Darknet(parse_cfg(cfg_text(80, variant=variant)))  # type: ignore[arg-type]


def filters(network: nn.Module) -> list[int]:
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_are_as_many_as_published(variant: str) -> None:
    network = published(variant)
    learnt = sum(values.numel() for values in network.parameters())
    kept = sum(values.numel() for name, values in network.named_buffers() if "running" in name)
    assert (20 + 4 * (learnt + kept), learnt) == PUBLISHED[variant]
    assert network.stride == 32


@pytest.mark.parametrize(("variant", "convolutions", "norms"), [("full", 75, 72), ("spp", 76, 73)])
def test_body_is_darknet_53_with_52_of_the_batchnorms(variant: str, convolutions: int, norms: int) -> None:
    network = published(variant)
    prefix = YoloDetector(network).backbone + "."
    names = batchnorm_layers(network)
    assert (len(filters(network)), len(names)) == (convolutions, norms)
    assert sum(name.startswith(prefix) for name in names) == 52
    expected = [32]
    for channels, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        expected += [channels, *[channels // 2, channels] * blocks]
    assert filters(network.body) == expected
    assert filters(network.head) == HEADS[variant]
    assert [type(layer) for layer in network.body.values()].count(Shortcut) == 23
    assert (len(network.body), isinstance(network.body["74"], Shortcut)) == (75, True)
    # Routes by number: the maps of layers 61 and 36 join in, as in the published cfg.
    joins = [sources for sources in network.sources[75:] if len(sources) == 2]
    assert [second for _, second in joins] == [61, 36]
    assert [head.stride for head in network.heads] == [32, 16, 8]


def test_tiny_has_the_published_layers() -> None:
    network = published("tiny")
    assert filters(network) == TINY
    assert (len(network.body), len(network.layers())) == (13, 24)
    assert [sources for sources in network.sources if len(sources) == 2] == [(19, 8)]
    assert network.sources[17] == (13,)
    assert [head.stride for head in network.heads] == [32, 16]


@pytest.mark.parametrize("variant", ["tiny", "full"])
def test_the_largest_anchors_are_the_coarsest_scales(variant: str) -> None:
    network = yolov3(1, variant=variant, width=0.01).network  # type: ignore[arg-type]
    found = [tuple(pair) for head in reversed(network.heads) for pair in head.anchors.tolist()]
    assert found == [tuple(map(float, pair)) for pair in ANCHORS[variant]]
    other = yolov3(1, width=0.01, anchors=[[4, 5.5], [6, 7]], channels=1).network
    assert [head.anchors.tolist() for head in other.heads] == [[[6.0, 7.0]], [[4.0, 5.5]]]
    assert filters(other)[-1] == 6
    assert other.channels == 1


def test_channels_are_a_share_of_the_published_ones_in_multiples_of_8() -> None:
    narrow = filters(yolov3(80, width=0.25).network)
    assert narrow == [8, 8, 16, 32, 64, 128, 256, 64, 128, 255, 32, 64, 255]
    assert filters(yolov3(1, width=0.01).network) == [8, 8, 8, 8, 8, 8, 8, 8, 8, 18, 8, 8, 18]


def test_a_cfg_file_makes_the_same_network_and_reads_its_weights(tmp_path: Path) -> None:
    text = cfg_text(2, width=0.05)
    (tmp_path / "a.cfg").write_text(text)
    torch.manual_seed(0)
    coded, read = yolov3(2, width=0.05), yolov3(2, cfg=tmp_path / "a.cfg")
    save_darknet_weights(coded.network, tmp_path / "a.weights")
    load_darknet_weights(bare(read), tmp_path / "a.weights")
    assert same(coded.network.state_dict(), read.network.state_dict())


# A cut of yolov4-tiny.cfg: a route by groups, centres stretched by scale_x_y.
YOLOV4 = """[net]
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[route]
layers=-1
groups=2
group_id=1
[convolutional]
size=1
filters=14
activation=linear
[yolo]
mask = 1,2
anchors = 2,3, 4,5, 6,4
classes=2
num=3
scale_x_y = 1.05
iou_loss=ciou
"""


def test_yolov4s_stretched_centres_are_understood(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text(YOLOV4)
    torch.manual_seed(0)
    detector = yolov3(2, cfg=str(tmp_path / "a.cfg")).eval()
    with torch.no_grad():
        answer = detector(torch.rand(1, 3, 4, 6))
    raw = answer.heads[0][0]  # (2, 2, 3, 7)
    for index, (a, y, x) in enumerate((a, y, x) for a in range(2) for y in range(2) for x in range(3)):
        tx, ty, tw, th = raw[a, y, x, :4].tolist()
        cx, cy = (2 * (1.05 / (1 + math.exp(-t)) - 0.025 + cell) for t, cell in ((tx, x), (ty, y)))
        w, h = [(4, 5), (6, 4)][a][0] * math.exp(tw), [(4, 5), (6, 4)][a][1] * math.exp(th)
        expected = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        torch.testing.assert_close(answer.boxes[0, index], expected, atol=1e-4, rtol=1e-4)


# --- what it answers ---

SMALL = [(12.0, 10.0), (20.0, 24.0), (30.0, 40.0), (50.0, 44.0)]  # two anchors a scale


def detector(classes: int = 3) -> YoloDetector:
    torch.manual_seed(0)
    return yolov3(classes, width=0.05, anchors=SMALL)


def random_heads(batch: int = 3, classes: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    """Heads for images of 96 x 64 pixels."""
    torch.manual_seed(seed)
    return tuple(torch.randn(batch, 2, 96 // step, 64 // step, 5 + classes) for step in (32, 16))


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def naive_box(t: list[float], x: int, y: int, step: int, anchor: tuple[float, float]) -> list[float]:
    cx, cy = (sigmoid(t[0]) + x) * step, (sigmoid(t[1]) + y) * step
    w, h = (side * min(math.exp(min(s, 50)), 1000) for side, s in zip(anchor, t[2:4], strict=True))
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


SCALES = ((32, SMALL[2:]), (16, SMALL[:2]))


def test_boxes_scores_and_centres_are_those_of_the_paper() -> None:
    network = detector().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= 3  # so that sizes differ
        answer = network(torch.rand(2, 3, 96, 64))
    assert len(answer) == 2
    for image in range(2):
        at = 0
        for head, (step, anchors) in zip(answer.heads, SCALES, strict=True):
            for a, y, x in ((a, y, x) for a in range(2) for y in range(96 // step) for x in range(64 // step)):
                raw = head[image, a, y, x].tolist()
                box = torch.tensor(naive_box(raw, x, y, step, anchors[a]))
                torch.testing.assert_close(answer.boxes[image, at], box, rtol=1e-4, atol=1e-3)
                assert answer.centres[image, at].tolist() == [(x + 0.5) * step, (y + 0.5) * step]
                assert answer.class_logits[image, at].tolist() == raw[5:]
                scores = torch.tensor([sigmoid(raw[4]) * sigmoid(t) for t in raw[5:]])
                torch.testing.assert_close(answer.scores[image, at], scores, rtol=1e-4, atol=1e-6)
                at += 1
        assert at == answer.boxes.shape[1]


def test_heads_are_the_raw_tensors_of_the_network() -> None:
    network = detector().eval()
    images = torch.rand(2, 3, 96, 64)
    for head, raw in zip(network(images).heads, network.network(images), strict=True):
        for a in range(2):
            assert torch.equal(head[:, a], raw[:, a * 8 : (a + 1) * 8].permute(0, 2, 3, 1))


def test_sides_of_boxes_are_finite_and_keep_finite_gradients() -> None:
    network = detector().eval()
    network.network.head["15"].get_submodule("conv").bias.data[2::8] = 1e4  # type: ignore[operator, union-attr]
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    answer = network(images)
    width = answer.boxes[0, 0, 2] - answer.boxes[0, 0, 0]
    torch.testing.assert_close(width, torch.tensor(30_000.0))
    (answer.boxes.sum() + answer.own_loss(torch.tensor([[[0.0, 2, 2, 40, 50]]]))).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_predictions_come_through_normalisation_and_resizing() -> None:
    wrapped = Normalized(detector(), input_size=(64, 64), channel_order="bgr").eval()
    answer = wrapped(torch.rand(2, 3, 48, 96))
    assert isinstance(answer, Predictions)
    assert answer.centres[0, 0].tolist() == [24.0, 12.0]  # 16, 16 of 64 x 64
    assert bare(wrapped).state_dict().keys() == detector().network.state_dict().keys()


@pytest.mark.parametrize("size", [(48, 64), (64, 100)])
def test_images_that_are_no_multiples_of_32_are_refused(size: tuple[int, int]) -> None:
    line = refusal(lambda: detector()(torch.rand(1, 3, *size)))
    assert f"images of {size[0]} x {size[1]} pixels" in line
    assert "multiples of 32" in line


def test_own_loss_and_scores_reach_every_pixel() -> None:
    network = detector()
    for _ in range(3):
        network(torch.rand(4, 3, 64, 64))  # gives BatchNorm statistics
    network.eval()
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    answer = network(images)
    targets = pack([(torch.tensor([1]), torch.tensor([[4.0, 5, 30, 42]])), (torch.zeros(0), torch.zeros(0, 4))], 2)
    for scalar in (answer.own_loss(targets), answer.scores.sum(), answer.boxes.sum()):
        (gradient,) = torch.autograd.grad(scalar, images, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient != 0).flatten(1).float().mean(1).min() > 0.9


# --- the loss ---


def naive_giou(p: list[float], t: list[float]) -> float:
    w = max(0.0, min(p[2], t[2]) - max(p[0], t[0]))
    h = max(0.0, min(p[3], t[3]) - max(p[1], t[1]))
    union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - w * h
    hull = (max(p[2], t[2]) - min(p[0], t[0])) * (max(p[3], t[3]) - min(p[1], t[1]))
    return w * h / union - (hull - union) / hull


def bce(t: float, wanted: float) -> float:
    return -(wanted * math.log(sigmoid(t)) + (1 - wanted) * math.log(1 - sigmoid(t)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def naive_loss(heads: tuple[Tensor, ...], targets: list[Labelled]) -> float:
    total = 0.0
    for head, (step, anchors) in zip(heads, SCALES, strict=True):
        places, giou, classes = set(), [], []
        for image, (labels, boxes) in enumerate(targets):
            for label, (x1, y1, x2, y2) in zip(labels.tolist(), boxes.tolist(), strict=True):
                for a, (w, h) in enumerate(anchors):
                    shared = min(w, x2 - x1) * min(h, y2 - y1)
                    if shared / (w * h + (x2 - x1) * (y2 - y1) - shared) > 0.225:
                        x, y = int((x1 + x2) / 2 // step), int((y1 + y2) / 2 // step)
                        raw = head[image, a, y, x].tolist()
                        places.add((image, a, y, x))
                        giou.append(1 - naive_giou(naive_box(raw, x, y, step, (w, h)), [x1, y1, x2, y2]))
                        classes += [bce(t, float(c == label)) for c, t in enumerate(raw[5:])]
        cells = [(b, a, y, x) for b, a, y, x in torch.cartesian_prod(*map(torch.arange, head.shape[:4])).tolist()]
        objectness = [bce(head[cell][4].item(), float(cell in places)) for cell in cells]
        total += 3.54 * mean(giou) + 64.3 * mean(objectness) + 37.4 * mean(classes)
    return total


TARGETS: list[Labelled] = [
    # Two in one cell, for the same anchors; one that fits no anchor, one that touches the edges.
    (torch.tensor([0, 2, 1]), torch.tensor([[3.0, 4, 30, 36], [5.0, 2, 30, 38], [50.0, 10, 53, 13]])),
    (torch.tensor([], dtype=torch.long), torch.zeros(0, 4)),
    (torch.tensor([1, 2]), torch.tensor([[0.0, 0, 64, 96], [40.0, 80, 64, 96]])),
]


def test_loss_is_the_papers_formula() -> None:
    heads = random_heads()
    found = detector().loss(heads, TARGETS)
    assert found.shape == ()
    assert found.item() == pytest.approx(naive_loss(heads, TARGETS), rel=1e-5)


def test_loss_is_of_the_heads_it_is_given() -> None:
    heads, loss = random_heads(), detector().loss
    part = tuple(head[[2, 0]] for head in heads)
    assert loss(part, [TARGETS[2], TARGETS[0]]).item() == pytest.approx(naive_loss(part, [TARGETS[2], TARGETS[0]]))


def test_without_boxes_only_objectness_is_left() -> None:
    heads, network = random_heads(), detector()
    nothing = [(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))] * 3
    zeros = [F.binary_cross_entropy_with_logits(head[..., 4], torch.zeros_like(head[..., 4])) for head in heads]
    assert network.loss(heads, nothing).item() == pytest.approx(64.3 * sum(zeros).item())  # type: ignore[union-attr]


def test_gains_weigh_the_terms() -> None:
    heads = random_heads()
    network = detector().network
    alone = [YoloDetector(network, gains).loss(heads, TARGETS) for gains in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    total = YoloDetector(network).loss(heads, TARGETS)
    torch.testing.assert_close(total, 3.54 * alone[0] + 64.3 * alone[1] + 37.4 * alone[2])
    assert yolov3(3, width=0.01, loss_gains=[1, 2, 3]).loss_gains == (1.0, 2.0, 3.0)


@pytest.mark.thorough
def test_a_narrow_tiny_learns_four_images_from_scratch() -> None:
    torch.manual_seed(0)
    shown = [
        [(0, (8.0, 10.0, 40.0, 50.0))],
        [(1, (40.0, 30.0, 90.0, 80.0))],
        [(2, (5.0, 50.0, 33.0, 78.0)), (0, (50.0, 8.0, 84.0, 40.0))],
        [(1, (20.0, 20.0, 60.0, 76.0))],
    ]
    images = 0.5 + 0.05 * torch.randn(4, 3, 96, 96)
    for image, boxes in zip(images, shown, strict=True):
        for label, box in boxes:
            x1, y1, x2, y2 = map(int, box)
            image[:, y1:y2, x1:x2] = torch.eye(3)[label][:, None, None]  # red, green, blue
    targets = pack(
        [(torch.tensor([label for label, _ in boxes]), torch.tensor([box for _, box in boxes])) for boxes in shown], 2
    )
    network = yolov3(3, width=0.0625, anchors=[(12, 12), (20, 20), (28, 28), (40, 40), (52, 52), (64, 64)])
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = network(images).own_loss(targets)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    network.eval()
    for seen, boxes in zip(
        detect(network(images), score_threshold=0.5, nms_iou=0.5, max_detections=10, size=(96, 96)), shown, strict=True
    ):
        assert len(seen.labels) == len(boxes)
        for label, box in boxes:
            places = (seen.labels == label).nonzero()
            assert len(places) == 1
            found = seen.boxes[places[0, 0]]
            torch.testing.assert_close(found, torch.tensor(box), atol=8, rtol=0)


# --- values that make no network ---


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"num_classes": 0}, "num_classes of datafree/yolov3 is 0: give a whole number of at least 1"),
        ({"channels": 0}, "channels of datafree/yolov3 is 0"),
        ({"variant": "huge"}, "variant of datafree/yolov3 is 'huge': give tiny, full, spp"),
        ({"width": 0}, "width of datafree/yolov3 is 0: give a number above 0"),
        ({"width": math.nan}, "width of datafree/yolov3 is nan"),
        ({"width": "1"}, "width of datafree/yolov3 is '1'"),
        ({"anchors": []}, "anchors of datafree/yolov3 is []: give pairs"),
        ({"anchors": [(1, 2)] * 3}, "a multiple of 2 of them"),
        ({"anchors": [(1, 2), (0, 3)]}, "anchors of datafree/yolov3"),
        ({"anchors": [1, 2, 3, 4]}, "anchors of datafree/yolov3"),
        ({"anchors": ["10", "20"]}, "anchors of datafree/yolov3"),
        ({"loss_gains": (1, 2)}, "loss_gains of datafree/yolov3 is (1, 2): give three numbers"),
        ({"loss_gains": (1, 2, -1)}, "loss_gains of datafree/yolov3"),
        ({"cfg": "a.cfg", "width": 0.5}, "leave out width and anchors"),
        ({"cfg": "absent.cfg"}, "cfg absent.cfg: no such file"),
    ],
)
def test_values_that_make_no_network_are_refused(args: dict[str, object], expected: str) -> None:
    assert expected in refusal(lambda: yolov3(**{"num_classes": 2, **args}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "args", "expected"),
    [
        (YOLOV4, {"num_classes": 3}, "its network has 2 classes, but 3 are asked for"),
        (YOLOV4, {"num_classes": 2, "channels": 1}, "its network has 3 channels, but 1 are asked for"),
        (YOLOV4.replace("=14", "=15"), {"num_classes": 2}, "line 18: [yolo] of 2 anchors and 2 classes takes 14"),
        (YOLOV4.replace("[route]", "[rout]"), {"num_classes": 2}, "line 10: there is no section 'rout' (did you mean"),
    ],
)
def test_a_cfg_that_does_not_fit_is_refused_by_its_name(
    tmp_path: Path, text: str, args: dict[str, int], expected: str
) -> None:
    path = tmp_path / "a.cfg"
    path.write_text(text)
    assert f"cfg {path}: {expected}" in refusal(lambda: yolov3(cfg=path, **args))  # type: ignore[arg-type]


# --- what its heads mean ---

GARMENTS = ((10, 20), (14, 36), (24, 30), (30, 30), (36, 36), (40, 24))  # of the built-in example


def test_the_same_weights_with_other_anchors_are_not_taught_by_raw_heads() -> None:
    """Their heads are equal to the last bit, and their boxes far apart."""
    torch.manual_seed(0)
    teacher, student = yolov3(3, width=0.1, anchors=GARMENTS).eval(), yolov3(3, width=0.1).eval()
    student.load_state_dict(teacher.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        said, other = teacher(images), student(images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(said.heads, other.heads, strict=True))
    assert (said.boxes - other.boxes).abs().max() > 100
    task = Detection(num_classes=3, image_size=(64, 64))
    assert task.distill_loss(other, said) > 0
    assert task.distill_loss(said, said) == 0
    task = Detection(num_classes=3, image_size=(64, 64), distill="heads")
    line = refusal(lambda: task.distill_loss(other, said))
    assert "differ in anchors, (30.0, 30.0) of the teacher's and (81.0, 82.0) of the student's: give both" in line


def test_heads_mean_the_same_at_any_width_and_of_a_cfg(tmp_path: Path) -> None:
    (tmp_path / "mine.cfg").write_text(cfg_text(3, anchors=GARMENTS))
    wide, narrow = yolov3(3, width=0.2, anchors=GARMENTS), yolov3(3, width=0.1, anchors=GARMENTS)
    by_cfg = yolov3(3, cfg=tmp_path / "mine.cfg")
    assert wide.decoding == narrow.decoding == by_cfg.decoding == wide.eval()(torch.rand(1, 3, 32, 32)).decoding
    assert dict(wide.decoding)["anchors"][0] == ((30, 30), (36, 36), (40, 24))  # type: ignore[index]
    assert dict(wide.decoding)["strides"] == (32, 16)
    text = cfg_text(3, anchors=GARMENTS).replace("num=6", "num=6\nscale_x_y=1.05")
    assert YoloDetector(Darknet(parse_cfg(text))).decoding != wide.decoding  # centres are stretched, as in YOLOv4
    assert YoloDetector(published("tiny")).decoding == ()  # on "meta" there are no anchors
