"""Commands on an existing run: `evaluate`, `export`, `bench`, `push`, `report`, `watch`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.cli.lines import remark, result, result_block
from datafree.cli.parameters import Quiet, StudentCode, TaskCode
from datafree.cli.score_table import print_outcome, score_table
from datafree.deploy.format_facts import FACTS, wanted
from datafree.deploy.written_names import require_export, require_int8_options
from datafree.engine.stopping import ending
from datafree.errors import RecipeError
from datafree.preflight.option_values import require_device, require_there
from datafree.recipe.files import require_recipe
from datafree.storage import strict_json
from datafree.storage.places import require_run, require_student
from datafree.text import counted, percent, table


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory with a finished student, or an exported .onnx file.")],
    data: Annotated[Path | None, typer.Option(help="A folder of labelled images.")] = None,
    images: Annotated[Path | None, typer.Option(help="A folder of any images: agreement with --teacher.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="RECIPE", help="The recipe that names the teacher.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    student: StudentCode = None,
    task: TaskCode = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, fractions instead of percent.")] = False,
    quiet: Quiet = False,
) -> None:
    """Score a run's student on labelled data, or compare it with its teacher on images of any kind."""
    if (images is None) != (teacher is None) or (data is None and images is None):
        raise RecipeError(["evaluate needs --data DIR, or --images DIR and --teacher RECIPE, or all three"])
    if run.suffix == ".onnx":
        require_there("RUN", run, "file")
    else:
        require_student(run)
    require_device(device)
    require_there("--data", data, "either")
    require_there("--images", images, "folder")
    if teacher is not None:
        require_recipe(teacher)
    with ending("nothing was kept; run the same command to begin again"):
        from datafree.cli.display import display
        from datafree.evaluation.scoring import agreement_of_run, evaluate_run
        from datafree.recipe.recipe import load_recipe

        with display(quiet=quiet) as shown:
            code: dict[str, Any] = {"device": device, "student": student, "task": task, "log": shown.log}
            scores = {} if data is None else evaluate_run(run, data, **code)
            all_agree = (
                None
                if images is None or teacher is None
                else agreement_of_run(run, images, load_recipe(teacher), **code)
            )
    if as_json:
        content: dict[str, Any] = {who: asdict(score) for who, score in scores.items()}
        if all_agree is not None:
            content |= {"agreement": all_agree.share, "agreement_remarks": all_agree.remarks}
        result_block(strict_json.render(content))
        return
    if scores:
        result_block(score_table(scores))
    for who, score in scores.items():
        for figure, by_class in score.per_class.items():
            result("")
            result(f"{figure} by class, {who}")
            result_block(table([[name, percent(value)] for name, value in by_class.items()]))
    for note in dict.fromkeys(line for score in scores.values() for line in score.remarks):
        result(f"note: {note}")
    if all_agree is not None:
        share = "nothing to compare" if all_agree.share is None else percent(all_agree.share)
        result(f"agreement with the teacher: {share} on {counted(all_agree.compared, 'image')} of {images}")
        for note in all_agree.remarks:
            result(f"note: {note}")


