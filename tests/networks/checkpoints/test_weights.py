"""Weights: read as tensors and nothing else, all or none, from files that are not trusted."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from datafree.errors import WeightsError
from datafree.networks.checkpoints.weights import load_weights, read_tensors, save_weights
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.unet import unet
from weights_files import refusal, same, small

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint16, torch.float8_e4m3fn]
DTYPES += [torch.complex64]

# --- weights that are as they should be ---


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_come_back_as_they_were_saved(tmp_path: Path, name: str) -> None:
    source, target, path = small(0), small(1), tmp_path / name
    if name.endswith("safetensors"):
        save_weights(source, path)
    else:
        torch.save(source.state_dict(), path)
    assert not same(source.state_dict(), target.state_dict())
    load_weights(target, path)
    assert same(source.state_dict(), target.state_dict())
    assert all(p.requires_grad for p in target.parameters())


def test_a_spec_with_weights_builds_the_network_that_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = unet(3, width=4)
    save_weights(source, tmp_path / "w.safetensors")
    spec = NetworkSpec(network="datafree/unet", args={"width": 4}, weights=tmp_path / "w.safetensors")
    assert same(build_network(spec, num_classes=3).state_dict(), source.state_dict())


def test_files_of_before_the_zip_format_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert same(read_tensors(path), small().state_dict())


def raw(tensor: Tensor) -> list[int]:
    """A tensor's bytes in the order of its values."""
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    return values.reshape(-1).view(torch.uint8).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_read_is_what_torch_reads(tmp_path: Path, dtype: torch.dtype, zipped: bool, protocol: int) -> None:
    if not zipped and dtype in (torch.uint16, torch.float8_e4m3fn):
        pytest.skip("torch itself cannot read such files")
    torch.manual_seed(0)
    whole = torch.rand(3, 4, 5).mul(9).to(dtype)
    content = OrderedDict(
        whole=whole,
        tied=whole,
        part=whole[1:, ::2, 1],
        turned=whole.permute(2, 0, 1),
        scalar=whole[0, 0, 0],
        none=torch.empty(0, 3, dtype=dtype),
        own=whole.clone(),
    )
    if dtype.is_floating_point:
        content["parameter"] = nn.Parameter(whole.clone())
        content["noted"] = nn.Parameter(whole.clone())
        content["noted"].note = ["an attribute"]  # type: ignore[attr-defined]
        content["buffer"] = nn.Buffer(whole.clone())
    more = {"epoch": 3, "betas": (0.9, None), "seen": {1, 2}, "raw": b"\xff", "count": Counter("aab"), 7: [1 + 2j]}
    more |= {
        "dtype": dtype,
        "size": whole.shape,
        "device": whole.device,
        "long": 2**100,
        "e": True,
        "bytes": bytearray(3),
    }
    path = tmp_path / "w.pt"
    torch.save({"state_dict": content, **more}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=False)["state_dict"]
    found = read_tensors(path)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert type(tensor) is Tensor
        assert not tensor.requires_grad
        assert tensor.dtype == dtype
        assert tensor.stride() == expected[name].stride()
        assert tensor.shape == expected[name].shape
        assert raw(tensor) == raw(expected[name])
    assert found["tied"].data_ptr() == found["whole"].data_ptr() != found["own"].data_ptr()


class TensorsElsewhere(pickle.Pickler):
    """Tensors of six values, as references to parts of one storage, as torch did before 0.4."""

    def persistent_id(self, thing: Any) -> Any:
        if not isinstance(thing, slice):
            return None
        return ("storage", torch.FloatStorage, "7", "cpu", 6, (str(thing), thing.start, thing.stop - thing.start))


