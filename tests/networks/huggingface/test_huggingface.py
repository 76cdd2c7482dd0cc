"""Model directories: answers are those of transformers and timm, and nothing in a directory runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datafree
from datafree.deploy.snippets import load_snippet
from datafree.engine.build_networks import prepare
from datafree.errors import DatafreeError, NetworkError, WeightsError
from datafree.evaluation.finished_run import load_student
from datafree.networks import bounded
from datafree.networks.comparison import relative_error
from datafree.networks.families import choose_student
from datafree.networks.huggingface.detectors import adapt
from datafree.networks.huggingface.directory import open_directory
from datafree.networks.huggingface.smaller import smaller
from datafree.networks.load import NetworkSpec, build_network, has_weights
from datafree.networks.normalized import Normalized, bare
from datafree.networks.onnx import OnnxNetwork, check_onnx, write_onnx
from datafree.networks.preprocessing import known
from datafree.ops import boxes
from datafree.preflight.inspection import inspect_teacher
from datafree.tasks.classification import Classification

transformers = pytest.importorskip("transformers")

LABELS = {"id2label": dict(enumerate("abcde")), "label2id": {name: c for c, name in enumerate("abcde")}}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
DETR = {**HEADS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 10}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def make(model: str, **options: Any) -> Any:
    """A tiny random network of transformers', of five classes, in eval mode."""
    torch.manual_seed(0)
    kind = getattr(transformers, model)
    network = kind(kind.config_class(**LABELS, **options)).eval()
    for norm in network.modules():  # as if it had seen something
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.9, 1.1)
    return network


def saved(folder: Path, network: Any, preprocessor: dict[str, Any] | None = None, **options: Any) -> str:
    """The name of a directory that `network` is saved in."""
    network.save_pretrained(folder, **options)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return f"hf/{folder}"


def vit(folder: Path, preprocessor: dict[str, Any] | None = None, **options: Any) -> str:
    return saved(folder, make("ViTForImageClassification", **VIT, image_size=32, patch_size=8, **options), preprocessor)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def detr() -> Any:
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage4"])
    return make("DetrForObjectDetection", use_timm_backbone=False, backbone_config=backbone, **DETR)


def yolos() -> Any:
    return make("YolosForObjectDetection", **VIT, image_size=[64, 64], patch_size=16, num_detection_tokens=10)


def rt_detr() -> Any:
    backbone = transformers.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    sizes = {"encoder_in_channels": [8, 8, 16], "decoder_in_channels": [16] * 3, "encoder_hidden_dim": 16}
    return make(
        "RTDetrForObjectDetection",
        backbone_config=backbone,
        **sizes,
        **{key: value for key, value in DETR.items() if key != "encoder_layers"},
    )


# --- smaller ones ---


