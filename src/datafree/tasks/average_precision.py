"""Average precision of detections, as COCO defines it.

B images, M rows of targets, N boxes of one image, C classes, T IoU thresholds, R recall thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datafree.errors import DataError
from datafree.ops.detections import detect
from datafree.ops.predictions import Predictions
from datafree.tasks.base import Scores, unseen

Numbers = NDArray[np.float64]


@final
@dataclass(kw_only=True)
class AveragePrecision:
    """AP of an image's surest detections: at IoU 0.5 (ap50), 0.75 (ap75), and the mean of 0.50, 0.55, ..., 0.95 (ap).

    Detections that lie in a crowd are neither right nor wrong. A class without labelled boxes has no AP: it is left out
    of the means, whatever is detected as it.
    """

    class_names: list[str]
    image_size: tuple[int, int]  # (height, width), pixels
    nms_iou: float  # IoU above which only the surer of two detections of a class stays
    score_threshold: float = 0.001  # score below which nothing counts as found
    max_detections: int = 100  # detections an image, the surest
    truth: list[Numbers] = field(init=False, default_factory=list)  # an image's labelled rows (N, 5), as in targets
    found: list[Numbers] = field(init=False, default_factory=list)  # its detections (N, 6): class, box, score

    def update(self, outputs: Predictions, targets: Tensor) -> None:
        """Keep what `outputs` find and what targets (B, M, 5) say is there."""
        seen = detect(
            outputs,
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            max_detections=self.max_detections,
            size=self.image_size,
        )
        for one, rows in zip(seen, targets.detach().cpu().double().numpy(), strict=True):
            self.truth.append(rows[rows[:, 0] != -1])
            columns = (one.labels[:, None], one.boxes, one.scores[:, None])
            self.found.append(np.concatenate([column.cpu().double().numpy() for column in columns], 1))

    def compute(self) -> Scores:
        """ap50, ap and ap75; ap50 and ap of each class. Raises DataError where no box is labelled."""
        if not any((rows[:, 0] >= 0).any() for rows in self.truth):
            raise DataError(f"no box was scored: none is labelled in the {len(self.truth)} images")
        precision = self._precision()  # (T, R, C)
        known = precision[0, 0] > -1
        each = precision.mean(1)  # (T, C): AP is the mean over recalls
        curves = {"ap50": each[0], "ap": each.mean(0), "ap75": each[5]}  # T: 0.50, 0.55, ..., 0.95
        return Scores(
            values={name: float(curve[known].mean()) for name, curve in curves.items()},
            per_class={
                name: {self.class_names[c]: float(curves[name][c]) for c in np.flatnonzero(known)}
                for name in ("ap50", "ap")
            },
            remarks=unseen(self.class_names, known.tolist(), "box"),
        )

    def _precision(self) -> Numbers:
        """(T, R, C) precision at each IoU and recall; -1 for classes without labelled boxes."""
        import faster_coco_eval as coco  # only where boxes are scored

        truth, found = _rows(self.truth), _rows(self.found)  # (N, 1 + 5 or 6): image, class, box, score
        crowd = truth[:, 1] < 0
        truth[crowd, 1] = -2 - truth[crowd, 1]
        for rows in (truth, found):
            rows[:, 4:6] -= rows[:, 2:4]  # COCO's boxes: x, y, width, height
        annotations = [
            {
                "id": index,  # from 1: 0 would mean "not matched"
                "image_id": int(image),
                "category_id": int(label),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(hidden),
            }
            for index, ((image, label, *box), hidden) in enumerate(zip(truth.tolist(), crowd, strict=True), 1)
        ]
        height, width = self.image_size
        labelled = coco.COCO(
            {
                "images": [{"id": i, "height": height, "width": width} for i in range(len(self.truth))],
                "annotations": annotations,
                "categories": [{"id": c, "name": name} for c, name in enumerate(self.class_names)],
            },
            print_function=_silent,
        )
        detected = labelled.loadRes(found[:, [0, 2, 3, 4, 5, 6, 1]])  # image, box, score, class
        scoring = coco.COCOeval_faster(labelled, detected, "bbox", print_function=_silent)
        scoring.params.maxDets = [self.max_detections]
        scoring.params.areaRng, scoring.params.areaRngLbl = scoring.params.areaRng[:1], ["all"]
        scoring.evaluate()
        scoring.accumulate()
        precision: Numbers = scoring.eval["precision"]  # (T, R, C, areas, detections an image)
        return precision[..., 0, 0]


def _rows(images: list[Numbers]) -> Numbers:
    """The rows of all images as one array, each after its image's index."""
    indices = np.repeat(np.arange(len(images)), [len(rows) for rows in images])
    return np.concatenate([indices[:, None], np.concatenate(images)], 1, dtype=np.float64)


def _silent(*_: object) -> None:
    """In place of print: a score is returned, not shown."""
