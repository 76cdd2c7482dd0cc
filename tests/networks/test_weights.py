"""Weights: read as tensors and nothing else, all or none, from files that are not trusted."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_load import refusal, same, small
from torch import Tensor, nn

from datafree.errors import WeightsError
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.small import unet
from datafree.networks.weights import load_weights, read_tensors, save_weights

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


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema"])
def test_weights_are_found_inside_a_checkpoint(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, key: small().state_dict()}, tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), small().state_dict())


def test_plain_weights_come_before_their_moving_average(tmp_path: Path) -> None:
    checkpoint = {"state_dict_ema": small(1).state_dict(), "state_dict": small(0).state_dict()}
    torch.save(checkpoint, tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), small(0).state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_loaded_into_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    source, target = small(0).to(dtype), small(1)
    save_weights(source, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert same(target.state_dict(), source.float().state_dict())


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


# --- hostile and damaged files ---


class Evil:
    """Pickles into a call that creates `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.canary}'",))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle2", "pickle5"])
def test_code_in_a_file_is_never_run(tmp_path: Path, how: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "w.pt"
    content = {"state_dict": {"a": torch.ones(1), "b": Evil(canary)}}
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(Evil(canary), protocol=int(how[-1])))
        pickle.loads(path.read_bytes())  # noqa: S301 - shows that the file would do harm
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
        torch.load(path, weights_only=False)
    assert canary.exists()
    canary.unlink()
    line = refusal(lambda: read_tensors(path), WeightsError)
    assert not canary.exists()
    assert "safetensors.torch.save_file" in line
    if how != "pickle5":
        assert "posix.system" in line or "nt.system" in line


def test_the_environment_cannot_make_files_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Evil(tmp_path / "canary"), tmp_path / "w.pt")
    refusal(lambda: read_tensors(tmp_path / "w.pt"), WeightsError)
    assert not (tmp_path / "canary").exists()


def test_a_whole_pickled_network_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "w.pt")
    line = refusal(lambda: read_tensors(tmp_path / "w.pt"), WeightsError)
    assert "torch.nn.modules" in line
    assert "'w.safetensors'" in line


def test_a_checkpoint_with_other_objects_is_refused_by_their_class(tmp_path: Path) -> None:
    torch.save({"state_dict": small().state_dict(), "args": Namespace(lr=0.1)}, tmp_path / "w.pt")
    assert "argparse.Namespace" in refusal(lambda: read_tensors(tmp_path / "w.pt"), WeightsError)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"\x80\x02).")
        archive.writestr("net/data.pkl", b"\x80\x02}.")
    assert "TorchScript" in refusal(lambda: read_tensors(tmp_path / "w.pt"), WeightsError)


def zip_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(2_000_000)}, path)
    members = zip_members(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 20_000  # it would unpack to 8 MB
    assert "compressed" in refusal(lambda: read_tensors(path), WeightsError)


def test_a_zip_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(3)}, path)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in zip_members(path).items():
            archive.writestr(name, member)
    data = bytearray(content.getvalue())
    entry = data.index(b"PK\x01\x02")  # the first entry of the central directory; its size is at 20 and 24
    data[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(data)
    assert "more bytes than it has" in refusal(lambda: read_tensors(path), WeightsError)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_few_bytes_that_declare_a_huge_tensor_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1).expand(10**12)}, path, _use_new_zipfile_serialization=zipped)
    assert "'a' is no plain tensor" in refusal(lambda: read_tensors(path), WeightsError)


def test_an_old_file_that_declares_a_huge_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    storage = b"cpuq\x06K\x03"  # pickled: device, then the number of values, 3
    assert data.count(storage) == 1
    path.write_bytes(data.replace(storage, b"cpuq\x06\x8a\x08" + (10**15).to_bytes(8, "little")))
    assert "damaged" in refusal(lambda: read_tensors(path), WeightsError)


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_tensors_that_hold_no_plain_values_are_refused(tmp_path: Path, kind: str) -> None:
    tensor = torch.ones(3, device="meta") if kind == "meta" else torch.ones(3, 3).to_sparse()
    torch.save({"a": tensor}, tmp_path / "w.pt")
    assert "'a' is no plain tensor" in refusal(lambda: read_tensors(tmp_path / "w.pt"), WeightsError)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
        ({}, "an empty dict"),
        ({"state_dict": {}}, "an empty dict"),
        ({"a": torch.ones(1), "epoch": 3}, "entry 'epoch' holds a int"),
        ({"net": {"a": torch.ones(1)}}, "entry 'net' holds a dict"),
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


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**60, 2**64 - 1])
def test_a_false_safetensors_header_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(small(), path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "damaged" in refusal(lambda: read_tensors(path), WeightsError)


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


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.full((100,), 1.5)}, path)
    data = path.read_bytes()
    pattern = torch.full((100,), 1.5).numpy().tobytes()
    assert data.count(pattern) == 1
    path.write_bytes(data.replace(pattern, pattern[:50] + b"\x01" + pattern[51:]))
    assert "damaged" in refusal(lambda: read_tensors(path), WeightsError)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path, name: str) -> None:
    assert "no such file" in refusal(lambda: read_tensors(tmp_path / name), WeightsError)
    (tmp_path / name).mkdir()
    assert "not a file" in refusal(lambda: read_tensors(tmp_path / name), WeightsError)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    data=st.binary(max_size=200),
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."]),
    suffix=st.sampled_from([".safetensors", ".pt"]),
)
def test_random_bytes_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"random{suffix}"
    path.write_bytes(start + data)
    refusal(lambda: read_tensors(path), WeightsError)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), zipped=st.booleans())
def test_one_changed_byte_is_refused_in_one_line_or_read(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, zipped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    torch.save({"a": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        assert all(isinstance(t, Tensor) for t in read_tensors(path).values())
    except WeightsError as error:
        assert str(error).isprintable()