def test_auto_is_a_smaller_config_of_the_same_architecture(tmp_path: Path) -> None:
    """Of ViT's parameters about a fourth: half as wide, with as wide heads; of ResNet's likewise."""
    sizes = {**VIT, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 4}
    vit = saved(tmp_path / "vit", make("ViTForImageClassification", **sizes, image_size=32, patch_size=8))
    wide = {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    resnet = saved(tmp_path / "resnet", make("ResNetForImageClassification", **wide))
    task = Classification(num_classes=5, image_size=(32, 32))
    for name in (vit, resnet):
        teacher = NetworkSpec(network=name)
        spec, line = choose_student(NetworkSpec(network="auto"), teacher, task, None)
        counts = [
            sum(p.numel() for p in bare(build_network(one, num_classes=5)).parameters()) for one in (teacher, spec)
        ]
        assert spec.network == name
        assert spec.args["pretrained"] is False
        assert 2.5 < counts[0] / counts[1] < 6, line
    assert choose_student(NetworkSpec(network="auto"), NetworkSpec(network=vit), task, None)[0].args == {
        "pretrained": False,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
    }


def test_configs_of_every_kind_have_smaller_ones_that_can_be_built(tmp_path: Path) -> None:
    segformer = {"hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "depths": [2, 2], "num_encoder_blocks": 2}
    many = {
        "sr_ratios": [4, 2],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 8,
    }
    name = saved(tmp_path, make("SegformerForSemanticSegmentation", **segformer, **many))
    offered = list(smaller(open_directory(name).config))
    assert {"depths": [1, 1]} in offered
    assert {"hidden_sizes": [4, 8]} in offered
    for options in ({"depths": [1, 1]}, {"hidden_sizes": [4, 8]}):
        spec = NetworkSpec(network=name, args={"pretrained": False, **options})
        built = spec.wrap(build_network(spec, num_classes=5))
        assert built.eval()(images(32)).shape == (2, 5, 32, 32)
    assert not list(smaller({"architecture": "resnet18"}))  # nothing that is known of it


# --- answers ---


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "vit": lambda: make("ViTForImageClassification", **VIT, image_size=32, patch_size=8),
    "resnet": lambda: make("ResNetForImageClassification", **RESNET),
    "convnext": lambda: make("ConvNextForImageClassification", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_answers_as_in_transformers(kind: str, tmp_path: Path) -> None:
    network = CLASSIFIERS[kind]()
    name = saved(tmp_path, network, {**IMAGENET, "do_normalize": True})
    spec = NetworkSpec(network=name, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    built = spec.wrap(build_network(spec, num_classes=5)).eval()
    x = images(32)
    mean, std = (torch.tensor(IMAGENET[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        torch.testing.assert_close(built(x), network((x - mean) / std).logits, atol=1e-5, rtol=0)
    assert type(bare(built)) is type(network)


def test_class_maps_at_a_quarter_of_the_resolution_come_back_at_the_images_own(tmp_path: Path) -> None:
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
    network = make("SegformerForSemanticSegmentation", **sizes, decoder_hidden_size=16)
    spec = NetworkSpec(network=saved(tmp_path, network))
    built = spec.wrap(build_network(spec, num_classes=5)).eval()
    x = images(64)
    with torch.no_grad():
        coarse = network(x).logits
        assert coarse.shape == (2, 5, 16, 16)
        wanted = F.interpolate(coarse, size=(64, 64), mode="bilinear", align_corners=False)  # as its processor does
        torch.testing.assert_close(built(x), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", [detr, yolos, rt_detr])
def test_a_detector_answers_as_in_transformers(network: Callable[[], Any], tmp_path: Path) -> None:
    theirs = network()
    spec = NetworkSpec(network=saved(tmp_path, theirs))
    built = build_network(spec, num_classes=5).eval()
    x = F.interpolate(images(64), size=(64, 96)) if network is not yolos else images(64)
    height, width = x.shape[-2:]
    with torch.no_grad():
        ours, answer = built(x), theirs(x)
    processor = {
        "detr": lambda: transformers.DetrImageProcessor(),
        "yolos": lambda: transformers.YolosImageProcessor(),
        "rt_detr": lambda: transformers.RTDetrImageProcessor(),
    }[network.__name__]()
    found = processor.post_process_object_detection(answer, threshold=0.0, target_sizes=[(height, width)] * 2)
    for index, image in enumerate(found):
        if network is rt_detr:  # the surest pairs of a query and a class
            scores, places = ours.scores[index].flatten().topk(len(image["scores"]))
            labels, chosen = places % 5, ours.boxes[index][places // 5]
        else:  # every query's surest class
            scores, labels = ours.scores[index].max(-1)
            chosen = ours.boxes[index]
        torch.testing.assert_close(scores, image["scores"], atol=1e-5, rtol=0)
        assert labels.tolist() == image["labels"].tolist()
        torch.testing.assert_close(chosen, image["boxes"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("network", [detr, yolos])
def test_a_detectors_own_loss_is_transformers(network: Callable[[], Any], tmp_path: Path) -> None:
    theirs = network()
    built = build_network(NetworkSpec(network=saved(tmp_path, theirs)), num_classes=5).eval()
    x = images(64)
    ids, corners = torch.tensor([1, 4]), torch.tensor([[8.0, 16.0, 40.0, 48.0], [0.0, 0.0, 64.0, 32.0]])
    targets = boxes.pack([(ids, corners), (ids[:0], corners[:0])], 2)
    shares = torch.tensor([[24.0, 32.0, 32.0, 32.0], [32.0, 16.0, 64.0, 32.0]]) / 64  # centre and sides
    none = {"class_labels": ids[:0], "boxes": shares[:0]}
    with torch.no_grad():
        wanted = theirs(x, labels=[{"class_labels": ids, "boxes": shares}, none]).loss
        torch.testing.assert_close(built(x).own_loss(targets), wanted)
    loss = built(x).own_loss(boxes.pack([(ids[:0], corners[:0])] * 2, 2))
    loss.backward()  # of images without a box, too
    assert any(parameter.grad is not None for parameter in built.parameters())


def test_queries_of_two_networks_are_never_matched(tmp_path: Path) -> None:
    from datafree.tasks.head_match import head_difference

    spec = NetworkSpec(network=saved(tmp_path, yolos()))
    one, other = (build_network(spec, num_classes=5).eval() for _ in range(2))
    x = images(64)
    assert "queries" in head_difference(one(x), other(x))
    assert head_difference(one(x), one(x)) == ""


def test_a_network_of_transformers_can_be_given_as_an_object(tmp_path: Path) -> None:
    from datafree.networks.load import adapted

    assert adapted(yolos())(images(64)).scores.shape == (2, 10, 5)
    network = CLASSIFIERS["vit"]()
    prepared = prepare(
        NetworkSpec(network="own:vit"),
        Classification(num_classes=5, image_size=(32, 32)),
        "teacher",
        torch.device("cpu"),
        torch.float32,
        network,
    )
    torch.testing.assert_close(prepared(images(32)), network(images(32)).logits)


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    network = CLASSIFIERS["vit"]()
    name = saved(tmp_path, network, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    built = build_network(NetworkSpec(network=name), num_classes=5).eval()
    torch.testing.assert_close(built(images(32)).logits, network(images(32)).logits)


def test_a_directory_of_timms_is_built_by_timm(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=4).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    given = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 160, 160]}
    config = {"architecture": "test_resnet", "num_classes": 4, "pretrained_cfg": given, "label_names": list("wxyz")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = NetworkSpec(network=f"hf/{tmp_path}")
    built = build_network(spec, num_classes=4).eval()
    torch.testing.assert_close(built(images(64)), network(images(64)))
    found = known(spec)
    assert found is not None
    assert (found.mean, found.std, found.input_size, found.classes) == ((0.5,) * 3, (0.25,) * 3, (160, 160), 4)


# --- students ---


def test_a_student_is_built_anew_by_options_of_the_config(tmp_path: Path) -> None:
    name = vit(tmp_path)
    spec = NetworkSpec(network=f"{name}?num_hidden_layers=1&hidden_size=8")
    assert not has_weights(spec)
    network = build_network(spec, num_classes=3)
    with torch.no_grad():
        assert network(images(32)).logits.shape == (2, 3)
    assert sum(".q_proj.weight" in key for key in network.state_dict()) == 1
    assert has_weights(NetworkSpec(network=name))
    assert not has_weights(NetworkSpec(network=f"{name}?pretrained=false"))


def run(folder: Path, teacher: str, student: str, **task: Any) -> datafree.Result:
    return datafree.distill(
        teacher=teacher,
        student=student,
        task={"kind": "classification", "num_classes": 5, "image_size": (32, 32), **task},
        source={"method": "procedural", "batch_size": 4, "warmup": 1, "update_every": 0},
        training={"steps": 2, "batch_size": 4, "device": "cpu"},
        out=folder,
    )


def test_a_directory_teaches_another_and_its_classes_names_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = vit(tmp_path / "vit", {**IMAGENET, "size": {"height": 32, "width": 32}})
    result = run(tmp_path / "run", name, f"{name}?num_hidden_layers=1")
    described = json.loads((tmp_path / "run" / "student.json").read_text())
    assert described["class_names"] == list("abcde")
    assert described["teacher"]["network"] == "hf/vit"
    assert described["network"]["mean"] == IMAGENET["image_mean"]  # the directory says so of both
    again = load_student(tmp_path / "run", student=f"{name}?num_hidden_layers=1").network.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images(32)), result.network.eval()(images(32)))
    with pytest.raises(NetworkError, match=r"place to read.*--student hf/"):
        load_student(tmp_path / "run")
    snippet = load_snippet(load_student(tmp_path / "run", student=f"{name}?num_hidden_layers=1"))
    assert str(tmp_path) not in snippet
    shutil.copy(tmp_path / "run" / "student.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)  # where hf/vit is the directory
    space: dict[str, Any] = {}
    exec(snippet, space)  # the model card's code
    assert space["logits"].shape == (1, 5)


@pytest.mark.slow
def test_a_student_from_a_directory_is_exported(tmp_path: Path) -> None:
    name = vit(tmp_path / "vit", IMAGENET)
    result = run(tmp_path / "run", name, f"{name}?num_hidden_layers=1")
    x = images(32)
    datafree.export(tmp_path / "run", tmp_path / "out", student=f"{name}?num_hidden_layers=1")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = next((tmp_path / "out").glob("*.onnx"))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), result.network.cpu().eval()(x), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_rt_detr_in_onnx_answers_as_in_torch_for_any_number_of_images(tmp_path: Path) -> None:
    """It counts images by len(), and orders its queries by scores that differ by less than they are rounded."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    network = rt_detr()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():  # else its small random layers tell no two places apart
        for _ in range(4):
            network.train()(images(64, 8))
    detector = Normalized(adapt(network.eval()))
    write_onnx(detector, tmp_path / "a.onnx", (64, 64), {})
    written = OnnxNetwork(tmp_path / "a.onnx")
    with torch.no_grad():
        assert relative_error(detector.eval()(images(64, 5)), written(images(64, 5))) < 1e-4
    assert max(check_onnx(detector, tmp_path / "a.onnx", (64, 64)).values()) < 1e-4


# --- images ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTImageProcessor", {}),
        ("ViTImageProcessor", IMAGENET),
        ("ViTImageProcessor", {"do_rescale": False, "image_mean": [124.0, 116.0, 104.0], "image_std": [58.0] * 3}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("ViTImageProcessor", {"do_normalize": False, "do_rescale": False}),
        ("EfficientNetImageProcessor", {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}),
        ("EfficientNetImageProcessor", IMAGENET),
        ("MobileViTImageProcessor", {"do_center_crop": False}),
        ("PPLCNetImageProcessor", {"do_center_crop": False}),
    ],
)
def test_images_are_normalised_as_the_image_processor_does(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    processor = getattr(transformers, kind)(**options, do_resize=False)
    processor.save_pretrained(tmp_path)
    vit(tmp_path)
    found = known(NetworkSpec(network=f"hf/{tmp_path}"))
    assert found is not None
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = processor(pixels, return_tensors="pt")["pixel_values"][0]
    assert found.channel_order is not None
    given = Normalized(nn.Identity(), found.mean, found.std, channel_order=found.channel_order).prepared(
        pixels[None] / 255
    )
    torch.testing.assert_close(given[0], wanted.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"size": {"height": 24, "width": 32}}, (24, 32)),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, (32, 32)),
        ({"size": {"shortest_edge": 40}}, (40, 40)),
        ({"size": 28}, (28, 28)),
        ({"size": 28, "do_resize": False}, None),
        (
            {"image_processor_type": "PerceiverImageProcessor", "size": 24, "do_center_crop": True, "crop_size": 28},
            (24, 24),
        ),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, None),
        ({"size": 800, "max_size": 1333}, None),
    ],
)
def test_the_size_is_what_reaches_the_network(
    given: dict[str, Any], size: tuple[int, int] | None, tmp_path: Path
) -> None:
    found = known(NetworkSpec(network=vit(tmp_path, given)))
    assert found is not None
    assert (found.input_size, found.classes, found.origin) == (size, 5, "preprocessor_config.json")


def test_an_image_size_that_does_not_fit_names_the_way_out(tmp_path: Path) -> None:
    spec = NetworkSpec(network=vit(tmp_path, {"size": {"height": 32, "width": 32}}))
    task = Classification(num_classes=5, image_size=(48, 48))
    with pytest.raises(NetworkError, match=r"set teacher.input_size=\[32, 32\]"):
        prepare(spec, task, "teacher", torch.device("cpu"), torch.float32)


# --- what is refused ---

RAN: list[str] = []


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return RAN.append, ("a pickle",)


def refusal(name: str, classes: int = 5, **spec: Any) -> str:
    with pytest.raises(DatafreeError) as caught:
        build_network(NetworkSpec(network=name, **spec), num_classes=classes)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_config_that_names_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    name = vit(tmp_path)
    (tmp_path / "modeling.py").write_text("raise SystemExit('ran')")
    code = {"AutoModelForImageClassification": "modeling.Mine", "AutoConfig": "modeling.MyConfig"}
    edit(tmp_path, auto_map=code)
    assert "names code of its own" in refusal(name)
    edit(tmp_path, auto_map=None, backbone_config={"auto_map": code})  # deeper
    assert "names code of its own" in refusal(name)


def test_pickled_weights_are_read_as_tensors_only(tmp_path: Path) -> None:
    network = CLASSIFIERS["vit"]()
    name = saved(tmp_path, network)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    built = build_network(NetworkSpec(network=name), num_classes=5).eval()
    torch.testing.assert_close(built(images(32)).logits, network(images(32)).logits)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({**tensors, "more": Canary()}))
    refusal(name)
    assert not RAN


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, "holds a 'BertModel'"),
        (
            {"architectures": ["Mask2FormerForUniversalSegmentation"], "model_type": "mask2former"},
            "which is not done here: take a SomethingForSemanticSegmentation",
        ),
        (
            {"architectures": ["ViTModel"]},
            "holds a 'ViTModel' ('vit'), none of image classification, semantic segmentation or object detection: "
            "save it as a ViTForImageClassification, with its head trained",
        ),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "save it as a CLIPForImageClassification"),
        ({"architectures": ["os.system"]}, "holds a 'os.system'"),
        ({"architectures": None}, "holds a None"),
        ({"model_type": "resnet"}, "not vit"),
        ({"num_channels": 4}, "takes images of 4 channels"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"id2label": {"0": "a", "5": "b"}}, "id2label"),
        ({"hidden_size": 32}, "of another shape"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"hidden_size": -1}, "does not take them"),
    ],
)
def test_a_config_that_does_not_serve_is_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    name = vit(tmp_path)
    edit(tmp_path, **changes)
    assert said in refusal(name)


def test_a_directory_whose_head_is_untrained_is_told_apart(tmp_path: Path) -> None:
    """A ViTModel whose config was made to name a classifier, which transformers would fill with random numbers."""
    name = vit(tmp_path)
    transformers.ViTModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    edit(tmp_path, architectures=["ViTForImageClassification"])
    assert "without its last layer, the classifier ('classifier.weight', 'classifier.bias' missing)" in refusal(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 100_000}, "a network of more than 2,000 modules"),
        ({"hidden_size": 10_000}, "has 803,640,069 parameters, but only 7,941 values"),
        ({"intermediate_size": 10**9}, "parameters, but only"),
    ],
)
def test_a_config_far_larger_than_its_weights_is_refused_before_it_takes_memory(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = vit(tmp_path)
    edit(tmp_path, **changes)
    monkeypatch.setattr(transformers.ViTForImageClassification, "from_pretrained", None)  # which takes it
    monkeypatch.setattr(bounded, "MOST_MODULES", 2_000)
    assert said in refusal(name)


def test_a_directory_of_timms_fetches_nothing_and_is_no_larger_than_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    asked: list[dict[str, Any]] = []
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **args: asked.append(args) or make(name, **args))
    network = make("test_vit", num_classes=5, depth=2)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    config: dict[str, Any] = {"architecture": "test_vit", "num_classes": 5}
    given = {"depth": 2, "pretrained": True, "img_size": [160, 160]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": given}))
    built = build_network(NetworkSpec(network=f"hf/{tmp_path}"), num_classes=5)
    torch.testing.assert_close(built.eval()(images(160)), network.eval()(images(160)))
    assert not any(args["pretrained"] for args in asked)
    assert asked[-1]["img_size"] == [160, 160]
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {"embed_dim": 64_000}}))
    assert "parameters, but only" in refusal(f"hf/{tmp_path}")


def test_a_backbone_of_timms_as_transformers_4_wrote_it_is_built_and_the_hub_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As saved by 4.40: `backbone` and `backbone_kwargs` in place of `backbone_config`."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **options: pytest.fail("asked the Hub"))
    network = make("DetrForObjectDetection", use_timm_backbone=True, backbone="resnet18", **DETR)
    name = saved(tmp_path, network)
    old = {"in_chans": 3, "out_indices": [1, 2, 3, 4]}
    names = {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": True}
    edit(tmp_path, backbone_config=None, backbone_kwargs=old, **names)
    built = build_network(NetworkSpec(network=name), num_classes=5).eval()
    torch.testing.assert_close(built(images(64)).heads[0], network(images(64)).logits)


def test_the_task_that_a_config_says_is_taken(tmp_path: Path) -> None:
    name = vit(tmp_path, problem_type="multi_label_classification")
    found = inspect_teacher(name, size="32")
    assert (found.task.value, found.task.provenance) == ("multilabel", "known")
    assert inspect_teacher(name, size="32", task="classification").task.value == "classification"
    said: list[str] = []
    spec, task = NetworkSpec(network=name), Classification(num_classes=5, image_size=(32, 32))
    prepare(spec, task, "teacher", torch.device("cpu"), torch.float32, say=said.append)
    assert any("set task.kind=multilabel" in line for line in said)
    edit(tmp_path, problem_type="regression")
    assert "answer quantities" in refusal(name)


def test_a_backbone_is_a_name_never_a_place(tmp_path: Path) -> None:
    name = saved(tmp_path, detr())
    edit(
        tmp_path, use_timm_backbone=True, use_pretrained_backbone=True, backbone="hf_hub:some/one", backbone_config=None
    )
    assert "no network of timm's" in refusal(name)


def test_directories_without_what_is_needed_are_one_line(tmp_path: Path) -> None:
    assert "is no folder here" in refusal(f"hf/{tmp_path / 'nosuch'}")
    assert "holds no config.json" in refusal(f"hf/{tmp_path}")
    name = vit(tmp_path)
    assert "tells 5 classes apart, but the task has 7" in refusal(name, 7)
    assert "did you mean" in refusal(f"{name}?num_hiden_layers=1")
    (tmp_path / "model.safetensors").unlink()
    assert not has_weights(NetworkSpec(network=name))
    (tmp_path / "tf_model.h5").write_bytes(b"")
    assert "Keras (tf_model.h5)" in refusal(f"{name}?pretrained=true")
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in refusal(name)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "cannot be read" in refusal(name)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = CLASSIFIERS["vit"]()
    network.classifier.bias.data[0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        build_network(NetworkSpec(network=saved(tmp_path, network)), num_classes=5)


def test_a_name_found_in_a_file_opens_no_directory(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="never done for a name found in a file"):
        build_network(NetworkSpec(network=vit(tmp_path)), num_classes=5, allow_import=False)
