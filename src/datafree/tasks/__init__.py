"""The kinds of answer. A new task is one file here and one line in TASKS."""

from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.multilabel import MultiLabel
from datafree.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "multilabel": MultiLabel,
    "segmentation": Segmentation,
}

__all__ = ["TASKS", "Classification", "Detection", "MultiLabel", "Segmentation", "Task"]
