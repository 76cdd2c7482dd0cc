"""networks/torchvision_detectors.py: torchvision's own losses and detections are the reference, on narrow models."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, remove_small_boxes

from datafree.errors import NetworkError
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.checkpoints.weights import load_weights, save_weights
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized, bare
from datafree.networks.torchvision_detectors import adapt, is_torchvision_detector
from datafree.ops import modes
from datafree.ops.boxes import Labelled, pack
from datafree.ops.predictions import Predictions, joined
from datafree.tasks.detection import Detection
from thorough import some

SIZE = 64  # pixels
CLASSES = 3
# Leaves images as they are, and draws no random size for each.
UNTRANSFORMED: dict[str, Any] = {"_skip_resize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
SIZES = {"min_size": SIZE, "max_size": SIZE}

Norm = Callable[[int], nn.Module]


class Body(nn.Module):
    """Three maps, of strides 8, 16 and 32."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.out_channels: Any = width

        def block(before: int, stride: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(before, width, 3, stride, 1, bias=False), norm(width), nn.ReLU())

        self.stem = nn.Sequential(block(3, 2), block(width, 2))
        self.levels = nn.ModuleList([block(width, 2) for _ in range(3)])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        x, maps = self.stem(images), OrderedDict()
        for index, level in enumerate(self.levels):
            x = maps[str(index)] = level(x)
        return maps


def ssd(norm: Norm = nn.BatchNorm2d, lite: bool = False) -> nn.Module:
    body, anchors = Body(8, norm), DefaultBoxGenerator([[2]] * 3, min_ratio=0.2, max_ratio=0.8)
    body.out_channels = [8] * 3
    head = SSDLiteHead([8] * 3, anchors.num_anchors_per_location(), CLASSES + 1, nn.BatchNorm2d) if lite else None

    return SSD(
        body, anchors, (SIZE, SIZE), CLASSES + 1, head=head, score_thresh=0.2, topk_candidates=1000, **UNTRANSFORMED
    )


