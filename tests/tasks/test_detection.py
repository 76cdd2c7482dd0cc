"""The detection task, on a detector small enough to check by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import DataError, NetworkError
from datafree.networks.detectors import Detector
from datafree.networks.normalized import Normalized, bare
from datafree.ops import augment, boxes
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions, described, joined
from datafree.tasks import TASKS
from datafree.tasks.detection import Detection

SIZE, CLASSES = (32, 64), 3
CPU = torch.device("cpu")
BOXES = torch.tensor([[16.0, 0.0, 32.0, 24.0], [48.0, 16.0, 64.0, 32.0]])  # what `sure` is sure of


class Cells(Detector):
    """A convolution to cells of 16 x 16 pixels: each answers a class and a box about its middle."""

    backbone = "0"

    def forward(self, images: Tensor) -> Predictions:
        raw = self.network(images)  # (B, C + 1 + 2, h, w): classes, whether there is a box, its width and height
        return self.decoded(raw)

    def decoded(self, raw: Tensor) -> Predictions:
        _, _, h, w = raw.shape
        rows = raw.flatten(2).mT  # (B, L, C + 3)
        y, x = torch.meshgrid(torch.arange(h) * 16.0 + 8, torch.arange(w) * 16.0 + 8, indexing="ij")
        centres = torch.stack([x.flatten(), y.flatten()], 1).expand(len(raw), -1, -1)
        half = 8 * rows[..., CLASSES + 1 :].clamp(-4, 4).exp()
        logits = rows[..., :CLASSES]
        return Predictions(
            class_logits=logits,
            scores=logits.softmax(2) * rows[..., CLASSES : CLASSES + 1].sigmoid(),
            boxes=torch.cat([centres - half, centres + half], 2),
            centres=centres,
            heads=(raw,),
            loss=self.loss,
        )

    def loss(self, heads: Heads, targets: list[Labelled]) -> Tensor:
        said = self.decoded(heads[0])
        wanted = torch.zeros(said.scores.shape[:2])
        loss = said.class_logits.sum() * 0
        for index, (labels, found) in enumerate(targets):
            for label, box in zip(labels, found, strict=True):
                place = (said.centres[index] - (box[:2] + box[2:]) / 2).square().sum(1).argmin()
                wanted[index, place] = 1
                loss = loss + F.cross_entropy(said.class_logits[index, place], label)
                loss = loss + (said.boxes[index, place] - box).abs().mean() / 16
        there = heads[0].flatten(2).mT[..., CLASSES]
        return loss + F.binary_cross_entropy_with_logits(there, wanted)


def make_network(seed: int = 0) -> Normalized:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES + 3, 3, 4, 1))
    return Normalized(Cells(layers), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def make_task(**options: Any) -> Detection:
    return Detection(num_classes=CLASSES, image_size=SIZE, **options)


def said(logits: Tensor, there: Tensor, sides: Tensor) -> Predictions:
    """What the detector answers when its raw cells are these: (B, C, h, w), (B, h, w), (B, 2, h, w)."""
    return Cells(nn.Identity()).decoded(torch.cat([logits, there[:, None], sides], 1))


@pytest.fixture
def sure() -> Predictions:
    """One image, cell (0, 1) sure of class 2 in a 16 x 32 box, cell (1, 3) half sure of class 0, all others of none."""
    logits, there = torch.zeros(1, CLASSES, 2, 4), torch.full((1, 2, 4), -20.0)
    sides = torch.zeros(1, 2, 2, 4)
    logits[0, 2, 0, 1], there[0, 0, 1] = 20.0, 20.0
    sides[0, 1, 0, 1] = math.log(2)
    logits[0, 0, 1, 3], there[0, 1, 3] = 20.0, 0.0
    return said(logits, there, sides)


def test_it_is_a_task_of_the_registry() -> None:
    assert TASKS["detection"] is Detection


def test_what_is_seen_is_boxes_in_pixels_cut_to_the_image(sure: Predictions) -> None:
    targets = make_task().pseudo_targets(sure)
    assert targets.shape == (1, 32, 5)
    labels, found = boxes.unpack(targets)[0]
    assert labels.tolist() == [2, 0]
    assert torch.allclose(found, BOXES, atol=1e-3)
    labels, _ = boxes.unpack(make_task(score_threshold=0.6).pseudo_targets(sure))[0]
    assert labels.tolist() == [2]


def test_class_probs_are_one_row_an_image_of_its_surest_places(sure: Predictions) -> None:
    probs = make_task().class_probs(sure)
    assert probs.shape == (1, CLASSES)
    assert torch.allclose(probs, torch.tensor([[0.5, 0.0, 1.0]]) / 1.5, atol=1e-4)


def test_agreement_is_1_with_itself_and_less_when_a_box_is_missed(sure: Predictions) -> None:
    task = make_task()
    assert task.agreement(sure, sure) == 1.0
    missed = said(*(part.clone() for part in (sure.heads[0][:, :3], sure.heads[0][:, 3], sure.heads[0][:, 4:])))
    missed.heads[0][0, 3, 1, 3] = -20.0
    fewer = Cells(nn.Identity()).decoded(missed.heads[0])
    assert task.agreement(fewer, sure) == pytest.approx(2 * 1 / 3)


def test_equal_heads_are_compared_raw() -> None:
    task = make_task()
    images = torch.rand(4, 3, *SIZE)
    teacher, student = make_network(0)(images), make_network(1)(images)
    expected = (teacher.heads[0] - student.heads[0]).pow(2).mean()
    assert torch.allclose(task.distill_loss(student, teacher), expected)
    assert task.distill_loss(teacher, teacher) == 0


def test_other_heads_learn_the_detections_with_the_students_own_loss(sure: Predictions) -> None:
    """Each is drawn with its score's probability: on average the loss of the sure box, and of the other one half the
    time; the KL of the classes is there for both, weighted by scores 1 and 1/2."""
    task = make_task(distill="boxes", min_teacher_score=0.2, temperature=1.0)
    torch.manual_seed(0)
    student = said(torch.randn(1, 3, 2, 4), torch.randn(1, 2, 4), torch.zeros(1, 2, 2, 4))
    student.boxes[0, 1] = sure.boxes[0, 1]  # the best place for a box is where boxes overlap by more than half
    drawn = torch.stack([task.distill_loss(student, sure) for _ in range(400)])

    both = boxes.pack([(torch.tensor([2, 0]), BOXES)], 32)
    one = boxes.pack([(torch.tensor([2]), BOXES[:1])], 32)
    terms = []
    for place, weight in ((1, 1.0), (7, 0.5)):
        log_t = sure.class_logits[0, place].log_softmax(0)
        log_s = student.class_logits[0, place].log_softmax(0)
        terms.append((weight, (log_t.exp() * (log_t - log_s)).sum()))
    kl = sum(weight * term for weight, term in terms) / 1.5
    values = sorted({round(float(value), 4) for value in drawn})
    expected = sorted(round(float(student.own_loss(t) + kl), 4) for t in (both, one))
    assert values == pytest.approx(expected, abs=2e-3)
    share = (drawn - drawn.min()).abs().lt(1e-3).float().mean()
    assert 0.4 < share < 0.6


def test_heads_that_differ_cannot_be_compared_raw(sure: Predictions) -> None:
    coarse = said(torch.zeros(1, 3, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 2, 1, 2))
    with pytest.raises(NetworkError, match=r"distill=heads needs equal heads.*use task.distill=boxes"):
        make_task(distill="heads").distill_loss(coarse, sure)
    assert torch.isfinite(make_task().distill_loss(coarse, sure))


def test_equal_heads_of_a_first_stage_alone_are_not_compared_raw(sure: Predictions) -> None:
    first_stage = replace(sure, whole=False)
    assert make_task().distill_loss(sure, first_stage) > 0  # the loss on boxes, which is not 0 for its own answer
    with pytest.raises(NetworkError, match=r"before its second stage"):
        make_task(distill="heads").distill_loss(sure, first_stage)


ONE = described("mine", anchors=[[(8, 16), (32, 32)], [(64, 64)]], stride=16)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            described("mine", anchors=[[(8, 16), (40, 32)], [(64, 64)]], stride=16),
            "differ in anchors, (32, 32) of the teacher's and (40, 32) of the student's: give both the same, or use",
        ),
        (
            described("mine", anchors=[[(8, 16), (32, 32)], [(64, 64)]], stride=8),
            "stride, 16 of the teacher's and 8 of",
        ),
        (described("yours", anchors=ONE[1][1], stride=16), "family, 'mine' of the teacher's and 'yours' of"),
        (ONE[:-1], "stride, 16 of the teacher's and 'nothing' of the"),
    ],
)
def test_equal_heads_that_mean_other_boxes_are_not_compared_raw(other: Any, line: str, sure: Predictions) -> None:
    """Under "auto" the teacher's detections are learnt, though the raw difference is 0."""
    teacher, student = replace(sure, decoding=ONE), replace(sure, decoding=other)
    assert make_task(distill="heads").distill_loss(teacher, teacher) == 0
    torch.manual_seed(0)
    expected = make_task(distill="boxes").distill_loss(student, teacher)
    torch.manual_seed(0)
    assert make_task().distill_loss(student, teacher) == expected > 0
    with pytest.raises(NetworkError, match=r"^task\.distill=heads needs heads that mean the same boxes") as caught:
        make_task(distill="heads").distill_loss(student, teacher)
    assert line in str(caught.value) and str(caught.value).endswith("or use task.distill=boxes")
    assert "\n" not in str(caught.value)
    moved = replace(student, heads=tuple(head + 1 for head in student.heads))
    assert make_task().disagreement(moved, teacher) == 0  # of `class_probs`, which are the same
    assert make_task().disagreement(replace(moved, decoding=ONE), teacher) == 1


