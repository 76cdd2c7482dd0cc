"""Darknet's files: what a hand-made one makes of an image, and what is refused, with its line or layer named."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import struct
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from darknet_files import save_darknet_weights
from datafree.config.schema import Invalid, build
from datafree.errors import RecipeError, WeightsError
from datafree.networks.darknet.cfg import parse_cfg, read_cfg
from datafree.networks.darknet.network import Darknet
from datafree.networks.darknet.weights import load_darknet_weights
from datafree.networks.darknet.yolov3 import cfg_text
from datafree.networks.libraries import _DATAFREE
from datafree.networks.load import FILES, NetworkSpec, build_network
from datafree.recipe.recipe import Recipe, dump, load_recipe
from weights_files import refusal, same

Array = NDArray[np.float64]

# Every kind of layer. The numbers of layers stand before them.
CFG = """
[net]
# Testing
batch=1
channels=2
hue=.1

#0
[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky

[maxpool] ; 1
size=2
stride=1

#2
[convolutional]
batch_normalize = 1
filters = 4
size = 3
stride = 1
pad = 1
groups = 2
activation = mish

#3
[shortcut]
from=-2
activation=linear

#4
[route]
layers=-1
groups=2
group_id=1

#5
[maxpool]
size=2
stride=2

#6
[maxpool]
size=3
stride=1

#7
[convolutional]
size=1
stride=1
pad=1
filters=6
activation=linear

#8
[yolo]
mask=0
anchors=3,4, 5.5,6
classes=1
num=2
jitter=.3

#9
[route]
layers=-4

#10
[upsample]
stride=2

#11
[route]
layers=-1, 3

#12
[convolutional]
size=1
stride=1
filters=12
activation=linear

#13
[yolo]
anchors=3,4, 5.5,6
classes=1
"""
CONVOLUTIONS = {0: (4, 2, 3, True), 2: (4, 2, 3, True), 7: (6, 2, 1, False), 12: (12, 6, 1, False)}  # of CFG


def hand_made(path: Path, header: bytes, seed: int = 0) -> dict[int, dict[str, Array]]:
    """Write a .weights file of CFG as its documentation has it; layer -> what was written."""
    numbers = np.random.default_rng(seed)
    written: dict[int, dict[str, Array]] = {}
    content = header
    for layer, (outputs, inputs, size, norm) in CONVOLUTIONS.items():
        parts = {"bias": numbers.normal(size=outputs)}
        if norm:
            parts["scale"] = numbers.normal(size=outputs)
            parts["mean"] = numbers.normal(size=outputs)
            parts["variance"] = numbers.uniform(0.5, 2, size=outputs)
        parts["weight"] = numbers.normal(size=(outputs, inputs, size, size))
        for values in parts.values():
            content += struct.pack(f"<{values.size}f", *values.ravel())
        written[layer] = parts
    path.write_bytes(content)
    return written


NEW = struct.pack("<3iq", 0, 2, 5, 32_013_312)
OLD = struct.pack("<4i", 0, 1, 0, 32_013_312)


# --- the layers, naively: one image, one number at a time ---


def convolve(x: Array, parts: dict[str, Array], stride: int, groups: int = 1) -> Array:
    weight, channels = parts["weight"], x.shape[0] // groups
    outputs, _, size, _ = weight.shape
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    y = np.zeros((outputs, x.shape[1] // stride, x.shape[2] // stride))
    for k, i, j in np.ndindex(*y.shape):
        first = k // (outputs // groups) * channels
        window = padded[first : first + channels, i * stride : i * stride + size, j * stride : j * stride + size]
        y[k, i, j] = (window * weight[k]).sum()
        if "scale" in parts:
            y[k, i, j] = (y[k, i, j] - parts["mean"][k]) / math.sqrt(parts["variance"][k] + 1e-5) * parts["scale"][k]
        y[k, i, j] += parts["bias"][k]
    return y


def pool(x: Array, size: int, stride: int) -> Array:
    """A window starts (size - 1) // 2 before its cell; what is outside does not count."""
    y = np.zeros((x.shape[0], x.shape[1] // stride, x.shape[2] // stride))
    for k, i, j in np.ndindex(*y.shape):
        down, right = i * stride - (size - 1) // 2, j * stride - (size - 1) // 2
        y[k, i, j] = x[k, max(down, 0) : down + size, max(right, 0) : right + size].max()
    return y


def naive(x: Array, parts: dict[int, dict[str, Array]]) -> list[Array]:
    first = convolve(x, parts[0], stride=2)
    first = pool(np.where(first > 0, first, 0.1 * first), 2, 1)  # layer 1
    second = convolve(first, parts[2], stride=1, groups=2)
    third = second * np.tanh(np.log1p(np.exp(second))) + first  # mish; layer 3
    fifth = pool(third[2:], 2, 2)
    enlarged = fifth.repeat(2, 1).repeat(2, 2)
    joined = np.concatenate([enlarged, third])  # layer 11
    return [convolve(pool(fifth, 3, 1), parts[7], stride=1), convolve(joined, parts[12], stride=1)]


@pytest.mark.parametrize("header", [NEW, OLD], ids=["version 0.2", "version 0.1"])
def test_a_hand_made_file_answers_what_its_layers_say(tmp_path: Path, header: bytes) -> None:
    written = hand_made(tmp_path / "w.weights", header)
    network = Darknet(parse_cfg(CFG)).eval()
    load_darknet_weights(network, tmp_path / "w.weights")
    images = np.random.default_rng(1).uniform(size=(2, 2, 12, 8))
    with torch.no_grad():
        answers = network(torch.from_numpy(images).float())
    assert [tuple(answer.shape) for answer in answers] == [(2, 6, 3, 2), (2, 12, 6, 4)]
    for index, image in enumerate(images):
        for answer, expected in zip(answers, naive(image, written), strict=True):
            torch.testing.assert_close(answer[index], torch.from_numpy(expected).float(), atol=1e-4, rtol=1e-4)


def test_layers_have_the_numbers_of_the_cfg_and_body_ends_with_the_last_shortcut() -> None:
    network = Darknet(parse_cfg(CFG))
    assert [*network.layers()] == [f"body.{n}" for n in range(4)] + [f"head.{n}" for n in range(4, 14)]
    assert dict(network.named_modules())["body.2.norm"] is network.layers()["body.2"].get_submodule("norm")
    assert (network.stride, network.classes, network.channels) == (4, 1, 2)
    assert [(head.stride, head.anchors.tolist()) for head in network.heads] == [
        (4, [[3.0, 4.0]]),
        (2, [[3.0, 4.0], [5.5, 6.0]]),
    ]


def test_without_shortcuts_body_ends_before_the_first_1x1_convolution_at_the_coarsest_step() -> None:
    network = Darknet(parse_cfg(cfg_text(2, width=0.01)))
    assert len(network.body) == 13


@pytest.mark.parametrize(("size", "stride"), list(itertools.product([1, 2, 3, 4, 5, 13], [1, 2])))
def test_maxpool_is_darknets_for_all_sizes(size: int, stride: int) -> None:
    cfg = f"[net]\nchannels=6\n[maxpool]\nsize={size}\nstride={stride}\n[yolo]\nclasses=1\nanchors=1,1\n"
    x = np.random.default_rng(0).normal(size=(6, 6, 8))
    (answer,) = Darknet(parse_cfg(cfg))(torch.from_numpy(x)[None])
    np.testing.assert_array_equal(answer[0].numpy(), pool(x, size, stride))


def test_outputs_that_no_layer_needs_any_more_are_let_go() -> None:
    network = Darknet(parse_cfg(cfg_text(1, width=0.01))).eval()
    made: dict[str, weakref.ref[Tensor]] = {}
    alive: list[str] = []

    def record(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(layer: nn.Module, inputs: object, output: Tensor) -> None:
            made[name] = weakref.ref(output)
            if name == "head.20":
                alive.extend(name for name, output_of in made.items() if output_of() is not None)

        return hook

    for name, layer in network.layers().items():
        layer.register_forward_hook(record(name))
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
    # What the route has joined, what it made, and the first head's answer (a [yolo] hands it on).
    assert set(alive) == {"body.8", "head.15", "head.16", "head.19", "head.20"}


def test_a_fresh_network_finds_little_and_prefers_no_class() -> None:
    torch.manual_seed(0)
    network = Darknet(parse_cfg(cfg_text(4, width=0.1)))
    first, _ = network(torch.rand(4, 3, 64, 64))
    values = first.unflatten(1, (3, 9)).mean((0, 3, 4))  # (A, 5 + C)
    torch.testing.assert_close(values[:, 4], torch.full((3,), math.log(0.01 / 0.99)), atol=0.7, rtol=0)
    torch.testing.assert_close(values[:, 5:], torch.full((3, 4), -math.log(4)), atol=0.7, rtol=0)


# --- weights ---


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = (Darknet(parse_cfg(cfg_text(2, variant="spp", width=0.01))) for _ in range(2))
    source(torch.rand(2, 3, 32, 64))  # moves the statistics
    save_darknet_weights(source, tmp_path / "a.weights")
    load_darknet_weights(target, tmp_path / "a.weights")
    kept = [{k: v for k, v in net.state_dict().items() if "num_batches" not in k} for net in (source, target)]
    assert same(*kept)
    save_darknet_weights(target.to(memory_format=torch.channels_last), tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


def test_a_saved_file_is_the_documented_one(tmp_path: Path) -> None:
    hand_made(tmp_path / "a.weights", struct.pack("<3iq", 0, 2, 5, 0))
    network = Darknet(parse_cfg(CFG))
    load_darknet_weights(network, tmp_path / "a.weights")
    save_darknet_weights(network, tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


# Bytes: header 20, layer 0 4 * (16 + 72) = 352, layer 2 the same, layer 7 4 * 18 = 72, layer 12 4 * 84 = 336: 1132.
@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (3, "3 bytes; a Darknet file begins with a header"),
        (20, "20 bytes, but the network takes 1132: body.0 takes 352, from byte 20 on, and 0 are there"),
        (371, "371 bytes, but the network takes 1132: body.0 takes 352, from byte 20 on, and 351 are there"),
        (372, "372 bytes, but the network takes 1132: body.2 takes 352, from byte 372 on, and 0 are there"),
        (1128, "1128 bytes, but the network takes 1132: head.12 takes 336, from byte 796 on, and 332 are there"),
        (1133, "1133 bytes, but the network takes 1132: 1 are left after the last layer, head.12"),
    ],
)
def test_a_file_of_another_length_is_refused_by_the_first_layer_that_does_not_fit(
    tmp_path: Path, length: int, expected: str
) -> None:
    path = tmp_path / "w.weights"
    hand_made(path, NEW)
    assert path.stat().st_size == 1132
    path.write_bytes((path.read_bytes() + b"\0")[:length])
    network = Darknet(parse_cfg(CFG))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert expected in refusal(lambda: load_darknet_weights(network, path), WeightsError)
    assert same(before, network.state_dict())


def test_a_file_for_another_number_of_classes_says_so(tmp_path: Path) -> None:
    save_darknet_weights(Darknet(parse_cfg(cfg_text(20, width=0.01))), tmp_path / "w.weights")
    for classes in (3, 80):
        network = Darknet(parse_cfg(cfg_text(classes, width=0.01)))
        line = refusal(lambda network=network: load_darknet_weights(network, tmp_path / "w.weights"), WeightsError)
        assert "its length is that of 20 classes" in line


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "w.weights"
    with path.open("wb") as file:
        file.write(NEW)
        file.truncate(2**40)  # sparse: 1 TB that take no room
    assert f"{2**40 - 1132} are left" in refusal(
        lambda: load_darknet_weights(Darknet(parse_cfg(CFG)), path), WeightsError
    )


@pytest.mark.parametrize(
    ("at", "value", "expected"),
    [(20, math.nan, "body.0 has a bias that is not finite"), (20 + 3 * 16, -1.0, "body.0 has a variance below 0")],
)
def test_numbers_that_cannot_be_are_refused_all_or_none(tmp_path: Path, at: int, value: float, expected: str) -> None:
    path = tmp_path / "w.weights"
    hand_made(path, NEW)
    content = bytearray(path.read_bytes())
    content[at : at + 4] = struct.pack("<f", value)
    path.write_bytes(content)
    network = Darknet(parse_cfg(CFG))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert expected in refusal(lambda: load_darknet_weights(network, path), WeightsError)
    assert same(before, network.state_dict())


def test_missing_files_and_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    network = Darknet(parse_cfg(CFG))
    assert "no such file" in refusal(lambda: load_darknet_weights(network, tmp_path / "w.weights"), WeightsError)
    assert "not a file" in refusal(lambda: load_darknet_weights(network, tmp_path), WeightsError)
    assert "not a Linear" in refusal(lambda: load_darknet_weights(nn.Linear(2, 2), tmp_path), WeightsError)


# --- cfg files that are refused ---

NET = "[net]\nchannels=6\n"
YOLO = "[yolo]\nclasses=1\nanchors=1,1\n"
YOLO2 = "[yolo]\nclasses=2\nanchors=1,1\n"
CONV = "[convolutional]\nfilters=6\nactivation=linear\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "there are no layers"),
        ("[net]\n", "there are no layers"),
        (CONV, "line 1: [convolutional]; a cfg starts with [net]"),
        (NET + NET, "line 3: [net]; a cfg starts with [net] and has no other"),
        ("filters=3\n", "line 1: 'filters=3' is neither [section] nor key=value within one"),
        (NET + "[convolutional]\nfilters\n", "line 4: 'filters' is neither"),
        (NET + "[convolution]\n", "line 3: there is no section 'convolution' (did you mean convolutional?)"),
        (NET + "[gru]\n", "line 3: there is no section 'gru'; known: net, convolutional,"),
        (NET + CONV + "filters=7\n", "line 6: 'filters' stands in line 4 already"),
        ("[net]\nhue=1\nhue=2\n", "line 3: 'hue' stands in line 2 already"),
        (NET + "[convolutional]\nfilter=6\n", "line 4: [convolutional] has no option 'filter' here (did you mean"),
        (NET + YOLO + "new_coords=1\n", "line 6: [yolo] has no option 'new_coords' here"),
        (NET + "[convolutional]\nactivation=swish\n", "line 4: [convolutional] has activation 'swish'; known: linear,"),
        (NET + "[convolutional]\n", "line 3: [convolutional] has activation 'logistic'"),
        (NET + "[convolutional]\nfilters=0\n", "line 4: [convolutional] has filters='0'; whole numbers from 1 to"),
        (NET + "[convolutional]\nfilters=six\n", "line 4: [convolutional] has filters='six'"),
        (NET + "[convolutional]\nfilters=1,2\n", "line 4: [convolutional] needs one number for filters, not '1,2'"),
        (NET + f"[convolutional]\nfilters={'9' * 99}\n", "line 4: [convolutional] has filters="),
        (NET + CONV + "size=3\n", "line 6: [convolutional] of size 3 with padding 0: only odd sizes with pad=1"),
        (NET + CONV + "size=2\npad=1\n", "line 6: [convolutional] of size 2 with padding 1"),
        (NET + CONV + "groups=4\n", "line 6: [convolutional] makes 6 channels of 6, which 4 groups do not divide"),
        (NET + "[upsample]\nstride=0\n", "line 4: [upsample] has stride='0'"),
        (NET + "[route]\n", "line 3: [route] has no layers"),
        (NET + CONV + "[route]\nlayers=-2\n", "line 7: [route] is layer 1 and takes layer -2"),
        (NET + CONV + "[route]\nlayers=0,1\n", "line 7: [route] is layer 1 and takes layer 1, which does not stand"),
        (NET + CONV + "[shortcut]\nfrom=5\n", "line 7: [shortcut] has from='5'; whole numbers from -2 to 2"),
        (NET + CONV + "[route]\nlayers=0\ngroups=4\n", "line 8: [route] takes maps of [6] channels in 4 equal groups"),
        (NET + CONV + "[route]\nlayers=0\ngroups=2\ngroup_id=2\n", "line 9: [route] has group_id='2'"),
        (NET + CONV + "[maxpool]\nstride=2\n[route]\nlayers=0,1\n", "line 8: [route] joins maps of different sizes"),
        (NET + CONV + CONV.replace("6", "2") + "[shortcut]\nfrom=0\n", "line 9: [shortcut] adds 6 channels to 2"),
        (NET + YOLO + CONV, "line 6: [convolutional] takes layer 0, a [yolo]"),
        (NET + YOLO + "[route]\nlayers=0\n", "line 7: [route] takes layer 0, a [yolo]"),
        (NET + CONV, "there is no [yolo] section"),
        (NET + "[yolo]\nanchors=1,1\n", "line 3: [yolo] has no classes"),
        (NET + "[yolo]\nclasses=1\n", "line 3: [yolo] has no anchors"),
        (NET + "[yolo]\nclasses=1\nanchors=1,2,3\n", "line 5: [yolo] has 3 numbers for anchors"),
        (NET + "[yolo]\nclasses=1\nanchors=1,-2\n", "line 5: [yolo] has anchors='-2'"),
        (NET + "[yolo]\nclasses=1\nanchors=1,nan\n", "line 5: [yolo] has anchors='nan'"),
        (NET + YOLO + "num=3\n", "line 6: [yolo] has num=3, but 1 anchors"),
        (NET + YOLO + "mask=1\n", "line 6: [yolo] has mask='1'; whole numbers from 0 to 0"),
        (NET + YOLO2, "line 3: [yolo] of 1 anchors and 2 classes takes 7 channels"),
        (NET + "[upsample]\nstride=2\n" + YOLO, "line 5: [yolo] has a cell every 1/2 pixels"),
        (NET + CONV + YOLO + "[route]\nlayers=0\n" + CONV.replace("6", "7") + YOLO2,
         "line 15: [yolo] has 2 classes, the first 1"),
        (NET + "[route]\nlayers=-1\n", "line 4: [route] is layer 0 and takes layer -1"),
        (NET + "[maxpool]\n[route]\n" + "layers=0" + ",0" * 20_000, "line 4: [route] makes 120006 channels; at most"),
        (NET + CONV.replace("6", "60000") * 2, "line 6: [convolutional] is where the network exceeds"),
        (NET + CONV * 1001, "more than 1000 layers"),
        ("#" * 1_000_001, "longer than 1000000 characters"),
    ],
)  # fmt: skip
def test_what_makes_no_network_is_refused_with_its_line(text: str, expected: str) -> None:
    assert expected in refusal(lambda: Darknet(parse_cfg(text)))


def test_a_cfg_for_training_on_written_by_an_editor_of_windows_is_read(tmp_path: Path) -> None:
    """With a byte order mark, CRLF, and the option that has the last layers trained alone."""
    file = tmp_path / "mine.cfg"
    text = CFG.lstrip().replace("activation=leaky", "activation=leaky\nstopbackward=800", 1).replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    network, wanted = Darknet(read_cfg(file)), Darknet(parse_cfg(CFG))
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in wanted.state_dict().items()}


def test_a_cfg_file_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.cfg"
    assert f"cfg {path}: no such file" in refusal(lambda: read_cfg(path))
    assert f"cfg {tmp_path}: not a file" in refusal(lambda: read_cfg(tmp_path))
    path.write_bytes(b"\xff\x00\x1b[2J\n" * 3)
    assert f"cfg {path}: line 1: " in refusal(lambda: read_cfg(path))
    with path.open("wb") as file:
        file.truncate(2**40)
    assert f"cfg {path}: longer than 1000000 characters" in refusal(lambda: read_cfg(path))
    path.write_text(CFG)
    assert len(read_cfg(path)) == 15


def test_images_that_are_no_multiples_of_the_coarsest_cell_are_refused() -> None:
    network = Darknet(parse_cfg(CFG))
    line = refusal(lambda: network(torch.rand(1, 2, 14, 5)))
    assert "images of 14 x 5 pixels" in line
    assert "multiples of 4" in line
    assert "input_size: [16, 4] resizes them" in line


# A cfg's path, as a recipe writes paths.


def with_cfg(folder: Path, **networks: object) -> Recipe:
    teacher = {"network": "datafree/yolov3", **networks}
    content = {
        "task": {"kind": "detection", "num_classes": 2, "image_size": [32, 32]},
        "teacher": teacher,
        "student": {"network": "datafree/yolov3", "args": {"width": 0.0625}},
        "source": {"method": "noise"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return load_recipe(str(folder / "recipe.yaml"))


@pytest.mark.parametrize("given", ["~/a.cfg", "$PLACE/a.cfg", "${PLACE}/../nets/a.cfg", "a.cfg"])
@pytest.mark.parametrize("in_name", [True, False])
def test_a_recipes_cfg_is_a_path_like_any_other(
    given: str, in_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "nets"
    home.mkdir()
    (home / "a.cfg").write_text(cfg_text(2, width=0.0625))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PLACE", str(home))
    monkeypatch.chdir(home)
    named = {"network": f"datafree/yolov3?cfg={given}"} if in_name else {"args": {"cfg": given}}
    recipe = with_cfg(tmp_path, **named)
    monkeypatch.chdir(tmp_path)
    assert dump(recipe)["teacher"]["args"] == {"cfg": str(home / "a.cfg")}
    assert build_network(recipe.teacher, num_classes=2)


def test_a_cfg_of_an_unset_variable_or_of_no_text_is_a_fault_of_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(RecipeError) as caught:
        with_cfg(tmp_path, args={"cfg": "$NO_SUCH/a.cfg"})
    assert caught.value.problems == ["teacher.args.cfg: '$NO_SUCH/a.cfg': the variable NO_SUCH is not set"]
    with pytest.raises(RecipeError, match=r"teacher\.args\.cfg: 3 is not a path"):
        with_cfg(tmp_path, args={"cfg": 3})
    assert with_cfg(tmp_path, args={"cfg": None}).teacher.args == {"cfg": None}


def test_a_recipes_cfg_is_not_expanded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's name may hold a $, as long as it is not written in the recipe."""
    folder = tmp_path / "a$NO_SUCH"
    folder.mkdir()
    (folder / "a.cfg").write_text(cfg_text(2, width=0.0625))
    monkeypatch.chdir(folder)
    assert build_network(with_cfg(tmp_path, args={"cfg": "a.cfg"}).teacher, num_classes=2)


def test_a_cfg_outside_recipes_is_found_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.cfg").write_text(cfg_text(2, width=0.0625))
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.delenv("NO_SUCH", raising=False)
    assert build_network(NetworkSpec(network="datafree/yolov3?cfg=$PLACE/a.cfg"), num_classes=2)
    assert build_network(NetworkSpec(network="datafree/yolov3", args={"cfg": tmp_path / "a.cfg"}), num_classes=2)
    text = refusal(lambda: build_network(NetworkSpec(network="datafree/yolov3?cfg=$NO_SUCH/a.cfg"), num_classes=2))
    assert text == "cfg: '$NO_SUCH/a.cfg': the variable NO_SUCH is not set"


def test_other_networks_and_a_runs_own_files_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "a secret")
    section = {"network": "datafree/yolov3", "args": {"cfg": "$SECRET"}}
    recorded = build(NetworkSpec, section)  # as `datafree.evaluation.finished_run` reads it
    assert recorded.args == {"cfg": "$SECRET"}
    text = refusal(lambda: build_network(recorded, num_classes=2, allow_import=False))
    assert "never done" in text and "a secret" not in text
    own = NetworkSpec(network="mine:net", args={"cfg": "$SECRET"})
    assert own.located() == own
    with pytest.raises(Invalid, match=r"args\.cfg: 3 is not a path"):
        NetworkSpec(network="datafree/yolov3", args={"cfg": 3}).located()


def test_every_path_that_our_networks_take_is_known_to_be_one() -> None:
    taken = {
        name
        for make in _DATAFREE.values()
        for name, parameter in inspect.signature(make).parameters.items()
        if "Path" in str(parameter.annotation)
    }
    assert taken == set(FILES)