def fcos(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    head = FCOSHead(32, 1, CLASSES + 1, num_convs=1)
    return FCOS(Body(32, norm), CLASSES + 1, anchor_generator=anchors, head=head, **SIZES, **UNTRANSFORMED)


def retinanet(norm: Norm = nn.BatchNorm2d, v2: bool = False) -> nn.Module:
    anchors = AnchorGenerator(((12, 16), (24, 32), (48, 64)), ((1.0,),) * 3)
    head = RetinaNetHead(8, 2, CLASSES + 1, norm_layer=partial(nn.GroupNorm, 4) if v2 else None)
    head.regression_head._loss_type = "giou" if v2 else "l1"
    return RetinaNet(Body(8, norm), CLASSES + 1, anchor_generator=anchors, head=head, **SIZES, **UNTRANSFORMED)


def faster_rcnn(norm: Norm = nn.BatchNorm2d, v2: bool = False, **options: Any) -> nn.Module:
    return FasterRCNN(
        Body(8, norm),
        rpn_anchor_generator=AnchorGenerator(((12,), (24,), (48,)), ((0.5, 1.0),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
        box_head=FastRCNNConvFCHead((8, 3, 3), [8], [16], nn.BatchNorm2d) if v2 else TwoMLPHead(8 * 9, 16),
        box_predictor=FastRCNNPredictor(16, CLASSES + 1),
        **{
            "rpn_post_nms_top_n_test": 20,
            "rpn_post_nms_top_n_train": 30,
            "rpn_batch_size_per_image": 32,
            "box_batch_size_per_image": 16,
            "box_score_thresh": 0.4,
            **SIZES,
            **UNTRANSFORMED,
            **options,
        },
    )


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "ssd": ssd,
    "ssdlite": partial(ssd, lite=True),
    "fcos": fcos,
    "retinanet": retinanet,
    "retinanet_v2": partial(retinanet, v2=True),
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_v2": partial(faster_rcnn, v2=True),
}
TWO_STAGE = ("faster_rcnn", "faster_rcnn_v2")
EACH = some(FAMILIES, "ssdlite", "fcos", "retinanet", "faster_rcnn")  # the others differ from these in little


def model(family: str, **options: Any) -> Any:
    """A model with something to say, in train mode."""
    return copy.deepcopy(made_once(family, **options))


@cache
def made_once(family: str, **options: Any) -> Any:
    """Random weights of some size, and statistics of the images it is shown."""
    torch.manual_seed(0)
    made = FAMILIES[family](**options)
    for name, weight in made.named_parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)
            weight.data.mul_(4 if "cls_score" in name else 1)  # classes well apart
        elif "bias" in name:
            nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        for seed in range(10):
            its_own_loss(made, images(seed), truth())
    return made


def images(seed: int = 0, count: int = 3, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def truth() -> list[Labelled]:
    """Two boxes, none, one: our class ids."""
    return [
        (torch.tensor([0, 2]), torch.tensor([[4.0, 6.0, 30.0, 28.0], [20.0, 22.0, 62.0, 60.0]])),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
        (torch.tensor([1]), torch.tensor([[10.0, 8.0, 25.0, 27.0]])),
    ]


def as_labels(targets: list[Labelled]) -> list[dict[str, Tensor]]:
    """Targets as torchvision wants them: its class 0 is background, so that our class 0 is its label 1."""
    return [{"boxes": boxes, "labels": labels + 1} for labels, boxes in targets]


def its_own_loss(model: Any, x: Tensor, targets: list[Labelled], seed: int = 5) -> Tensor:
    """The sum of what torchvision's model answers while it trains."""
    torch.manual_seed(seed)
    losses: dict[str, Tensor] = model.train()(list(x), as_labels(targets))
    return torch.stack(list(losses.values())).sum()


# --- the loss ---


@pytest.mark.parametrize("family", EACH)
def test_the_loss_is_the_models_own(family: str) -> None:
    network, x = model(family), images(50)
    wanted = its_own_loss(network, x, truth())
    answer = adapt(network)(x)
    torch.manual_seed(5)
    loss = answer.loss(answer.heads, truth())
    assert loss.shape == ()
    assert wanted > 0.1
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    torch.manual_seed(5)
    torch.testing.assert_close(answer.own_loss(pack(truth(), 4)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", EACH)
def test_the_loss_is_a_function_of_heads_and_targets_alone(family: str) -> None:
    detector = adapt(model(family)).eval()
    both, last = joined([detector(images(1)), detector(images(2))]), detector(images(2))[2:]
    assert len(both) == 6
    for part, targets in ((both[5:], truth()[2:]), (both[torch.tensor([5])], truth()[2:])):
        torch.manual_seed(5)
        loss = both.loss(part.heads, targets)
        torch.manual_seed(5)
        torch.testing.assert_close(loss, last.loss(last.heads, targets), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", EACH)
def test_the_loss_in_eval_mode_reaches_the_pixels_and_leaves_the_network_as_it_was(family: str) -> None:
    network = model(family).train()
    detector = adapt(network)
    flags = [m.training for m in network.modules()]
    with modes.frozen(detector):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        x = images(3).requires_grad_()
        answer = detector(x)
        answer.own_loss(pack(truth(), 4)).backward()
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
    assert [m.training for m in network.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    shown = x.grad.abs().flatten(1).amax(1)
    assert shown[0] > 1e-6
    assert shown[2] > 1e-6


@pytest.mark.parametrize("family", EACH)
def test_a_step_of_training_moves_the_statistics_as_the_model_does(family: str) -> None:
    ours, theirs = model(family), model(family)
    its_own_loss(theirs, images(4), truth())
    answer = adapt(ours).train()(images(4))
    torch.manual_seed(5)
    answer.own_loss(pack(truth(), 4))
    wanted = theirs.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, wanted[name])


@pytest.mark.parametrize("family", EACH)
def test_images_without_boxes_have_a_loss_too(family: str) -> None:
    network = model(family)
    nothing = truth()[1:2]
    for targets in (nothing * 3, [*nothing, *truth()[:1], *nothing]):
        x = images(6).requires_grad_()
        wanted = its_own_loss(network, images(6), targets)
        answer = adapt(network)(x)
        torch.manual_seed(5)
        loss = answer.own_loss(pack(targets, 4))
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        loss.backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


# --- the answer ---


def check_found(answer: Predictions, wanted: list[dict[str, Tensor]], rules: Any, size: tuple[int, int]) -> None:
    """What is left of an answer by the model's `rules` is the detections that it names itself."""
    assert len(torch.cat([theirs["labels"] for theirs in wanted]).unique()) > 1
    for scores, boxes, theirs in zip(answer.scores, answer.boxes, wanted, strict=True):
        place, label = (scores > rules.score_thresh).nonzero(as_tuple=True)
        cut, sure = clip_boxes_to_image(boxes[place], size), scores[place, label]
        if isinstance(rules, RoIHeads):
            solid = remove_small_boxes(cut, 1e-2)
            cut, sure, label = cut[solid], sure[solid], label[solid]
        keep = batched_nms(cut, sure, label, rules.nms_thresh)
        known = theirs["labels"] > 0  # FCOS and RetinaNet have a column 0 that they never learn
        assert len(keep) > 2
        assert torch.equal(label[keep], theirs["labels"][known] - 1)
        torch.testing.assert_close(sure[keep], theirs["scores"][known])
        torch.testing.assert_close(cut[keep], theirs["boxes"][known], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", EACH)
def test_the_detections_are_the_models_own(family: str) -> None:
    network, x = model(family).eval(), images(51)
    rules = network.roi_heads if family in TWO_STAGE else network
    rules.detections_per_img = 1000
    with torch.no_grad():
        wanted = network(list(x))
        answer = adapt(network)(x)
    check_found(answer, wanted, rules, (SIZE, SIZE))


@pytest.mark.parametrize("family", EACH)
def test_the_answer_has_the_protocols_form_in_both_modes(family: str) -> None:
    detector = adapt(model(family))
    for training in (True, False):
        answer = detector.train(training)(images(7))
        count = answer.scores.shape[1]
        Detection(num_classes=CLASSES, image_size=(SIZE, SIZE)).check(answer, "detector")
        assert answer.class_logits.shape == answer.scores.shape == (3, count, CLASSES)
        assert answer.boxes.shape == (3, count, 4)
        assert answer.centres.shape == (3, count, 2)
        assert ((answer.centres >= 0) & (answer.centres <= SIZE)).all()
        assert all(len(head) == 3 for head in answer.heads)
        x = images(7).requires_grad_()
        said = detector(x)
        for name in ("class_logits", "scores", "boxes"):
            (grad,) = torch.autograd.grad(getattr(said, name).square().sum(), x, retain_graph=True)
            assert grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", ["ssd", "fcos", "retinanet"])
def test_our_class_0_is_torchvisions_label_1(family: str) -> None:
    network = model(family).eval()
    with torch.no_grad():
        answer, outputs = adapt(network)(images(8)), network.head(list(network.backbone(images(8)).values()))
    assert torch.equal(answer.class_logits[..., 0], outputs["cls_logits"][..., 1])
    probs = outputs["cls_logits"].softmax(-1) if family == "ssd" else outputs["cls_logits"].sigmoid()
    if family == "fcos":
        probs = (probs * outputs["bbox_ctrness"].sigmoid()).sqrt()
    torch.testing.assert_close(answer.scores, probs[..., 1:])


@pytest.mark.parametrize("family", EACH)
def test_boxes_stay_finite_and_gradients_numbers_where_the_heads_explode(family: str) -> None:
    network = model(family).eval()
    with torch.no_grad():
        for weight in (network.roi_heads if family in TWO_STAGE else network.head).parameters():
            weight.mul_(100)
    x = images(9).requires_grad_()
    answer = adapt(network)(x)
    assert answer.boxes.isfinite().all()
    answer.scores.amax(1).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("family", ["fcos", "retinanet", "faster_rcnn"])
def test_images_of_odd_sizes_are_padded_as_the_model_does(family: str) -> None:
    network, size = model(family).eval(), (50, 70)
    network.transform.min_size, network.transform.max_size = (50,), 70
    x, rules = images(10, size=size), network.roi_heads if family in TWO_STAGE else network
    rules.detections_per_img = 1000
    with torch.no_grad():
        wanted, answer = network(list(x)), adapt(network)(x)
    check_found(answer, wanted, rules, size)


@pytest.mark.parametrize("family", EACH)
def test_a_bfloat16_pass_answers_and_learns_in_float32(family: str) -> None:
    network = Normalized(adapt(model(family)), dtype=torch.bfloat16)
    x = images(11).requires_grad_()
    answer = network(x)
    assert isinstance(answer, Predictions)
    assert all(t.dtype == torch.float32 for t in (answer.class_logits, answer.scores, answer.boxes, *answer.heads))
    torch.manual_seed(5)
    outside = answer.own_loss(pack(truth(), 4))
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = answer.own_loss(pack(truth(), 4))
    torch.testing.assert_close(within, outside, rtol=0.05, atol=0.05)
    outside.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_anchors_stay_whole_under_autocast() -> None:
    network = model("retinanet").eval()
    network.anchor_generator = AnchorGenerator(((301,), (24,), (48,)), ((1.0, 1.0),) * 3)  # 301 is none in bfloat16
    exact, rough = Normalized(adapt(network)), Normalized(adapt(network), dtype=torch.bfloat16)
    with torch.no_grad():
        wanted, said = exact(images(11, 1, (64, 320))), rough(images(11, 1, (64, 320)))
    assert torch.equal(said.centres, wanted.centres)
    assert said.boxes.dtype == said.heads[0].dtype == torch.float32
    network.head.regression_head.bbox_reg.weight.data.zero_()
    network.head.regression_head.bbox_reg.bias.data.zero_()
    torch.testing.assert_close(rough(images(11, 1, (64, 320))).boxes, exact(images(11, 1, (64, 320))).boxes)


# --- two stages ---


def test_a_pair_of_proposal_and_class_has_the_box_of_its_class() -> None:
    network, x = model("faster_rcnn").eval(), images(12)
    roi = network.roi_heads
    with torch.no_grad():
        answer = adapt(network)(x)
        features = network.backbone(x)
        proposals, _ = network.rpn(ImageList(x, [(SIZE, SIZE)] * 3), features)
        counts = [len(p) for p in proposals]
        pooled = roi.box_roi_pool(features, proposals, [(SIZE, SIZE)] * 3)
        logits, offsets = roi.box_predictor(roi.box_head(pooled))
        boxes = roi.box_coder.decode(offsets, proposals).split(counts)
    assert answer.scores.shape == (3, 20 + CLASSES, CLASSES)
    for index, (rows, theirs) in enumerate(zip(logits.split(counts), boxes, strict=True)):
        scores = rows.softmax(-1)[:, 1:]
        said = answer.scores[index]
        torch.testing.assert_close(said.amax(0), scores.amax(0))  # of every class the surest
        kept = min(20, scores.numel())
        assert ((said > 0).sum(1) <= 1).all()  # a pair is of one class
        torch.testing.assert_close(said.flatten().topk(kept).values, scores.flatten().topk(kept).values)
        for place in range(len(said)):
            score, label = said[place].max(0)
            if score > 0:
                source = (scores[:, label] - score).abs().argmin()
                torch.testing.assert_close(answer.boxes[index, place], theirs[source, label + 1])
                torch.testing.assert_close(answer.class_logits[index, place], rows[source, 1:])
                middle = (proposals[index][source, :2] + proposals[index][source, 2:]) / 2
                torch.testing.assert_close(answer.centres[index, place], middle)


def test_an_image_with_fewer_proposals_is_filled_up_with_what_is_nowhere() -> None:
    network = model("faster_rcnn", rpn_score_thresh=0.7).eval()
    answer = adapt(network)(images(13))
    empty = answer.scores.amax(2) == 0
    assert answer.scores.shape[1] == 20 + CLASSES
    assert empty.any()
    assert (answer.boxes[empty] == 0).all()
    assert not (answer.scores[~empty] == 0).all()


@pytest.mark.parametrize("family", some(TWO_STAGE, "faster_rcnn"))
def test_images_without_any_proposal_are_answered_and_have_a_loss(family: str) -> None:
    detector = adapt(model(family, rpn_score_thresh=2.0))
    for training in (True, False):
        answer = detector.train(training)(images(14))
        assert answer.scores.shape == (3, 20 + CLASSES, CLASSES)
        assert not answer.scores.any()
        assert answer.loss(answer.heads, truth()).isfinite()
        assert answer.loss(answer.heads, truth()[1:2] * 3).isfinite()


# --- networks around it ---


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
@pytest.mark.parametrize("family", EACH)
def test_batchnorm_is_found_frozen_or_not(family: str, norm: Norm) -> None:
    detector = adapt(model(family, norm=norm) if norm is FrozenBatchNorm2d else model(family))
    found = batchnorm_layers(bare(detector))
    assert sum(name.startswith(detector.backbone) for name in found) == 5
    with torch.no_grad():
        assert detector(images(15)).scores.isfinite().all()


@pytest.mark.parametrize("family", EACH)
def test_what_is_saved_fits_the_plain_model(family: str, tmp_path: Path) -> None:
    network = model(family)
    save_weights(bare(adapt(network)), tmp_path / "student.safetensors")
    plain = FAMILIES[family]()
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))
    load_weights(plain, tmp_path / "student.safetensors")
    plain.load_state_dict(bare(adapt(network)).state_dict(), strict=True)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


@pytest.mark.parametrize(
    "family", some([family for family in FAMILIES if family not in TWO_STAGE], "ssdlite", "fcos", "retinanet")
)
def test_heads_are_told_by_their_anchors_and_boxes(family: str) -> None:
    task = Detection(num_classes=CLASSES, image_size=(SIZE, SIZE), distill="heads")
    teacher, student = model(family).eval(), model(family).eval()

    def difference() -> str:
        with torch.no_grad():
            said, other = adapt(student)(images()), adapt(teacher)(images())
        try:
            assert task.distill_loss(said, other) == 0
        except NetworkError as error:
            return str(error)
        return ""

    assert difference() == ""
    generator, coder = student.anchor_generator, student.box_coder
    if isinstance(generator, AnchorGenerator):
        generator.sizes = tuple((2 * size, *more) for size, *more in generator.sizes)
        generator.cell_anchors = [anchors * 2 for anchors in generator.cell_anchors]
    else:
        generator.scales = [scale / 2 for scale in generator.scales]
    assert " of anchors, " in difference()
    student.anchor_generator = teacher.anchor_generator
    if family == "fcos":
        coder.normalize_by_size = False
        assert "normalize_by_size of box_coder, True of the teacher's and False of" in difference()
    else:
        coder.weights = (1.0, 1.0, 1.0, 1.0 + coder.weights[-1])
        assert "weights of box_coder, " in difference()


def test_other_networks_are_refused() -> None:
    assert not is_torchvision_detector(nn.Conv2d(3, 1, 1))
    with pytest.raises(NetworkError, match="a Conv2d is none of"):
        adapt(nn.Conv2d(3, 1, 1))
    masks = MaskRCNN(Body(8, nn.BatchNorm2d), CLASSES + 1)
    with pytest.raises(NetworkError, match="MaskRCNN learns more than boxes"):
        adapt(masks)


FEW = {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50}  # proposals
FULL: list[tuple[str, int, dict[str, int]]] = [
    ("ssdlite320_mobilenet_v3_large", 320, {}),
    ("ssd300_vgg16", 300, {}),
    ("fcos_resnet50_fpn", 64, {}),
    ("retinanet_resnet50_fpn", 64, {}),
    ("retinanet_resnet50_fpn_v2", 64, {}),
    ("fasterrcnn_resnet50_fpn", 64, FEW),
    ("fasterrcnn_resnet50_fpn_v2", 64, FEW),
    ("fasterrcnn_mobilenet_v3_large_fpn", 64, FEW),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 64, FEW),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "args"), FULL)
def test_each_full_size_model_is_built_and_answers(name: str, size: int, args: dict[str, int]) -> None:
    network = build_network(NetworkSpec(network=f"torchvision/{name}", args=args), num_classes=CLASSES)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    task, x = Detection(num_classes=CLASSES, image_size=(size, size)), images(0, 2, (size, size))
    task.check(network(x), name).own_loss(pack(truth()[:2], 4)).backward()
    with torch.no_grad(), modes.frozen(network):
        task.check(network(x), name)


@pytest.mark.gpu
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_gpu_answers_as_the_cpu_does(family: str) -> None:
    answers = {}
    for device in ("cpu", "cuda"):
        x = images(16).to(device).requires_grad_()
        answers[device] = adapt(model(family).eval().to(device))(x)
        answers[device].own_loss(pack(truth(), 4).to(device)).backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    for ours, theirs in zip(answers["cuda"].heads, answers["cpu"].heads, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-2, atol=5e-2)  # convolutions in TF32
    if family not in TWO_STAGE:
        torch.testing.assert_close(answers["cuda"].centres.cpu(), answers["cpu"].centres)