def test_heads_of_which_nothing_is_known_are_compared_by_their_shapes(sure: Predictions) -> None:
    known = replace(sure, decoding=ONE)
    for student, teacher in ((sure, sure), (sure, known), (known, sure)):
        assert (
            make_task().distill_loss(student, teacher) == make_task(distill="heads").distill_loss(student, teacher) == 0
        )


def test_how_heads_are_decoded_goes_wherever_predictions_go(sure: Predictions) -> None:
    known = replace(sure, decoding=ONE)
    others = [known[:1], known[torch.tensor([0])], known.floats(), known.detach(), known.each(torch.clone)]
    others += [joined([known, known]), known.where(torch.tensor(True), known), known.scaled(1.0, 1.0)]
    assert all(other.decoding == ONE for other in others)
    twice = known.scaled(2.0, 2.0)
    assert make_task().distill_loss(twice, known.scaled(2.0, 2.0)) == 0
    assert make_task().distill_loss(twice, known) > 0  # the same heads mean boxes of other sizes
    assert sure.scaled(2.0, 2.0).decoding == ()


def test_a_decoding_is_of_plain_values_and_what_objects_hold_of_them() -> None:
    class Coder:
        def __init__(self) -> None:
            self.weights, self.anchors, self._hidden = [1.0, 2.0], torch.zeros(3), 7

    made = described("mine", coder=Coder(), sizes=[[8], [16]], stride=None)
    assert dict(made) == {
        "family": "mine",
        "coder": "Coder",
        "weights of coder": (1.0, 2.0),
        "anchors of coder": None,
        "sizes": ((8,), (16,)),
        "stride": "NoneType",
    }
    assert hash(made) == hash(described("mine", coder=Coder(), sizes=[[8], [16]], stride=None))


