"""The task of a network as its own directory says it, where the form of its answers is that of several tasks."""

from __future__ import annotations

from datafree.networks.huggingface.directory import open_directory
from datafree.networks.load import NetworkSpec


def said_task(spec: NetworkSpec) -> str | None:
    """The kind of task that a directory's config.json names, of answers (B, C); None where nobody says.

    Raises NetworkError for a directory that cannot be read.
    """
    return "multilabel" if spec.is_directory and open_directory(spec.network).multilabel else None


def other_task(spec: NetworkSpec, kind: str) -> str:
    """What to say of a network that is to teach classification, but says another task itself; "" for any other kind."""
    said = said_task(spec) if kind == "classification" else None
    return "" if said is None else f"its config.json says problem_type multi_label_classification: set task.kind={said}"
