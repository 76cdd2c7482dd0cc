"""What many shards and many workers cost the files of a data set: indices of up to 100,000 images, and claims.

    python benchmarks/many_shards.py              # a few minutes

Records are written as `datafree synthesize` writes them, for shards of 128 detector images with two boxes each; the
images themselves are left out, since nothing here reads them. Writes benchmarks/results/many_shards-disk.json and the
table in docs/scale.md.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from datafree.config import yaml
from datafree.synthesis.claims import Claims
from datafree.synthesis.shard_index import write_index
from datafree.synthesis.shards import Shards
from datafree.tasks.detection import Detection
from results import write_results, write_table

SHARDS = (80, 782)  # of 128 images: 10,000 and 100,000
IMAGES = 128
CLASSES = [f"class {number:02}" for number in range(80)]
RECIPE: dict[str, Any] = {"name": "many"}


def write_set(path: Path, shards: int) -> None:
    """A set of so many shards, without its images."""
    (path / "shards").mkdir(parents=True)
    (path / "data").mkdir()
    (path / "recipe.yaml").write_text(yaml.render(RECIPE))
    (path / "data" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for number in range(shards):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        names = [f"{number:05}/{index:05}" for index in range(IMAGES)]
        files = {
            f"{kind}/{name}.{end}": digest for name in names for kind, end in (("images", "png"), ("labels", "txt"))
        }
        boxes = [[17, 12.25, 40.5, 210.125, 300.0], [3, 100.5, 20.0, 180.75, 90.25]]
        entries = [{"file_name": f"{name}.png", "width": 320, "height": 320, "boxes": boxes} for name in names]
        record = {"shard": number, "images": IMAGES, "carries": False, "files": files, "entries": entries}
        (path / "shards" / f"{number:05}.json").write_text(json.dumps(record) + "\n")


def seconds(act: Callable[[], object]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    act()
    return time.process_time() - began


def measure(shards: int) -> dict[str, Any]:
    """What a worker does with a set of so many shards."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set"
        write_set(path, shards)
        task = Detection(num_classes=len(CLASSES), image_size=(320, 320))
        opened: list[Shards] = []
        metrics = {"open_seconds": seconds(lambda: opened.append(Shards(path, RECIPE)))}
        with closing(opened[0]) as one:
            metrics["look_seconds"] = seconds(one.look)
        metrics["index_seconds"] = seconds(lambda: write_index(path, task, CLASSES))
        metrics["record_bytes"] = float(sum(file.stat().st_size for file in (path / "shards").iterdir()))
        metrics["annotations_bytes"] = float((path / "data" / "annotations.json").stat().st_size)
        metrics["claim_seconds"] = claim(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"metrics": metrics, "seconds": time.perf_counter() - began, "peak_memory_mib": peak}


def claim(path: Path, tries: int = 1000) -> float:
    """Seconds of one try for a shard that another worker has."""
    with closing(Claims(path)) as holder, closing(Claims(path)) as worker:
        assert holder.take("00000")
        return seconds(lambda: [worker.take("00000") for _ in range(tries)]) / tries


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each size."""
    columns = [
        "images",
        "opening",
        "a look for new shards",
        "index",
        "records",
        "annotations",
        "a try for a taken shard",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|{'--:|' * len(columns)}"]
    for name, (cell,) in rows.items():
        m = cell["metrics"]
        times = [f"{m['open_seconds']:.2f} s", f"{1e3 * m['look_seconds']:.1f} ms", f"{m['index_seconds']:.1f} s"]
        sizes = [f"{m[what] / 1e6:.1f} MB" for what in ("record_bytes", "annotations_bytes")]
        claimed = f"{1e6 * m['claim_seconds']:.0f} µs"
        lines.append(f"| {' | '.join([name, *times, *sizes, claimed])} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    rows = {f"{shards * IMAGES:,}": [measure(shards)] for shards in SHARDS}
    for name, (cell,) in rows.items():
        print(name, cell)
    write_results("many_shards", "disk", rows, command=" ".join(["python benchmarks/many_shards.py", *arguments]))
    write_table("scale.md", "many_shards", table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