def test_target_loss_is_the_detectors_own_without_degenerate_boxes() -> None:
    network, task = make_network(), make_task()
    outputs = network(torch.rand(2, 3, *SIZE))
    good = torch.tensor([[1.0, 4, 4, 30, 28]])
    bad = torch.tensor([[1.0, 4, 4, 4.2, 28], [2, 9, 9, math.nan, 20], [-1, 0, 0, 9, 9], [-3, 0, 0, 30, 30]])
    targets = torch.stack([torch.cat([good, bad]), torch.cat([bad, bad[:1]])])
    empty = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    expected = network.network.loss(outputs.heads, [(torch.tensor([1]), good[:, 1:]), empty])
    assert torch.equal(task.target_loss(outputs, targets), expected)


def test_layout_shows_where_boxes_of_a_class_are() -> None:
    targets = boxes.pack([(torch.tensor([0, 2]), torch.tensor([[0.0, 0, 64, 32], [16, 8, 32, 24]]))], 4)
    maps = make_task().class_maps(targets)
    assert maps.shape == (1, CLASSES, 4, 8)
    inner = torch.zeros(4, 8)
    inner[1:3, 2:4] = 1
    assert torch.equal(maps[0, 2], inner)  # the smaller box lies on top
    assert torch.equal(maps[0, 0], 1 - inner)
    assert not maps[0, 1].any()


