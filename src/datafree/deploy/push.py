"""Upload of a finished run's export to a repository of the Hugging Face Hub.

Only the files that `datafree export` writes leave the machine: no data, no images, no paths of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datafree.deploy.written_names import EXPORTED, is_export_of
from datafree.errors import DatafreeError, RunError
from datafree.storage.places import require_student
from datafree.text import one_line, show, size

if TYPE_CHECKING:  # torch takes seconds to import: only making an export needs it
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was uploaded, or would be."""

    repo: str
    files: dict[str, int]  # name -> bytes
    url: str | None  # of the repository; None: nothing was uploaded
    notes: list[str]


def require_repository(repo: str) -> None:
    """Raise DatafreeError for what is no repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not listed

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise DatafreeError(
            f"{show(repo)} is no repository's name, such as me/my-student: {one_line(error)}"
        ) from error


def push_run(
    run: Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    student: str | nn.Module | None = None,
    task: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Upload RUN/export, made first where there is none, to `repo` ("me/name"), which is created where there is none.

    The token is huggingface_hub's own (`hf auth login`, HF_TOKEN), the server HF_ENDPOINT. `dry_run` uploads and makes
    nothing. `student` and `task` as in `load_student`, where the export is made. Raises DatafreeError.
    """
    require_repository(repo)
    require_student(run)
    from huggingface_hub import HfApi, constants

    folder, notes = run / "export", list[str]()
    if not (folder / "config.json").is_file():
        if dry_run:
            return Pushed(repo=repo, files={}, url=None, notes=[f"{run} holds no export: it would be made first"])
        from datafree.deploy.export_run import export_run  # with torch, which nothing else here waits for

        notes += export_run(run, student=student, task=task, say=say).notes
    elif not is_export_of(run, folder):
        raise RunError(f"{folder} is of another student than {run} holds now; run `datafree export {run}` again")
    files = {name: (folder / name).stat().st_size for name in EXPORTED if (folder / name).is_file()}
    if dry_run:
        return Pushed(repo=repo, files=files, url=None, notes=["nothing was uploaded (--dry-run)"])
    if constants.HF_HUB_OFFLINE:
        would = ", ".join(f"{name} ({size(count)})" for name, count in files.items())
        raise DatafreeError(f"HF_HUB_OFFLINE is set, so nothing was uploaded to {repo}; it would be: {would}")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    say(f"uploading {folder} to {repo}")
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(files),
            delete_patterns=[name for name in EXPORTED if name not in files],  # of an earlier student
            commit_message="A student distilled by datafree",
        )
    except Exception as error:  # the server's, the network's, huggingface_hub's own
        raise DatafreeError(
            f"cannot upload to {repo}: {one_line(error)}; `hf auth login` or HF_TOKEN says who you are, --dry-run what "
            "would be uploaded"
        ) from error
    return Pushed(repo=repo, files=files, url=f"{api.endpoint}/{repo}", notes=notes)