def export(
    run: Annotated[Path, typer.Argument(help="A run directory with a finished student.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write.", show_default="RUN/export")] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="FORMATS", help="Of onnx, litert, openvino, coreml, executorch.", show_default="onnx"),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write student.onnx too.")] = True,
    opset: Annotated[int | None, typer.Option(help="Of ONNX.", show_default="torch's")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Write each format in 8-bit integers too.")] = False,
    qat_steps: Annotated[
        int, typer.Option(metavar="STEPS", help="Train the weights for INT8 first (QAT), on the images of INT8.")
    ] = 0,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to calibrate INT8 with.", show_default="the run's own")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A folder of labelled images: scores what is exported.")] = None,
    student: StudentCode = None,
    task: TaskCode = None,
    quiet: Quiet = False,
) -> None:
    """Write a run's student as files to ship: weights, ONNX and other formats, INT8, a description and a model card."""
    require_int8_options(qat_steps, images, int8)
    wanted(to, FACTS, [], onnx=onnx, opset=opset, int8=int8)
    require_student(run)
    require_export(run / "export" if out is None else out)
    require_there("--images", images, "folder")
    require_there("--data", data, "either")
    with ending("nothing was written, and an export that was there is as it was; run the same command to begin again"):
        from datafree.cli.display import display
        from datafree.deploy.export_run import export_run
        from datafree.deploy.format_table import against
        from datafree.report.page import refresh

        with display(quiet=quiet) as shown:
            done = export_run(
                run,
                out,
                to=to,
                onnx=onnx,
                opset=opset,
                int8=int8,
                qat_steps=qat_steps,
                images=images,
                data=data,
                student=student,
                task=task,
                say=shown.say,
                log=shown.log,
            )
    result(f"export: {done.folder}")
    result_block(table([[name, f"{size:,} bytes"] for name, size in done.sizes.items()]))
    for number, error in done.errors.items():
        result(f"student.onnx against torch, {number} at once: relative error {error:.1e}")
    for made in (one for one in done.made if one.compared):
        result(f"{made.file} against torch, {made.compared} images: {against(made)}")
    print_outcome(done.scores, done.notes)
    if out is None:
        refresh(run)
    for line in done.failed:
        remark(f"error: {line}")
    if done.failed:
        raise typer.Exit(2)


def bench(
    run: Annotated[Path, typer.Argument(help="A run directory with a finished student.")],
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Of each runtime.", show_default="all")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="In which all networks take turns.")] = 5,
    teacher: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="That names the teacher, where it is your own code.")
    ] = None,
    student: StudentCode = None,
    task: TaskCode = None,
    quiet: Quiet = False,
) -> None:
    """Time a run's teacher and student on this machine, in torch and in each runtime that it was exported for."""
    require_student(run)
    if teacher is not None:
        require_recipe(teacher)
    with ending(f"nothing was written, and what {run} held is as it was; run the same command to begin again"):
        from datafree.cli.display import display
        from datafree.deploy.bench_run import bench_run
        from datafree.deploy.format_table import format_table
        from datafree.recipe.recipe import load_recipe
        from datafree.report.page import refresh

        recipe = None if teacher is None else load_recipe(teacher)
        with display(quiet=quiet) as shown:
            done, exported = bench_run(
                run,
                threads=threads,
                rounds=rounds,
                teacher=recipe,
                student=student,
                task=task,
                say=shown.say,
                log=shown.log,
            )
    found = format_table(exported, done)
    result_block(table([found.heads, *found.rows]))
    for note in found.notes:
        result(f"note: {note}")
    refresh(run)


def push(
    run: Annotated[Path, typer.Argument(help="A run directory with a finished student.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Such as me/my-student; created where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="For yourself alone, where it is created.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be uploaded.")] = False,
    student: StudentCode = None,
    task: TaskCode = None,
    quiet: Quiet = False,
) -> None:
    """Upload what `export` writes, made first where missing, to a Hugging Face repository."""
    require_student(run)
    with ending(f"what was uploaded stays in {repo}; run the same command to upload the rest"):
        from datafree.cli.display import display
        from datafree.deploy.push import push_run

        with display(quiet=quiet) as shown:
            done = push_run(run, repo, private=private, dry_run=dry_run, student=student, task=task, say=shown.say)
    if done.files:
        result_block(table([[name, f"{size:,} bytes"] for name, size in done.files.items()]))
    for note in done.notes:
        result(f"note: {note}")
    result(f"pushed: {done.url}" if done.url else f"would go to: {done.repo}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run directory; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Instead of RUN/report.html or comparison.html.")] = None,
) -> None:
    """Write the page of a run, or one that compares several."""
    for run in runs:
        require_run(run)
    from datafree.report.page import write_report

    result(f"page: {write_report(runs, out)}")


def watch(
    run: Annotated[Path, typer.Argument(help="A run directory, in progress or finished.")],
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 0,
) -> None:
    """Serve a run's page on this machine alone; it loads itself again as the run goes on. Ctrl-C ends it."""
    require_run(run)
    from datafree.report.server import serve

    serve(run, port, tell=result, warn=remark)
