"""CamVid: the paper's Table 1, Table 2 and mixing-ratio sweep (arXiv 2011.00809), DFAD and noise, over seeds.

    python benchmarks/camvid.py --size cpu --data DIR         # everything; DIR defaults to $DATAFREE_DATA
    python benchmarks/camvid.py --size long --max-time 2h    # long schedules, in pieces: again until it is done
    python benchmarks/camvid.py --size paper --max-time 9m    # the paper's networks, on a GPU

Every cell (a row with a seed) is a process of its own and leaves a small JSON file in --work; a cell that is there is
not run again. The results go to benchmarks/results/camvid-SIZE.json, the tables to docs/results.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from camvid_rows import (
    CLASSES,
    EXTRA,
    IGNORED,
    MAIN,
    PUBLISHED,
    PUBLISHED_2,
    RATIOS,
    SIZES,
    SOURCES,
    TABLE_2,
    Cell,
    Size,
    extra_rows,
    needs,
    ratio_row,
    schedule_row,
    table_2_row,
    with_needs,
)
from cells import Stop, measure, minutes, read_cells, run_cells, seconds, spread
from datafree.engine.artifacts import save_artefacts
from datafree.engine.build_networks import prepare
from datafree.engine.loop import distill
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import save_weights
from datafree.ops import modes
from datafree.storage.run_directory import Run
from measured import seeds_in, with_earlier
from pairs import Results
from results import write_results, write_table
from supervised import load_folder, train_supervised

__all__ = ["EXTRA", "SIZES", "SOURCES", "Cell"]  # of camvid_rows, reached through here too


def run_cell(row: str, cell: Cell) -> dict[str, float]:
    """Train and score one row; returns its metrics. Raises Interrupted when time is up."""
    training = cell.training()
    device = modes.choose_device(training.device)
    dtype = modes.choose_precision("auto", device)
    folder = cell.folder / row
    task = cell.task(distill="l1") if row == "dfad" else cell.task()
    modes.seed_everything(cell.seed)
    student: nn.Module
    if row in ("teacher", "student_labels"):
        spec = cell.size.teacher if row == "teacher" else cell.size.student
        student = prepare(spec, task, row, device, dtype)
        wide = (cell.size.side, round(cell.size.side * 170 / 128))  # the whole picture: crops move sideways
        images, masks = load_folder(
            cell.data / "camvid" / "train", image_size=wide, num_classes=CLASSES, ignore_index=IGNORED
        )
        train_supervised(
            student,
            task,
            images,
            masks,
            steps=cell.size.teacher_steps if row == "teacher" else cell.size.student_steps,
            batch_size=cell.size.batch_size,
            lr=cell.size.lr,
            weight_decay=5e-4,
            seed=cell.seed,
            image_size=task.image_size,
            decay="step",
            augment=True,
            device=device,
            dtype=dtype,
            stop=lambda: cell.stop() is not None,
            state_path=folder / "state.pt",
        )
        if row == "teacher":
            save_weights(student.network, folder / "teacher.safetensors")
    else:
        teacher = prepare(
            replace(cell.size.teacher, weights=cell.folder / "teacher" / "teacher.safetensors"),
            task,
            row,
            device,
            dtype,
        )
        modes.seed_everything(cell.seed)
        student = prepare(cell.size.student, task, row, device, dtype)
        if row == "dfad":
            size = cell.size
            training = cell.training(
                optimizer="sgd", lr=size.dfad_lr, steps=size.dfad_steps, batch_size=size.dfad_batch
            )
        source = SOURCES[row](cell)
        run = Run(folder, {"row": row, "training": asdict(training)})
        distill(
            task=task,
            teacher=teacher,
            student=student,
            source=source,
            training=training,
            run=run,
            stop=cell.stop,
        )
        run.close()
        save_artefacts(source, run.path)
    labelled = task.open_dataset(cell.data / "camvid" / "val")
    return evaluate(student, task, labelled, device=device).values


def run_one(row: str, size: str, seed: int, data: Path, work: Path, max_time: float) -> int:
    """Run a cell in this process and leave its JSON file; 75 if time was up before its end."""

    def run(stop: Stop) -> dict[str, float]:
        return run_cell(row, Cell(size=SIZES[size], seed=seed, data=data, folder=work / f"seed{seed}", stop=stop))

    return measure((row, seed), work, max_time, run)


def collect(size: str, work: Path) -> None:
    """Write the results file and the tables from the cells that are there and from those of the file as it was; the
    smoke size's are only shown. Without a cell the file stays as it is.
    """
    rows = read_cells(work, [*MAIN, *extra_rows(SIZES[size])])
    whole = with_earlier("camvid", size, rows)
    text = tables(whole, SIZES[size])
    if size == "smoke":
        print(text)
        return
    command = f"python benchmarks/camvid.py --size {size}"
    if rows:
        write_results("camvid", size, whole, command=f"{command} --seeds {seeds_in(whole)}")
    write_table("results.md", f"camvid-{size}", text, section=f"## CamVid, size `{size}`\n\n`{command}`.")


def tables(rows: Results, size: Size) -> str:
    """Markdown: ours beside the published numbers."""

    def ours(row: str, metric: str) -> str:
        return spread([100 * cell["metrics"][metric] for cell in rows.get(row, [])])

    def theirs(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    lines = [
        "| row | mIoU % | pixel accuracy % | seeds | minutes | paper mIoU | paper accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in MAIN:
        cells = rows.get(row, [])
        published = PUBLISHED[row]
        lines.append(
            f"| {row} | {ours(row, 'miou')} | {ours(row, 'pixel_accuracy')} | {len(cells)} | {minutes(cells)} "
            f"| {theirs(published[0])} | {theirs(published[1])} |"
        )
    lines += ["", "Table 2: weights of the entropy and the diversity loss (mIoU % / pixel accuracy %).", ""]
    lines += [
        "| entropy | diversity | plain (4) | paper | weighted (5) | paper |",
        "|---|---|---|---|---|---|",
    ]
    for index, (e, d) in enumerate(TABLE_2):
        cells_of = []
        for kind in ("plain", "weighted"):
            row = table_2_row(e, d, kind)
            paper = PUBLISHED_2[kind][index]
            cells_of.append(f"{ours(row, 'miou')} / {ours(row, 'pixel_accuracy')} | {paper[0]:.1f} / {paper[1]:.1f}")
        lines.append(f"| {e} | {d} | {cells_of[0]} | {cells_of[1]} |")
    lines += ["", "Mixing ratio alpha : beta of proxy and generated images (mIoU %).", ""]
    lines += [
        "| generator | " + " | ".join(f"{a}:{b}" for a, b in RATIOS) + " |",
        "|---" * (len(RATIOS) + 1) + "|",
    ]
    for gan in ("dcgan", "degan_weighted"):
        lines.append(f"| {gan} | " + " | ".join(ours(ratio_row(gan, a, b), "miou") for a, b in RATIOS) + " |")
    if size.schedules:
        lines += ["", "GAN updates of weighted diversity (mIoU %); mixed: 1:1 with proxy photos.", ""]
        lines += ["| GAN updates | generated | mixed | proxy photos |", "|---|---|---|---|"]
        for updates in sorted({*size.schedules, size.gan_updates}):
            both = [
                ours(schedule_row(row, updates, size), "miou") for row in ("degan_weighted", "degan_weighted_mixed")
            ]
            lines.append(f"| {updates:,} | {both[0]} | {both[1]} | {ours('kd_proxy', 'miou')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAFREE_DATA"))
    parser.add_argument("--work", type=Path, help="default: work/camvid-SIZE")
    parser.add_argument(
        "--rows",
        nargs="+",
        help="only these, and those whose networks they use; default: all, those of Table 2, of the sweep and of other "
        "schedules for the first seed",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; with more than one, a thread for each")
    parser.add_argument(
        "--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h); run again to go on"
    )
    parser.add_argument("--collect-only", action="store_true", help="only write results and tables from finished cells")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        left = seconds(arguments.max_time)
    except ValueError as error:
        parser.error(str(error))
    work = arguments.work or Path("work") / f"camvid-{arguments.size}"
    known = [*MAIN, *extra_rows(SIZES[arguments.size])]
    if wrong := [row for row in arguments.rows or [] if row not in known]:
        parser.error(f"there is no row {wrong[0]!r}; known: {', '.join(known)}")
    if arguments.collect_only:
        collect(arguments.size, work)
        return 0
    if arguments.data is None or not (arguments.data / "camvid").is_dir():
        print(
            "error: --data (or DATAFREE_DATA) must name a folder with camvid/ and road-proxy/",
            file=sys.stderr,
        )
        return 2
    if arguments.one:
        return run_one(arguments.one[0], arguments.size, int(arguments.one[1]), arguments.data, work, left)
    cells = [(row, seed) for seed in arguments.seeds for row in with_needs(arguments.rows or MAIN)]
    cells += [] if arguments.rows else [(row, arguments.seeds[0]) for row in known if row not in MAIN]
    script = [sys.executable, __file__, "--size", arguments.size, "--data", str(arguments.data), "--work", str(work)]
    code = run_cells(
        script,
        cells,
        work,
        max_time=left,
        jobs=arguments.jobs,
        needs=lambda cell: [(row, cell[1]) for row in needs(cell[0])],
    )
    if code:
        return code
    collect(arguments.size, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
