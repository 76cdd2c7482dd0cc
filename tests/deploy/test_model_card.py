"""The model card: what is known, what is not, and code that loads the student; from directories nobody trusts."""

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.config import yaml
from datafree.deploy.export_record import Export, Int8
from datafree.deploy.formats.check import Made
from datafree.deploy.model_card import model_card, public
from datafree.deploy.snippets import load_snippet
from datafree.errors import NetworkError
from datafree.evaluation.finished_run import Record, Student, read_record
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.load import NetworkSpec, build_network
from datafree.tasks import Classification, Segmentation
from datafree.tasks.base import Scores, Task

TEACHER = {
    "network": "smp/deeplabv3",
    "args": {"encoder": "resnet50"},
    "weights": "street.pt",
    "sha256": "ab" * 32,
    "sha256_of": "file",
    "parameters": 39_640_000,
    "licence": None,
}


def student(network: str = "datafree/unet", task: Task | None = None, **more: Any) -> Student:
    task = task or Segmentation(num_classes=3, image_size=(16, 24))
    taught_by, names = more.pop("taught_by", TEACHER), more.pop("class_names", [])
    spec = NetworkSpec(network=network, **more)
    made = spec.wrap(build_network(spec, num_classes=task.num_classes))
    return Student(spec=spec, task=task, network=made, class_names=names, taught_by=taught_by)


def small(**more: Any) -> Student:
    return student(args={"width": 2, "depth": 1}, **more)


def record(**known: Any) -> Record:
    nothing: dict[str, Any] = {
        "source": {},
        "training": {},
        "scores": {},
        "scored_on": None,
        "step": None,
        "agreement": None,
        "seconds": None,
        "resumed": False,
        "environment": {},
        "faults": [],
    }
    return Record(**{**nothing, **known})


def test_card_without_scores_says_that_nothing_was_verified() -> None:
    card = model_card(small(), record(agreement=0.912), Export())
    scores, rest = card.split("## Scores")[1].split("## Not verified")
    assert "None: no labelled data was given" in scores
    assert "%" not in scores
    unverified = rest.split("## Intended use")[0]
    assert "How well this network does on real images is unknown" in unverified
    assert "91.2 % of cases on images of the source that" in unverified


def test_card_says_that_a_student_learned_little() -> None:
    card = model_card(small(), record(agreement=0.44, training={"steps": 56, "batch_size": 8}), Export())
    unverified = card.split("## Not verified")[1].split("## Intended use")[0]
    assert "- The student gives another answer than the teacher in most cases." in unverified
    assert "- It was given 56 steps, which teach next to nothing" in unverified
    card = model_card(small(), record(agreement=0.6, training={"steps": 1001, "batch_size": 8}), Export())
    assert "in most cases" not in card and "next to nothing" not in card


def test_card_names_the_data_of_every_score() -> None:
    run = {"teacher": Scores(values={"miou": 0.7}), "student": Scores(values={"miou": 0.61234})}
    export = Export(
        scores={"student.onnx": Scores(values={"miou": 0.5, "pixel_accuracy": 0.9})}, scored_on="night/test"
    )
    card = model_card(small(), record(scores=run, scored_on="/home/ann/camvid/test"), export)
    assert "| teacher | `.../camvid/test` | 70.00 % | - |" in card
    assert "| student | `.../camvid/test` | 61.23 % | - |" in card
    assert "| student.onnx | `night/test` | 50.00 % | 90.00 % |" in card
    assert "unknown: no labelled data" not in card
    assert "no other data was tried" in card


def test_card_tells_a_licence_that_is_missing_from_one_that_was_not_recorded() -> None:
    def licence(taught_by: dict[str, Any]) -> str:
        card = model_card(small(taught_by=taught_by), record(), Export())
        return next(line for line in card.splitlines() if line.startswith("| declared licence"))

    assert licence({}) == "| declared licence | not recorded |"
    assert licence(TEACHER) == "| declared licence | not declared |"
    assert licence({**TEACHER, "licence": "AGPL-3.0"}) == "| declared licence | `AGPL-3.0` |"
    assert "ask its owner" in model_card(small(), record(), Export())
    assert "ask its owner" not in model_card(small(taught_by={**TEACHER, "licence": "MIT"}), record(), Export())
    assert "ab" * 32 in model_card(small(), record(), Export())


