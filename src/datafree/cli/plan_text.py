"""The text that `datafree plan` prints: groups of aligned lines, and a table of devices."""

from __future__ import annotations

from datafree.cli.inspect_text import Rows, group
from datafree.preflight.plan import Plan
from datafree.text import counted, shown, size, table, time


def plan_text(plan: Plan) -> str:
    """The whole text."""
    of = ""
    if plan.images is not None:
        shards, files = counted(plan.shards or 0, "shard"), counted(plan.files or 0, "file")
        of = f": {counted(plan.images, 'image')} in {shards}, {files}"
    once: Rows = [(row.what, f"{row.often:,} x {time(row.each)}", time(row.often * row.each)) for row in plan.work]
    needs: Rows = [("memory", size(plan.memory), "beside Python and torch")]
    needs += [("disk", size(count), what) for what, count in plan.disk.items()]
    needs.append(("disk", size(sum(plan.disk.values())), "in all"))
    step = "a step" if plan.images is None else "a shard"
    rows = [["devices", "time", "device-hours", step, *(["exchanged a step"] if plan.images is None else [])]]
    rows += [
        [
            f"{on.devices}",
            time(on.seconds),
            f"{on.device_hours:.3g}",
            time(on.step),
            *([size(on.exchanged)] if plan.images is None else []),
        ]
        for on in plan.on
    ]
    where = plan.hardware["accelerator"] if plan.device.startswith("cuda") else plan.hardware["processor"]
    said: Rows = [
        (
            "calibrated",
            f"in {time(plan.calibrated)} on {where} ({plan.device}), {plan.hardware['threads']} threads",
            "",
        ),
        *(("assumed", line, "") for line in plan.assumed),
        *(("note", line, "") for line in plan.notes),
    ]
    parts = [
        shown(f"{plan.what} of {plan.recipe}{of}; training.batch_size {plan.batch_size}"),
        *group("one device", once),
        *group("needs", needs),
        "",
        table(rows),
        *group("this says", said),
    ]
    return "\n".join(parts)
