"""networks/program*.py: .pt2 files answer as the network they were exported from, and can have nothing else done."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from datafree.engine.artifacts import describe_teacher
from datafree.errors import DatafreeError, NetworkError, WeightsError
from datafree.networks.batchnorm import require_batchnorm
from datafree.networks.exported import pt2_file
from datafree.networks.exported.program import Program
from datafree.networks.load import NetworkSpec, build_network
from datafree.ops import modes
from datafree.preflight.inspection import inspect_teacher
from datafree.run import run_recipe
from recipes import load

BATCH = ({0: torch.export.Dim("batch", min=1, max=64)},)
Change = Callable[[str, bytes], bytes]


class Small(nn.Module):
    """Convolution, BatchNorm, in-place and other operators, sizes that are computed, a number of answers."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(6 * 8 * 8, classes)
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images)
        first, second = x.chunk(2, 1)
        x = torch.cat([first * self.scale, second.sigmoid()], 1)
        answer: Tensor = self.head(x.permute(0, 2, 3, 1).reshape(x.shape[0], -1))
        return answer


def trained(make: Callable[[], nn.Module], size: int) -> nn.Module:
    """In eval mode, its BatchNorm having seen something."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(4, 3, size, size))
    return network.eval()


def write(network: nn.Module, file: Path, size: int = 32, *, decomposed: bool = False, **options: Any) -> Path:
    options = {"dynamic_shapes": BATCH, **options}
    program = torch.export.export(network, (torch.rand(2, 3, size, size),), **options)
    torch.export.save(program.run_decompositions() if decomposed else program, file)
    return file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    network = trained(Small, 32)
    return network, write(network, tmp_path_factory.mktemp("program") / "small.pt2")


def changed(file: Path, out: Path, change: Change) -> Path:
    """A copy whose members went through `change` (name without its first folder, content)."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename.partition("/")[2], old.read(member)))
    return out


def edited(edit: Callable[[Any], Any], where: str = "models/") -> Change:
    """A change of the tables whose names begin with `where`."""

    def change(name: str, content: bytes) -> bytes:
        if not name.startswith(where) or not name.endswith(".json"):
            return content
        table = json.loads(content)
        edit(table)
        return json.dumps(table).encode()

    return change


def convolution(table: Any) -> dict[str, Any]:
    """The step of the first convolution."""
    nodes: list[dict[str, Any]] = table["graph_module"]["graph"]["nodes"]
    return next(node for node in nodes if "conv2d" in node["target"])


# --- the same answers ---


def test_a_program_answers_as_its_network_did(small: tuple[nn.Module, Path]) -> None:
    network, file = small
    program = Program(file)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program(images), network(images), rtol=0, atol=0)
        program.to(memory_format=torch.channels_last)
        torch.testing.assert_close(program(images), network(images), rtol=1e-5, atol=1e-6)
        assert program(images.to(memory_format=torch.channels_last)[:1]).shape == (1, 5)
    assert {tuple(p.shape) for p in program.parameters()} == {tuple(p.shape) for p in network.parameters()}
    assert program.size == (32, 32)


def test_gradients_to_the_images_are_those_of_its_network(small: tuple[nn.Module, Path]) -> None:
    network, file = small
    program = Program(file)
    images = torch.rand(2, 3, 32, 32)
    gradients = []
    for one in (network, program):
        given = images.clone().requires_grad_()
        with modes.frozen(one):
            torch.autograd.backward(one(given).square().sum())
        gradients.append(given.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


def test_a_decomposed_program_answers_as_its_network_did(small: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, _ = small
    program = Program(write(network, tmp_path / "p.pt2", decomposed=True)).to(memory_format=torch.channels_last)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program(images), network(images), rtol=1e-5, atol=1e-6)


def test_named_answers_keep_their_names(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"out": images.mean(1, keepdim=True), "aux": images * 2}

    program = Program(write(Two(), tmp_path / "two.pt2"))
    answers = program(images := torch.rand(1, 3, 32, 32))
    assert list(answers) == ["out", "aux"]
    assert torch.equal(answers["aux"], images * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size", "decomposed"),
    [
        (lambda: torchvision.models.resnet18(num_classes=5), 64, True),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), 64, True),
        (lambda: torchvision.models.convnext_tiny(num_classes=5), 64, False),
        (lambda: torchvision.models.swin_t(num_classes=5), 64, False),
        (
            lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4),
            64,
            False,
        ),
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5), 224, False),
        (lambda: timm.create_model("efficientnet_lite0", num_classes=5), 64, True),
    ],
    ids=["resnet18", "mobilenet_v3", "convnext", "swin", "lraspp", "vit", "efficientnet_lite0"],
)
def test_libraries_networks_answer_the_same(
    make: Callable[[], nn.Module], size: int, decomposed: bool, tmp_path: Path
) -> None:
    network = trained(make, size)
    program = Program(write(network, tmp_path / "p.pt2", size, decomposed=decomposed)).to(
        memory_format=torch.channels_last
    )
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        theirs, ours = network(images), program(images)
    theirs, ours = (one["out"] if isinstance(one, dict) else one for one in (theirs, ours))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


