"""A word that stands alone for a teacher: which library's network or packaged recipe may be meant. No torch."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from pathlib import Path

from datafree.errors import RecipeError
from datafree.preflight.teacher_file import RECIPES
from datafree.recipe.files import packaged_recipes, require_recipe
from datafree.text import did_you_mean, show


def hint(name: str) -> str:
    """What may be meant, to append; or nothing. Of the libraries' networks those that `builtin/` has an index of."""
    index = resources.files("datafree") / "builtin" / "architectures.json"
    known = json.loads(index.read_text("utf-8"))["networks"]
    whole = [f"{library}/{name}" for library in ("torchvision", "timm") if f"{library}/{name}" in known]
    if whole:
        return f" (did you mean {' or '.join(whole)}?)"
    if recipe := did_you_mean(name, packaged_recipes()):
        return recipe
    alone = {network.partition("/")[2]: network for network in reversed(known)}
    close = difflib.get_close_matches(name[:64], alone, n=1)
    return f" (did you mean {alone[close[0]]}?)" if close else ""


def require_known(teacher: str) -> None:
    """Raise RecipeError for a word that is no file and no packaged recipe, and for a recipe that cannot be read."""
    if not Path(teacher).exists() and teacher not in packaged_recipes() and not teacher.endswith(RECIPES):
        listed = "; `datafree list` shows some"
        raise RecipeError([f"there is no file, network or packaged recipe {show(teacher)}{hint(teacher)}{listed}"])
    require_recipe(teacher)
