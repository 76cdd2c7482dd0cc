"""A detector's detections in numpy, as code for a model card: the same as `datafree.ops.detections.detect` finds."""

from __future__ import annotations

_DETECTIONS = '''\
def detections(
    boxes, scores, size, score_threshold={score_threshold}, nms_iou={nms_iou}, max_detections={max_detections}
):
    """Of one image: boxes (L, 4) in pixels, scores (L, C), size (height, width) -> class ids, boxes, scores."""
    order = np.argsort(-scores, axis=None, kind="stable")[:1000]  # pairs of a location and a class, the surest
    places, labels = np.divmod(order, scores.shape[1])
    sure, boxes = scores.ravel()[order], np.clip(boxes[places], 0, [size[1], size[0]] * 2)
    good = (sure > score_threshold) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    labels, boxes, sure = labels[good], boxes[good], sure[good]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    for i in range(len(boxes)):  # of two of a class that overlap only the surer stays
        same = [k for k in kept if labels[k] == labels[i]]
        low, high = np.maximum(boxes[i, :2], boxes[same, :2]), np.minimum(boxes[i, 2:], boxes[same, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        if not (shared > nms_iou * (area[i] + area[same] - shared)).any():
            kept.append(i)
    kept = kept[:max_detections]
    return labels[kept], boxes[kept], sure[kept]


labels, found, sure = detections(boxes[0], scores[0], {size})
'''


def numpy_detections(*, score_threshold: float, nms_iou: float, max_detections: int, size: tuple[int, int]) -> str:
    """Python that finds `labels`, `found` boxes and how `sure` they are, in the first of some images.

    It does so in arrays `boxes` (B, L, 4) and `scores` (B, L, C); images are of `size` (height, width).
    """
    return _DETECTIONS.format(
        score_threshold=score_threshold, nms_iou=nms_iou, max_detections=max_detections, size=tuple(size)
    )