def test_targets_follow_a_flip() -> None:
    task = make_task()
    targets = boxes.pack([(torch.tensor([1]), torch.tensor([[4.0, 2, 20, 12]]))], 2)
    images = torch.zeros(1, 3, *SIZE)
    images[..., 2:12, 4:20] = 1
    for _ in range(8):
        moved, move = augment.shift_and_flip(images, 3)
        left, top, right, bottom = task.move_targets(targets, move)[0, 0, 1:].tolist()
        seen = moved[0, 0].nonzero()
        assert (left, top) == pytest.approx((seen[:, 1].min().item(), seen[:, 0].min().item()), abs=0.01)
        assert (right - 1, bottom - 1) == pytest.approx((seen[:, 1].max().item(), seen[:, 0].max().item()), abs=0.01)


def test_sampled_targets_are_one_box_an_image_with_every_class_as_often() -> None:
    targets = make_task().sample_targets(300, CPU, torch.Generator().manual_seed(0))
    assert boxes.present(targets).sum(1).eq(1).all()
    assert torch.bincount(targets[:, 0, 0].long()).tolist() == [100, 100, 100]
    skewed = make_task(class_frequencies=(1.0, 0.0, 3.0), boxes_per_image=(2, 4)).sample_targets(300, CPU)
    labels = torch.cat([labels for labels, _ in boxes.unpack(skewed)])
    assert not (labels == 1).any()
    assert 2 < (labels == 2).sum() / (labels == 0).sum() < 4.5


def test_predictions_index_join_and_scale() -> None:
    network, task = make_network(), make_task()
    outputs = network(torch.rand(4, 3, *SIZE))
    targets = task.sample_targets(4, CPU)
    again = task.join([outputs[:1], outputs[1:]])
    assert torch.equal(again.boxes, outputs.boxes)
    assert torch.equal(again.own_loss(targets), outputs.own_loss(targets))
    some = torch.tensor([2, 0])
    assert torch.equal(outputs[some].own_loss(targets[some]), outputs[some].own_loss(targets[some]))
    twice = outputs.scaled(2, 2)
    doubled = torch.cat([targets[..., :1], 2 * targets[..., 1:]], -1)
    assert torch.allclose(twice.own_loss(doubled), outputs.own_loss(targets), atol=1e-5)
    assert torch.equal(twice.boxes, 2 * outputs.boxes)


def test_another_input_size_and_channel_order_are_the_wrappers_business() -> None:
    network = make_network()
    small = Normalized(network.network, input_size=(16, 32), channel_order="bgr")
    images = torch.rand(2, 3, *SIZE)
    by_hand = network.network(F.interpolate(images, size=(16, 32), mode="bilinear", antialias=True).flip(1))
    outputs = small(images)
    assert torch.allclose(outputs.scores, by_hand.scores, atol=1e-6)
    assert torch.allclose(outputs.boxes, 2 * by_hand.boxes, atol=1e-4)
    assert bare(small) is network.network.network


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.scores, "answers a Tensor, not a detector's predictions"),
        (lambda o: o.each(lambda v: v * math.nan), "class_logits that are not finite"),
        (lambda o: replace(o, scores=o.scores + 2), "scores outside 0 to 1"),
    ],
)
def test_answers_in_another_form_are_refused(change: Any, message: str, sure: Predictions) -> None:
    with pytest.raises(NetworkError, match=message):
        make_task().check(change(sure), "teacher")


def test_another_number_of_classes_is_refused(sure: Predictions) -> None:
    with pytest.raises(NetworkError, match=r"answers 3 classes, but the task has 4; set task.num_classes=3"):
        Detection(num_classes=4, image_size=SIZE).check(sure, "teacher")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes_per_image": (0, 2)}, "boxes_per_image is"),
        ({"boxes_per_image": (3, 2)}, "boxes_per_image is"),
        ({"box_sides": (0.0, 0.5)}, "box_sides is"),
        ({"box_sides": (0.2, 1.5)}, "box_sides is"),
        ({"nms_iou": 50.0}, "nms_iou is 50.0; it must be from 0 to 1"),  # percent
        ({"score_threshold": 30.0}, "score_threshold is 30.0; it must be from 0 to 1"),
        ({"min_teacher_score": -0.1}, "min_teacher_score is -0.1; it must be from 0 to 1"),
        ({"class_frequencies": (1.0, 2.0)}, "class_frequencies has 2 numbers for 3 classes"),
        ({"class_frequencies": (0.0, 0.0, 0.0)}, "not all 0"),
    ],
)
def test_options_that_make_no_boxes_or_find_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_task(**options)