# --- as a teacher ---


def recipe(folder: Path, file: Path, method: str, **student: Any) -> Any:
    content = {
        "task": {"kind": "classification", "num_classes": 5, "image_size": [32, 32]},
        "teacher": {"network": str(file), "mean": [0.5, 0.5, 0.5]},
        "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 4}, **student},
        "source": {"method": method, **({"batch_size": 8, "width": 4} if method == "dafl" else {})},
        "training": {"steps": 2, "batch_size": 4},
    }
    return load(folder, content)


def test_a_program_teaches(small: tuple[nn.Module, Path], tmp_path: Path) -> None:
    run = run_recipe(recipe(tmp_path, small[1], "dafl"), tmp_path / "run").run
    taught_by = json.loads((run / "student.json").read_text())["teacher"]
    assert taught_by["network"] == taught_by["weights"] == "small.pt2"
    assert taught_by["sha256_of"] == "file"
    assert taught_by == describe_teacher(NetworkSpec(network=str(small[1])), Program(small[1]))


def test_methods_that_need_batchnorm_refuse_a_program_and_name_others(
    small: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    with pytest.raises(NetworkError, match=r"methods that do without: dfad") as caught:
        run_recipe(recipe(tmp_path, small[1], "inversion"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "student.json").exists()
    with pytest.raises(NetworkError):
        require_batchnorm(Program(small[1]), "cmi")


def test_a_program_cannot_learn(small: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="can teach but not learn"):
        run_recipe(recipe(tmp_path, small[1], "noise", network=str(small[1]), args={}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_program_is_inspected(small: tuple[nn.Module, Path]) -> None:
    found = inspect_teacher(str(small[1]))
    assert (found.task.value, found.classes.value, found.input_size.value) == ("classification", 5, (32, 32))
    assert found.input_size.provenance == "known"
    assert found.trained
    assert found.sources["dafl"].applies
    assert not found.sources["inversion"].applies


def test_a_name_that_is_not_the_users_opens_no_program(small: tuple[nn.Module, Path]) -> None:
    with pytest.raises(NetworkError, match="never done for a name found in a file"):
        build_network(NetworkSpec(network=str(small[1])), num_classes=5, allow_import=False)


@pytest.mark.parametrize("more", [{"weights": Path("a.pt")}, {"args": {"width": 3}}])
def test_a_program_takes_no_weights_and_no_args(more: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match="holds its weights"):
        NetworkSpec(network="teacher.pt2", **more)


def test_images_of_another_size_are_refused(small: tuple[nn.Module, Path]) -> None:
    with pytest.raises(NetworkError, match=r"takes images of 3 x 32 x 32 .* not 3 x 32 x 20"):
        Program(small[1])(torch.rand(1, 3, 32, 20))


def refusal(file: Path, kind: type[DatafreeError] = WeightsError) -> str:
    with pytest.raises(kind) as caught:
        Program(file)(torch.rand(2, 3, 32, 32))
    line = str(caught.value)
    assert str(file) in line
    assert "\n" not in line
    assert line.isprintable()
    return line


def test_a_program_for_one_number_of_images_is_refused(tmp_path: Path) -> None:
    file = write(trained(Small, 32), tmp_path / "p.pt2", dynamic_shapes=None)
    assert "torch.export.Dim" in refusal(file)


def test_a_program_of_training_mode_is_refused(tmp_path: Path) -> None:
    assert "export network.eval()" in refusal(write(Small().train(), tmp_path / "p.pt2"))


def test_a_program_of_several_inputs_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    program = torch.export.export(Two(), (torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)))
    torch.export.save(program, tmp_path / "p.pt2")
    assert "takes 2 inputs" in refusal(tmp_path / "p.pt2")


# --- files that are not trusted ---


class Canary:
    """Wakes when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.file}'",)


def test_what_would_run_in_torchs_own_loader_is_not_looked_at(small: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, file = small
    canary = tmp_path / "canary"

    def sizes(name: str, content: bytes) -> bytes:
        text = f"__import__('pathlib').Path('{canary}').touch()".encode()
        return re.sub(rb"Symbol\('s\d+', positive=True, integer=True\)", text, content) if ".json" in name else content

    def samples(name: str, content: bytes) -> bytes:
        if not name.startswith("data/sample_inputs"):
            return content
        pickled = io.BytesIO()
        torch.save(Canary(canary), pickled)
        return pickled.getvalue()

    images = torch.rand(2, 3, 32, 32)
    for change in (sizes, samples):
        evil = changed(file, tmp_path / "evil.pt2", change)
        with torch.no_grad():
            assert torch.equal(Program(evil)(images), network(images))
        assert not canary.exists()
        with pytest.raises(Exception) as caught:
            torch.export.load(evil)
        assert canary.exists(), caught.value  # the witness works
        canary.unlink()


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.relu_.default.__class__",
        "torch.ops.aten.relu_.default.__call__",
        "torch.ops.profiler._record_function_enter.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "_operator.attrgetter",
        "math.factorial",
        "builtins.eval",
        7,
        None,
    ],
)
def test_calls_that_are_no_operators_of_networks_are_refused_by_name(
    target: object, small: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    def edit(table: Any) -> None:
        convolution(table)["target"] = target

    line = refusal(changed(small[1], tmp_path / "p.pt2", edited(edit)))
    assert f"calls {target!r}" in line


def first_tensor(table: Any) -> Any:
    return next(iter(table["config"].values()))


def a_huge_tensor(table: Any) -> None:
    first_tensor(table)["tensor_meta"]["sizes"][0]["as_int"] = 10**12


def strides_of_zero(table: Any) -> None:
    meta = first_tensor(table)["tensor_meta"]
    meta["sizes"][0]["as_int"] = 10**9
    meta["strides"] = [{"as_int": 0} for _ in meta["strides"]]


def a_negative_offset(table: Any) -> None:
    first_tensor(table)["tensor_meta"]["storage_offset"]["as_int"] = -4


def a_path(table: Any) -> None:
    first_tensor(table)["path_name"] = "../../../etc/passwd"


def a_pickle(table: Any) -> None:
    first_tensor(table)["use_pickle"] = True


@pytest.mark.parametrize("edit", [a_huge_tensor, strides_of_zero, a_negative_offset, a_path, a_pickle])
def test_tensors_that_do_not_lie_in_the_file_are_refused(
    edit: Callable[[Any], None], small: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    assert refusal(changed(small[1], tmp_path / "p.pt2", edited(edit, "data/weights/")))


def a_value_too_early(table: Any) -> None:
    convolution(table)["inputs"][0]["arg"] = {"as_tensor": {"name": "linear"}}


def an_unknown_argument(table: Any) -> None:
    convolution(table)["inputs"][3]["arg"] = {"as_graph": {"name": "x"}}


def an_argument_of_another_type(table: Any) -> None:
    convolution(table)["inputs"][3]["arg"] = {"as_ints": ["2", {}]}


def another_version(table: Any) -> None:
    table["schema_version"]["major"] = 99


def no_graph(table: Any) -> None:
    del table["graph_module"]["graph"]["nodes"]


def an_answer_of_nothing(table: Any) -> None:
    table["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"] = {"as_tensor": {"name": "nowhere"}}


@pytest.mark.parametrize(
    "edit",
    [
        a_value_too_early,
        an_unknown_argument,
        an_argument_of_another_type,
        another_version,
        no_graph,
        an_answer_of_nothing,
    ],
)
def test_tables_that_make_no_sense_are_one_line(
    edit: Callable[[Any], None], small: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    assert refusal(changed(small[1], tmp_path / "p.pt2", edited(edit)))


def test_arguments_that_an_operator_refuses_are_one_line(small: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def edit(table: Any) -> None:
        convolution(table)["inputs"][3]["arg"] = {"as_string": "far"}

    line = refusal(changed(small[1], tmp_path / "p.pt2", edited(edit)), NetworkError)
    assert "torch.ops.aten.conv2d.default cannot be computed" in line


def test_a_very_long_table_is_not_read(
    small: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pt2_file, "MAX_JSON", 1000)
    assert "up to 1,000 are read" in refusal(small[1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a file of torch.export.save"),
        (pickle.dumps({"a": 1}), "not a file of torch.export.save"),
        (b"PK\x03\x04 torn", "the archive has no end"),
    ],
)
def test_other_files_are_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.pt2").write_bytes(content)
    assert said in refusal(tmp_path / "p.pt2")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "p.pt2")


def test_a_program_given_as_weights_is_told_where_it_belongs(small: tuple[nn.Module, Path], tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(small[1].read_bytes())
    spec = NetworkSpec(network="datafree/unet", weights=tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"name it w\.pt2 and give it as `network`"):
        build_network(spec, num_classes=5)
