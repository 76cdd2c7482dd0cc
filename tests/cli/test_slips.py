"""Slips in options and places: one line each, exit code 2, before torch is imported and before any work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datafree.preflight.option_values import KINDS, METHODS
from datafree.sources import SOURCES
from datafree.tasks import TASKS
from run_directories import write_run

SLIPS = {
    "--size abc": "--size 'abc' is not a size in pixels; write it as HEIGHTxWIDTH, 224x320",
    "--classes 0": "--classes is 0: give a number of at least 1",
    "--mean a,b": "--mean 'a,b' is not three numbers; write R,G,B of images in [0, 1], 0.485,0.456,0.406",
    "--mean 123,116,103": "--mean 123,116,103 is of pixels from 0 to 255, and images here are in [0, 1]",
    "--std 0": "--std '0': a standard deviation is above 0",
    "--std nan": "--std 'nan' has a number that is not finite",
    "--channels 2": "--channels is 2: give 3 for colour images, 1 for grey ones",
    "--channel-order gbr": "--channel-order is 'gbr': give rgb or bgr",
    "--args depth": "--args 'depth' is not of the form KEY=VALUE (encoder=resnet50)",
    "--weights nowhere.pt": "--weights 'nowhere.pt': nothing is there",
    "--task segmentaton": "there is no task 'segmentaton' (did you mean segmentation?)",
    "--device gpu": "--device 'gpu' is no device",
    "--seed -1": "--seed is -1: give 0 or more",
    "--source nois": "--source 'nois' is not one of: auto, cgdd",
    "--time abc": "--time 'abc' is not a time; write it as 90s, 30m or 1h30m",
    "--compress abc": "--compress 'abc': say how many times smaller, such as 4x",
    "--compress 4x --student datafree/unet": "--compress '4x' belongs to --student auto",
    "--photos nowhere": "--photos 'nowhere': nothing is there",
    "--data nowhere": "--data 'nowhere': nothing is there",
    "training.lr": "the override 'training.lr' is not of the form key.sub=value (training.steps=500)",
    "--link fast": "--link 'fast' is no speed; write it as 10GB/s, 800MB/s or 25Gbit/s",
}
OF_LEARNING = ("--time", "--compress")
OF_IMAGES = ("--seed", "--source", "--photos", "--data")


def of(*beginnings: str) -> list[str]:
    return [slip for slip in SLIPS if slip.startswith(beginnings)]


TAKES = {  # verb -> the slips that it can make
    "distill timm/resnet18": [slip for slip in SLIPS if slip not in of("--link")],
    "init timm/resnet18": [slip for slip in SLIPS if slip not in of("--link")],
    "calibrate timm/resnet18": [slip for slip in SLIPS if slip not in of("--link", "--compress", "training")],
    "inspect timm/resnet18": [slip for slip in SLIPS if slip not in of(*OF_LEARNING, *OF_IMAGES, "--link", "training")],
    "plan fashion-demo": of("--link", "--compress", "training"),
    "synthesize fashion-demo --out made --images 8": of("--device", "--seed", "training"),
}
UNKNOWN = "there is no file, network or packaged recipe 'nowhere'"
NO_RECIPE = "there is no file or packaged recipe 'nowhere'"
NO_RUN = "nowhere is not a run directory; `datafree distill` makes one"
FOREIGN = "is not empty and holds no run; choose another --out"
PLACES = {  # a whole line -> what is said
    "distill nowhere": UNKNOWN,
    "init resnet18": "there is no file, network or packaged recipe 'resnet18' (did you mean torchvision/resnet18 or",
    "inspect nowhere": "there is no file, network or packaged recipe 'nowhere'",
    "inspect timm/resnet18 --recipe nowhere": NO_RECIPE,
    "calibrate nowhere": UNKNOWN,
    "plan nowhere": NO_RECIPE,
    "plan strange.yaml": "'sorce': no such section (did you mean source?)",
    "synthesize nowhere --images 8 --out made": NO_RECIPE,
    "synthesize fashion-demo --out made": "--images is missing",
    "synthesize fashion-demo --images 8 --out foreign": "foreign is not empty and holds no made data set",
    "distill timm/resnet18 --out foreign": f"foreign {FOREIGN}",
    "distill fashion-demo --out strange.yaml": "strange.yaml is a file; choose another --out",
    "distill fashion-demo --max-time soon": "--max-time 'soon' is not a time",
    "demo --out demos": f"demos/garments-demo {FOREIGN}",
    "demo --task boxes": "there is no demo for the task 'boxes'",
    "calibrate timm/resnet18 --images 0": "--images is 0: give 8 to 10,000",
    "calibrate timm/resnet18 --out foreign": "foreign holds 'mine.txt', which no calibration writes",
    "calibrate half": "half holds no finished student; run the same `datafree distill` again to finish it",
    "calibrate foreign": "foreign is a folder that holds no network",
    "export nowhere": NO_RUN,
    "export half": "half holds no finished student; run the same `datafree distill` again to finish it",
    "export foreign": "foreign holds no run: none of recipe.yaml, ",
    "export my-segmentation --to foo": "--to names no format: 'foo'; one or more of onnx, litert, openvino",
    "export my-segmentation --qat-steps 200": "--qat-steps 200 trains for INT8, which is not wanted: add --int8",
    "export my-segmentation --images foreign": "--images foreign is what INT8 is calibrated with, which is not wanted:",
    "export my-segmentation --int8 --qat-steps -1": "--qat-steps is -1: give 1 to 1,000,000",
    "export my-segmentation --to onnx --no-onnx": "--to names onnx, and --no-onnx leaves it out",
    "export my-segmentation --out foreign": "foreign holds 'mine.txt', which no export writes",
    "export my-segmentation --data nowhere": "--data 'nowhere': nothing is there",
    "export my-segmentation --int8 --images nowhere": "--images 'nowhere': nothing is there",
    "bench nowhere": NO_RUN,
    "bench my-segmentation --teacher nowhere": NO_RECIPE,
    "evaluate nowhere --data foreign": NO_RUN,
    "evaluate nowhere.onnx --data foreign": "RUN 'nowhere.onnx': nothing is there",
    "evaluate my-segmentation": "evaluate needs --data DIR, or --images DIR and --teacher RECIPE",
    "evaluate my-segmentation --data nowhere": "--data 'nowhere': nothing is there",
    "evaluate my-segmentation --images nowhere --teacher fashion-demo": "--images 'nowhere': nothing is there",
    "evaluate my-segmentation --images foreign --teacher nowhere": NO_RECIPE,
    "evaluate my-segmentation --data foreign --device gpu0": "--device 'gpu0' is no device",
    "push nowhere me/mine": NO_RUN,
    "push my-segmentation not//one": "'not//one' is no repository's name",
    "report my-segmentation nowhere": NO_RUN,
    "watch nowhere": NO_RUN,
    "convert nowhere.pt new.safetensors": "OLD 'nowhere.pt': nothing is there",
    "convert strange.yaml new.pt": "new.pt is to be safetensors: name it new.safetensors",
    "convert strange.yaml old.safetensors": "old.safetensors is there already",
}
CODE = """\
import sys
from datafree.cli.main import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["datafree", *line.split()]
    try: main()
    except SystemExit as left: print(left.code, "torch" in sys.modules)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a finished run, half of one, a foreign folder and a file or two."""
    write_run(tmp_path)
    for folder in ("foreign", "demos/garments-demo", "half"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("foreign/mine.txt", "demos/garments-demo/mine.txt", "old.safetensors"):
        (tmp_path / file).write_text("mine")
    (tmp_path / "half" / "recipe.yaml").write_text("name: half\n")
    (tmp_path / "strange.yaml").write_text("task: {}\nsorce: {}\n")
    return tmp_path


@pytest.mark.parametrize(
    "said",
    [{f"{verb} {slip}": SLIPS[slip] for verb, slips in TAKES.items() for slip in slips}, PLACES],
    ids=["options", "places"],
)
def test_a_slip_is_said_by_every_verb_before_torch_is_imported(said: dict[str, str], place: Path) -> None:
    """In one process: each import of torch takes seconds, and each start a fraction of one."""
    before = sorted(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=place, input="\n".join(said), capture_output=True, text=True, check=True
    )
    assert dict(zip(said, done.stdout.splitlines(), strict=True)) == dict.fromkeys(said, "2 False")
    for (line, words), found in zip(said.items(), done.stderr.splitlines(), strict=True):
        assert found.startswith(f"error: {words}"), line
    assert sorted(place.rglob("*")) == before


def test_names_that_are_known_without_torch_are_those_of_the_classes() -> None:
    assert tuple(TASKS) == KINDS
    assert tuple(SOURCES) == METHODS