class Rebuilt:
    """Pickles as a call of `function`, or as what Python 2 made of an OrderedDict."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def test_parts_of_storages_in_files_of_python_2_are_read(tmp_path: Path) -> None:
    tensor = Rebuilt(torch._utils._rebuild_tensor, slice(2, 5), 1, (2,), (1,))
    content = Rebuilt(
        OrderedDict, [["a", tensor], ["b", Rebuilt(torch._utils._rebuild_tensor, slice(0, 6), 0, (6,), (1,))]]
    )
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(part, file, protocol=2)
    TensorsElsewhere(file, protocol=2).dump(content)
    pickle.dump(["7"], file, protocol=2)
    file.write(struct.pack("<q6f", 6, *range(6)))
    path = tmp_path / "w.pth"
    path.write_bytes(file.getvalue())
    assert {name: tensor.tolist() for name, tensor in torch.load(path).items()} == {
        "a": [3, 4],
        "b": [0, 1, 2, 3, 4, 5],
    }
    assert same(read_tensors(path), torch.load(path))


@pytest.mark.parametrize("key", [*("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema"), "net"])
def test_weights_are_found_inside_a_checkpoint(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, key: small().state_dict()}, tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), small().state_dict())


def test_plain_weights_come_before_their_moving_average(tmp_path: Path) -> None:
    checkpoint = {"state_dict_ema": small(1).state_dict(), "state_dict": small(0).state_dict()}
    torch.save(checkpoint, tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), small(0).state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda state: {"ema": {"module": state, "updates": 3}, "epoch": 1},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"net": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model_ema": {"n_averaged": torch.tensor(9), **{f"module.{n}": t for n, t in state.items()}}},
        lambda state: {"net": state, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": []}},
        lambda state: {"state_dict": state, "loss": torch.tensor(0.1), "other": {"a": torch.ones(1)}},
    ],
)
def test_weights_are_found_inside_wrappers_of_wrappers(tmp_path: Path, make: Any) -> None:
    torch.save(make(small().state_dict()), tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), small().state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "ema.", "ema.module.", "ema_model."])
def test_the_prefixes_of_wrapped_networks_are_taken_off(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + k: v for k, v in small().state_dict().items()}, tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), small().state_dict())


def test_data_parallel_weights_load_into_the_bare_network_and_back(tmp_path: Path) -> None:
    wrapped, bare = nn.DataParallel(small(0)), small(1)
    torch.save(wrapped.state_dict(), tmp_path / "wrapped.pt")
    load_weights(bare, tmp_path / "wrapped.pt")
    assert same(bare.state_dict(), small(0).state_dict())
    torch.save(small(2).state_dict(), tmp_path / "bare.pt")
    load_weights(wrapped, tmp_path / "bare.pt")
    assert same(wrapped.module.state_dict(), small(2).state_dict())


def test_a_prefix_that_not_all_names_share_is_kept(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert sorted(read_tensors(tmp_path / "w.pt")) == ["b", "module.a"]


@pytest.mark.parametrize("lead", ["model.", "network.", "net.", "model.module.", "ema.model."])
def test_what_all_names_begin_with_is_left_out_where_more_names_fit_so(tmp_path: Path, lead: str) -> None:
    held = nn.Module()
    held.model = small(1)
    torch.save({lead + name: tensor for name, tensor in small(0).state_dict().items()}, tmp_path / "w.pt")
    torch.save(small(0).state_dict(), tmp_path / "plain.pt")
    for network in (small(1), held):
        load_weights(network, tmp_path / "w.pt")
        assert same((network.model if network is held else network).state_dict(), small(0).state_dict())
    load_weights(held, tmp_path / "plain.pt")


def test_names_that_fit_as_they_are_stay_so_in_the_refusal_of_a_partial_file(tmp_path: Path) -> None:
    network = nn.Module()
    network.model, network.head = small(), nn.Linear(2, 2)
    torch.save({f"model.{name}": tensor for name, tensor in small().state_dict().items()}, tmp_path / "w.pt")
    line = refused_unchanged(network, tmp_path / "w.pt")
    assert "('head.weight', 'head.bias' missing)" in line
    assert "unexpected" not in line


def test_what_scripts_keep_beside_the_weights_is_skipped_and_not_made(tmp_path: Path) -> None:
    beside = {"args": Namespace(lr=0.1), "best": np.float32(0.5), "path": Path("/data"), "epoch": np.int64(3)}
    torch.save({"state_dict": small().state_dict(), **beside}, tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), small().state_dict())


@pytest.mark.parametrize("lead", ["backbone.", "encoder_q.", "student.backbone.", "model.net."])
def test_a_prefix_under_which_all_names_occur_is_taken_and_what_is_left_over_is_said(tmp_path: Path, lead: str) -> None:
    state = {"criterion.weight": torch.ones(3), "epoch_seen": torch.ones(1)}
    state |= {lead + name: tensor for name, tensor in small(0).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    network = small(1)
    said = load_weights(network, tmp_path / "w.pt")
    assert same(network.state_dict(), small(0).state_dict())
    assert f"those under {lead!r}" in said
    assert "left out as parts of something else: 2 (first: 'criterion.weight')" in said
    assert "\n" not in said


def test_of_two_complete_prefixes_the_first_is_taken_and_the_other_named(tmp_path: Path) -> None:
    both = {f"encoder_q.{name}": tensor for name, tensor in small(0).state_dict().items()}
    both |= {f"encoder_k.{name}": tensor for name, tensor in small(2).state_dict().items()}
    torch.save(both, tmp_path / "w.pt")
    network = small(1)
    assert "(complete under 'encoder_k.' too)" in load_weights(network, tmp_path / "w.pt")
    assert same(network.state_dict(), small(0).state_dict())


def test_weights_that_fit_as_they_are_say_nothing(tmp_path: Path) -> None:
    save_weights(small(0), tmp_path / "w.safetensors")
    assert load_weights(small(1), tmp_path / "w.safetensors") == ""


@pytest.mark.parametrize(
    ("ours", "theirs"), [("torchvision/resnet18", "torchvision/resnet34"), ("timm/test_vit", "timm/test_vit?depth=7")]
)
def test_a_larger_member_of_the_family_is_not_taken_for_its_smaller_part(
    ours: str, theirs: str, tmp_path: Path
) -> None:
    save_weights(build_network(NetworkSpec(network=theirs), num_classes=3), tmp_path / "w.safetensors")
    spec = NetworkSpec(network=ours, weights=tmp_path / "w.safetensors")
    line = refusal(lambda: build_network(spec, num_classes=3), WeightsError)
    assert "unexpected" in line


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("h5", "tf2onnx"),
        ("keras", "Keras"),
        ("tflite", "--tflite"),
        ("rknn", "Rockchip"),
        ("onnx", "name it as the network"),
    ],
)
def test_other_frameworks_files_say_what_they_are_and_what_to_do(ending: str, said: str, tmp_path: Path) -> None:
    (tmp_path / f"w.{ending}").write_bytes(b"TFL3")
    assert said in refusal(lambda: load_weights(small(), tmp_path / f"w.{ending}"), WeightsError)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path, ending: str) -> None:
    state = {f"module.{name}": tensor for name, tensor in small(0).state_dict().items()}
    places = {name: f"model-0000{1 + index // 3}-of-00003.{ending}" for index, name in enumerate(state)}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in state.items() if places[name] == file}
        if ending == "bin":
            torch.save(part, tmp_path / file)
        else:
            safetensors.torch.save_file(part, tmp_path / file)
    index = tmp_path / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    network = small(1)
    load_weights(network, index)
    assert same(network.state_dict(), small(0).state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_loaded_into_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    source, target = small(0).to(dtype), small(1)
    save_weights(source, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert same(target.state_dict(), source.float().state_dict())


def test_counters_in_half_precision_are_left_as_they_are(tmp_path: Path) -> None:
    """As of `{name: tensor.half() for ...}`; 70,000 steps are infinite in float16."""
    source, target = small(0), small(1)
    for name, value in source.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(70_000)
    torch.save({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    torch.testing.assert_close(target.state_dict()["0.weight"], source.state_dict()["0.weight"], rtol=1e-3, atol=1e-3)
    assert all(int(v) == 0 for name, v in target.state_dict().items() if name.endswith("num_batches_tracked"))


def test_weights_without_batchnorm_counters_are_loaded(tmp_path: Path) -> None:
    state = {k: v for k, v in small(0).state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    target = small(1)
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(target.state_dict()["0.weight"], state["0.weight"])


def test_tied_and_channels_last_tensors_are_saved(tmp_path: Path) -> None:
    network = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 4, 3)})
    network["b"].weight = network["a"].weight
    network.to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "w.safetensors")
    assert same(safetensors.torch.load_file(tmp_path / "w.safetensors"), network.state_dict())


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(small(0), path)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    assert "No space left" in refusal(lambda: save_weights(small(1), path), WeightsError)
    assert same(read_tensors(path), small(0).state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    line = refusal(lambda: save_weights(small(), tmp_path / "file" / "w.safetensors"), WeightsError)
    assert "cannot be written" in line
    save_weights(small(), tmp_path / "new" / "w.safetensors")  # a missing folder is made
    assert (tmp_path / "new" / "w.safetensors").is_file()


# --- weights that do not fit ---


def refused_unchanged(network: nn.Module, path: Path) -> str:
    """The line with which `path` is refused, after a look that `network` is as it was."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    line = refusal(lambda: load_weights(network, path), WeightsError)
    assert same(before, network.state_dict())
    return line


