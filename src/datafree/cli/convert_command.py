"""The command `convert`: tensors out of a file that is a program, as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafree.cli.lines import result
from datafree.preflight.option_values import require_there
from datafree.storage.places import require_new
from datafree.text import counted


def convert(
    old: Annotated[Path, typer.Argument(help="A file of torch.save: a whole module, or a checkpoint.")],
    new: Annotated[Path, typer.Argument(help="The file to write, NAME.safetensors.")],
) -> None:
    """Take the tensors out of a pickled module or checkpoint, without running it, and write them as safetensors."""
    require_there("OLD", old, "file")
    require_new(new, ".safetensors")
    from datafree.networks.checkpoints.convert import convert as write

    made = write(old, new)
    of = f" of {made.kind}" if made.kind else ""
    where = f" (under {made.key!r})" if made.key else ""
    held = f"{counted(made.tensors, 'tensor')}, {counted(made.values, 'value')}"
    result(f"{new}: {held}{of}{where}; nothing of {old} was run")