def test_card_counts_steps_images_and_updates_of_all_parts() -> None:
    source = {
        "method": "mixed",
        "warmup": 0,
        "parts": [
            {"method": "cgdd", "warmup": 100, "update_every": 5},
            {"method": "deepinversion", "warmup": 7, "update_every": 0},
        ],
    }
    training = {"steps": 1001, "batch_size": 16, "seed": 4}
    card = model_card(small(), record(source=source, training=training, step=900), Export())
    assert "1,001 steps on 16 images each, 16,016 images shown. The source was updated 308 times." in card
    assert "Seed 4. Kept: the student of step 900" in card
    block = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.parse(block, "card") == {"source": source, "training": training}


def test_card_says_how_int8_was_made() -> None:
    export = Export(int8=Int8(images=96, origin="of the run's source", agreement=0.987, compared=32))
    card = model_card(small(), record(), export)
    assert "calibrated on 96 images of the run's source" in card
    assert "On 32 more of these it agrees with the float network in 98.7 % of cases" in card
    assert "compared with the float network only, not scored" in card


def test_card_loads_openvino_and_names_what_was_not_verified_of_formats() -> None:
    def made(name: str, kind: str, **found: Any) -> Made:
        return Made(file=name, format=kind, int8=False, bytes=1, sha256="", **found)

    export = Export(
        made=[
            made("student.xml", "openvino", compared=16),
            made("student.mlpackage.zip", "coreml", unverified="on macOS"),
        ],
        compared_on="of the run's source",
    )
    card = model_card(small(), record(), export)
    assert 'openvino.Core().compile_model("student.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})' in card
    unverified = card.split("## Not verified")[1].split("## Intended use")[0]
    assert "- `student.mlpackage.zip`: on macOS." in unverified
    assert "- `student.xml`: compared with PyTorch on 16 images of the run's source, not scored." in unverified
    assert "openvino" not in model_card(small(), record(), Export())


def test_card_takes_no_text_for_markup_and_shows_no_folders() -> None:
    nasty = "x`\n```\n# Owned\n<script>alert(1)</script>"
    source = {"method": nasty, "path": "/home/ann/secret project/images", nasty: ["~/data/a/b", "C:\\Users\\ann\\a\\b"]}
    card = model_card(
        small(taught_by={**TEACHER, "network": nasty, "licence": nasty, "args": {"a": nasty}}, class_names=[nasty] * 3),
        record(
            source=source,
            training={"steps": 1, "batch_size": 1},
            scored_on=nasty,
            environment={"versions": {nasty: nasty}},
        ),
        Export(),
    )
    assert "Owned" in card
    assert not [line for line in card.splitlines() if line.lstrip().startswith("# Owned")]
    assert card.count("```") == 4
    assert "<script" not in card
    assert "ann" not in card.replace("channels", "")
    assert ".../secret project/images" in card


def test_path_is_shown_by_its_last_two_parts() -> None:
    assert public({"a": ["/x/y/z", "relative/name", 3, None]}) == {"a": [".../y/z", "relative/name", 3, None]}


def test_card_begins_as_the_hub_wants_it() -> None:
    front = model_card(small(), record(), Export()).split("---\n")[1]
    assert yaml.parse(front, "card") == {
        "library_name": "datafree",
        "pipeline_tag": "image-segmentation",
        "tags": ["datafree", "knowledge-distillation"],
    }


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"scores": 3, "chosen": [], "cost": "x", "scored_on": {}}', b"[" * 100_000]
)
def test_record_of_damaged_files_says_nothing(content: bytes, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "result.json", "environment.json", "student.json"):
        (tmp_path / name).write_bytes(content)
    found = read_record(tmp_path)
    assert (found.source, found.scores, found.scored_on, found.step, found.seconds) == ({}, {}, None, None, None)
    model_card(small(), found, Export())


def test_record_reads_what_a_run_writes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("source: {method: noise}\ntraining: {steps: 3}\n")
    result = {
        "chosen": {"step": 3, "agreement": None},
        "scored_on": "data",
        "scores": {"student": {"values": {"top1": 0.5, "top5": float("nan")}, "per_class": {}}, "teacher": 7},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "student.json").write_text(json.dumps({"cost": {"seconds": 12.5, "resumed": True}}))
    found = read_record(tmp_path)
    assert (found.source, found.training, found.step, found.seconds) == ({"method": "noise"}, {"steps": 3}, 3, 12.5)
    assert found.scores == {"student": Scores(values={"top1": 0.5})}
    assert "12 s since it was last resumed, on a machine that was not recorded" in model_card(small(), found, Export())