def test_another_architecture_is_told_by_counts_first_names_and_shapes(tmp_path: Path) -> None:
    state = small(1).state_dict()
    del state["2.bias"], state["1.weight"]
    state["9.extra"] = torch.ones(2)
    state["2.weight"] = torch.ones(7, 4, 1, 1)
    torch.save(state, tmp_path / "w.pt")
    line = refused_unchanged(small(0), tmp_path / "w.pt")
    assert "2 missing (first: '1.weight')" in line
    assert "1 unexpected (first: '9.extra')" in line
    assert "1 of another shape (first: '2.weight', (7, 4, 1, 1) in the file, (2, 4, 1, 1) in the network)" in line


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", "fc"), ("convnext_atto", "head.fc"), ("vit_tiny_patch16_224", "head")]
)
def test_a_network_without_its_classifier_is_told_apart_from_another_one(tmp_path: Path, name: str, last: str) -> None:
    import timm

    headless = timm.create_model(name, num_classes=0)  # as embeddings are computed
    save_weights(headless, tmp_path / "w.safetensors")
    network = timm.create_model(name, num_classes=5)
    line = refused_unchanged(network, tmp_path / "w.safetensors")
    assert f"without its last layer, the classifier ('{last}.weight', '{last}.bias' missing)" in line
    assert "give the weights of the whole network" in line
    state = network.state_dict()
    del state[next(iter(state))]  # its first layer's is another matter
    torch.save(state, tmp_path / "w.pt")
    assert "1 missing" in refused_unchanged(network, tmp_path / "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    state = small(1).double().state_dict()
    state["2.bias"][1] = value  # 1e300 is finite in float64 and is not in float32
    torch.save(state, tmp_path / "w.pt")
    assert "'2.bias' has values that are not finite" in refused_unchanged(small(0), tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_quantised_and_complex_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = small(1).state_dict()
    state["2.bias"] = torch.ones(2).to(dtype)
    torch.save(state, tmp_path / "w.pt")
    assert str(dtype) in refused_unchanged(small(0), tmp_path / "w.pt")


class Choosy(nn.Linear):
    """Loads in a way of its own, which fails once the layers before it are loaded."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        raise KeyError("not these")


def test_a_network_that_fails_half_way_is_put_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)), tmp_path / "w.safetensors")
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Choosy(2, 2))
    assert "not these" in refused_unchanged(network, tmp_path / "w.safetensors")


# --- files that hold something else, and damaged ones ---


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
        ({}, "an empty dict"),
        ({"state_dict": {}}, "an empty dict"),
        ({"a": torch.ones(1), "epoch": 3}, "entry 'epoch' holds a int"),
        ({"net": {"a": torch.ones(1), "lr": 0.1}}, "entry 'net' holds a dict"),
        ({"net": {"a": torch.ones(1)}, "disc": {"b": torch.ones(1)}}, "several sets of weights ('net', 'disc')"),
        ({"net": torch.ones(1).untyped_storage()}, "entry 'net' holds a Storage"),
        ({("a", 1): torch.ones(1)}, "a key of type tuple"),
        ({1: torch.ones(1)}, "a key of type int"),
        ({"\x1b[31m\n": 3}, "x1b"),
    ],
)
def test_what_is_not_named_tensors_is_refused(tmp_path: Path, content: object, named: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert named in refusal(lambda: read_tensors(tmp_path / "w.pt"), WeightsError)


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    assert "'model'" in refusal(lambda: read_tensors(tmp_path / "w.pt"), WeightsError)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "legacy.pt"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    if name == "w.safetensors":
        save_weights(small(), path)
    else:
        torch.save(small().state_dict(), path, _use_new_zipfile_serialization=name == "w.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refusal(lambda: read_tensors(path), WeightsError)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path, name: str) -> None:
    assert "no such file" in refusal(lambda: read_tensors(tmp_path / name), WeightsError)
    (tmp_path / name).mkdir()
    assert "not a file" in refusal(lambda: read_tensors(tmp_path / name), WeightsError)


def test_a_module_that_looks_at_the_version_of_its_state_takes_its_weights(tmp_path: Path) -> None:
    """torchvision's MNASNet refuses a state without the version that its modules give theirs."""
    from torchvision.models import mnasnet0_5

    torch.manual_seed(0)
    first, second = (mnasnet0_5(num_classes=3) for _ in range(2))
    save_weights(first, tmp_path / "weights.safetensors")
    load_weights(second, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
