"""The help of the command: its verbs grouped by what one wants to do, each with an example."""

from __future__ import annotations

from typing import Any

# What one wants to do -> the verbs that do it.
GROUPS = {
    "See it work": ("demo", "list"),
    "Make a student": ("inspect", "convert", "init", "plan", "distill", "synthesize"),
    "Look at a run": ("watch", "report", "evaluate"),
    "Ship it": ("calibrate", "export", "bench", "push"),
}
EXAMPLES = {
    "demo": "datafree demo --task classification --quick",
    "list": "datafree list",
    "inspect": "datafree inspect timm/resnet18 --weights teacher.safetensors --size 64x64",
    "convert": "datafree convert whole-module.pt teacher.safetensors",
    "init": "datafree init timm/resnet18 --weights teacher.safetensors > my.yaml",
    "plan": "datafree plan fashion-demo training.steps=4000",
    "distill": "datafree distill fashion-demo --out runs/first --max-time 20m",
    "synthesize": "datafree synthesize fashion-demo --images 1000 --out made",
    "watch": "datafree watch runs/first",
    "report": "datafree report runs/first runs/second --out comparison.html",
    "evaluate": "datafree evaluate runs/first --data labelled",
    "calibrate": "datafree calibrate teacher.safetensors --size 32x32 --mean 0.5 --std 0.25 --out calib",
    "export": "datafree export runs/first --to onnx,openvino --int8 --data labelled",
    "bench": "datafree bench runs/first --threads 1",
    "push": "datafree push runs/first me/my-student --dry-run",
}


def example(verb: str) -> str:
    """What stands below a verb's options."""
    return f"Example: {EXAMPLES[verb]}" if verb in EXAMPLES else ""


def write_verbs(group: Any, context: Any, formatter: Any) -> None:
    """The verbs of a click group, in the sections of `GROUPS`; others after them."""
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    grouped = {name for names in GROUPS.values() for name in names}
    sections = {**GROUPS, "Other verbs": tuple(name for name in commands if name not in grouped)}
    width = formatter.width - 6 - max(map(len, commands))
    for title, names in sections.items():
        rows = [(name, commands[name].get_short_help_str(width)) for name in names if name in commands]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