def test_snippet_of_our_own_network_answers_as_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small(mean=(0.5, 0.4, 0.3), channel_order="bgr", channels=3, input_size=(8, 12))
    save_weights(made.network.network, tmp_path / "student.safetensors")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(load_snippet(made), space)
    with torch.no_grad():
        wanted = made.network.eval()(space["images"])
    torch.testing.assert_close(space["logits"], wanted)


ANSWERS = {  # a network's answer -> what of it the card's code takes
    "x": "network(x)",
    "{'aux': x, 'out': x}": 'network(x)["out"]',
    "Answer(features=x, logits=x)": "network(x).logits",
}


@pytest.mark.parametrize(("answer", "taken"), ANSWERS.items(), ids=["tensor", "dict", "dataclass"])
def test_snippet_of_own_code_takes_the_logits_out_of_its_answer(
    answer: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "answering_nets.py").write_text(
        "import dataclasses\nfrom torch import Tensor, nn\n"
        "@dataclasses.dataclass\nclass Answer:\n    features: Tensor\n    logits: Tensor\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 3, 1)\n"
        f"    def forward(self, images):\n        x = self.conv(images)\n        return {answer}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "answering_nets", raising=False)
    made = student("answering_nets:Net", mean=(0.5, 0.4, 0.3))
    save_weights(made.network.network, tmp_path / "student.safetensors")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(code := load_snippet(made), space)
    assert f"logits = {taken}\n" in code
    with torch.no_grad():
        torch.testing.assert_close(space["logits"], made.network.eval()(space["images"]))


@pytest.mark.parametrize("what", ["logit", "probability"])
@pytest.mark.parametrize("network", ["timm/test_resnet", "datafree/resnet"])
def test_snippet_of_one_output_answers_two_classes(
    network: str, what: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"depth": 8, "width": 2} if network.startswith("datafree") else {}
    spec = NetworkSpec(network=network, args=args)
    inner = build_network(spec, num_classes=1)
    made = spec.wrap(inner)
    made.one_output = what
    task = Classification(num_classes=2, image_size=(32, 32))
    save_weights(inner, tmp_path / "student.safetensors")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(load_snippet(Student(spec=spec, task=task, network=made, class_names=[], taught_by=TEACHER)), space)
    assert space["logits"].shape == (1, 2)
    with torch.no_grad():
        torch.testing.assert_close(space["logits"], made.eval()(space["images"]))


def test_no_folder_of_the_machine_is_published() -> None:
    for text, shown in {
        "/home/me/runs/mine/recipe.yaml": ".../mine/recipe.yaml",
        "the teacher was not timed: /home/me/runs/mine/recipe.yaml does not say": "the teacher was not timed: "
        ".../mine/recipe.yaml does not say",
        "not written ('C:\\Users\\me\\a.onnx')": "not written ('.../me/a.onnx')",
        "~/data/photos": ".../data/photos",
        "1 / 2 and https://host/a/b": "1 / 2 and https://host/a/b",
        "timm/resnet18": "timm/resnet18",
    }.items():
        assert public(text) == shown
    directory = NetworkSpec(network="hf//home/me/customer/tiny")
    unet = small()
    card = model_card(replace(unet, spec=replace(unet.spec, network=directory.network)), record(), Export())
    assert "# hf/tiny, distilled by datafree" in card and "network='hf/tiny'" in card
    assert "the place of the directory whose config.json it was built from" in card
    assert "/home" not in card and "customer" not in card


def test_snippet_holds_arguments_as_literals_only() -> None:
    task = Classification(num_classes=4, image_size=(16, 16))
    made = student("datafree/resnet", task, args={"depth": 8, "width": 2})
    text = "'), __import__('os').system('true') #\n`"
    made.spec.args |= {"depth": [8, {"a": (text,)}, None, True, 0.5]}
    call = ast.parse(load_snippet(made)).body[3]
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    args = next(keyword.value for keyword in call.value.keywords if keyword.arg == "args")
    assert ast.literal_eval(args) == made.spec.args
    made.spec.network = "timm/test_resnet"
    for name, value in (("a=1, b", 2), ("import", 2), ("width", object())):
        made.spec.args = {name: value}
        with pytest.raises(NetworkError, match="argument"):
            load_snippet(made)
