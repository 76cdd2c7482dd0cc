"""The network of a model directory, built by transformers itself from config and tensors that were read as data.

Tensors go through transformers' own renaming of old names, so directories of earlier releases load as well.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.config.overrides import set_classes
from datafree.errors import DatafreeError, NetworkError, WeightsError
from datafree.networks.bounded import few_modules, require_held
from datafree.networks.checkpoints.weights import load_weights, read_shapes, read_tensors, without_classifier
from datafree.networks.huggingface.directory import ModelDirectory, open_directory, require_weights_file
from datafree.networks.libraries import build_from_library, one_line_errors, unknown
from datafree.networks.pretrained import PRETRAINED, hub_offline
from datafree.text import one_line, show

_TASKS = ("IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "OBJECT_DETECTION")
_OF_MASKS = ("ForUniversalSegmentation", "ForInstanceSegmentation")  # Mask2Former, OneFormer, MaskFormer
_SAID_BY_US = (  # how it answers and where its parts come from is not the file's to say
    *("return_dict", "output_attentions", "output_hidden_states", "torchscript", "auxiliary_loss"),
    *("use_pretrained_backbone", "dtype", "torch_dtype", "attn_implementation", "experts_implementation"),
)


def asks_for_its_weights(network: str, args: Mapping[str, Any]) -> bool:
    """Whether the directory's own weights are wanted: where there are some, unless the arguments change the network.

    Raises NetworkError.
    """
    given = args.get("pretrained")
    if given is not None and not isinstance(given, bool):
        raise NetworkError(f"{network}: pretrained is {show(given)}; write true or false")
    if given is None:
        return not args and open_directory(network).weights is not None
    return given


def build_from_directory(
    network: str, args: Mapping[str, Any], *, num_classes: int, channels: int, own_weights: bool
) -> nn.Module:
    """The network of "hf/DIR", a detector adapted, for `num_classes` classes and images of `channels`.

    `args` are options of its config; `own_weights`: with those of the directory, whose classes must then be
    `num_classes`. Raises NetworkError, WeightsError.
    """
    directory = open_directory(network)
    if own_weights and directory.config.get("problem_type") == "regression":
        raise NetworkError(
            f"{network} was trained to answer quantities (problem_type regression in its config.json), not classes; "
            "networks that tell classes apart are needed"
        )
    with few_modules(f"{network}: its config.json"):
        return _built(directory, network, args, num_classes, channels, own_weights)


def _built(
    directory: ModelDirectory, network: str, args: Mapping[str, Any], num_classes: int, channels: int, own_weights: bool
) -> nn.Module:
    options = {key: value for key, value in args.items() if key != "pretrained"}
    if directory.classes == 1 and num_classes == 2 and own_weights:  # one output, for yes and no
        num_classes = 1
    if own_weights and directory.classes != num_classes:
        raise NetworkError(
            f"{network} tells {directory.classes} classes apart, but the task has {num_classes}; "
            f"{set_classes(directory.classes)}, or build it anew by {network}?pretrained=false"
        )
    if directory.timm_name is not None:
        make = partial(
            build_from_library,
            f"timm/{directory.timm_name}",
            {**_timm_args(directory), **options},
            num_classes=num_classes,
            channels=channels,
        )
        if not own_weights:
            return make()
        file = require_weights_file(directory)
        sketch = None
        with contextlib.suppress(NetworkError), torch.device("meta"):  # some need values while they are built
            sketch = make()
        if sketch is not None:
            require_held(sketch, read_shapes(file), _described(file))
        built = make()
        load_weights(built, file)
        return built
    config = _plain(directory.config)
    if config.get("num_channels", 3) != channels:
        raise NetworkError(
            f"{network} takes images of {show(config.get('num_channels'))} channels, not {channels}: images here have "
            "3, or one by channels: 1"
        )
    return _by_transformers(network, directory, config, options, num_classes, own_weights)


def _timm_args(directory: ModelDirectory) -> dict[str, Any]:
    """How the architecture was varied. That weights are fetched is not a file's to say."""
    given = directory.config.get("model_args")
    return {key: v for key, v in (given if isinstance(given, dict) else {}).items() if key not in PRETRAINED}


def _described(file: Path) -> str:
    return f"weights {file}: the network of the config.json beside it"


def _plain(value: Any) -> Any:
    """A config without what is private to transformers, and without what is not a file's to say, at every depth."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not str(k).startswith("_") and k not in _SAID_BY_US}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _by_transformers(
    network: str,
    directory: ModelDirectory,
    config: dict[str, Any],
    options: dict[str, Any],
    num_classes: int,
    own_weights: bool,
) -> nn.Module:
    transformers = _transformers(network)
    kind = _class_of(network, transformers, config)
    _check_backbone(network, config)
    with one_line_errors(f"{network} cannot be built by its config.json{f' with {options}' if options else ''}"):
        with hub_offline():  # which asks the Hub for the config of a backbone that is but a name
            made = kind.config_class.from_dict(_with_backbone(config))
        for key, value in options.items():
            if not hasattr(made, key):
                raise unknown(key, made.to_dict(), what=f"option of {network}")
            setattr(made, key, value)
        if made.num_labels != num_classes:
            made.num_labels = num_classes
        with _quiet(transformers), hub_offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own deprecations are not the user's concern
            if own_weights:
                built = _with_weights(kind, made, directory)
            else:
                built = kind._from_config(made, dtype=torch.float32)
    return adapted_detector(built.train())


def _transformers(network: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise NetworkError(
            f"{network} needs transformers, which is not installed: pip install 'datafree[transformers]'"
        ) from error
    release = transformers.__version__
    if int(release.partition(".")[0]) < 5:
        raise NetworkError(
            f"{network} needs transformers 5 or newer, and this is {release}: pip install 'datafree[transformers]'"
        )
    return transformers


def _class_of(network: str, transformers: Any, config: dict[str, Any]) -> Any:
    """The class that the config names, of those that answer images with classes, class maps or boxes."""
    from transformers.models.auto import modeling_auto

    named, model = config.get("architectures"), config.get("model_type")
    name = named[0] if isinstance(named, list) and named else None
    known: dict[str, str] = {}  # class -> model_type
    for task in _TASKS:
        for kind, made in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            known |= dict.fromkeys([made] if isinstance(made, str) else made, kind)
    if isinstance(name, str) and name.endswith(_OF_MASKS):
        raise NetworkError(
            f"{network} holds a {show(name)}, whose class maps have to be put together from masks and their classes, "
            "which is not done here: take a SomethingForSemanticSegmentation, or name code of yours (module:callable) "
            "that answers logits (B, classes, H, W) by it"
        )
    if name not in known:
        of_its_kind = sorted(made for made, kind in known.items() if kind == model)
        way = (
            f"save it as a {' or a '.join(of_its_kind)}, with its head trained"
            if of_its_kind
            else "take a SomethingForImageClassification, ForSemanticSegmentation or ForObjectDetection"
        )
        raise NetworkError(
            f"{network} holds a {show(name)} ({show(model)}), none of image classification, semantic segmentation or "
            f"object detection: {way}, or name code of yours (module:callable) that answers logits (B, classes) by it"
        )
    if model != known[name]:
        raise NetworkError(f"{network}: its config.json names {name}, but model_type {show(model)}, not {known[name]}")
    return getattr(transformers, str(name))


def _check_backbone(network: str, config: dict[str, Any]) -> None:
    """Raise NetworkError for a backbone that is a place to fetch from, not a name that timm has."""
    import timm

    inner = config.get("backbone_config")
    for held in (config, inner if isinstance(inner, dict) else {}):
        name = held.get("backbone")
        if name is not None and (not isinstance(name, str) or ":" in name or not timm.is_model(name)):
            raise NetworkError(f"{network}: its backbone is {show(name)}, which is no network of timm's")


def _with_backbone(config: dict[str, Any]) -> dict[str, Any]:
    """A backbone of timm's by name and options, as transformers 4 wrote it, as a config of its own, as 5 has it.

    transformers 5 would look for it on the Hub first.
    """
    given, gone = config.get("backbone_kwargs"), ("backbone", "backbone_kwargs", "use_timm_backbone")
    if not isinstance(given, dict) or not given or not config.get("use_timm_backbone") or config.get("backbone_config"):
        return config
    options = {"num_channels" if key == "in_chans" else key: value for key, value in given.items()}
    made = {"model_type": "timm_backbone", "features_only": True, **options, "backbone": config.get("backbone")}
    return {**{key: value for key, value in config.items() if key not in gone}, "backbone_config": made}


def _with_weights(kind: Any, config: Any, directory: ModelDirectory) -> Any:
    """A network of `kind` with the directory's tensors, all of them. Raises WeightsError."""
    file = require_weights_file(directory)
    tensors = read_tensors(file)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"weights {file}: {show(name)} has values that are not finite; use another file")
    try:
        with torch.device("meta"):
            sketch = kind(config)
        require_held(sketch, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, _described(file))
        built, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except DatafreeError:
        raise
    except Exception as error:  # whatever transformers raises for tensors of another network
        raise WeightsError(f"weights {file}: transformers does not take them ({one_line(error)})") from error
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("num_batches_tracked"))
    reshaped = sorted(str(entry[0]) for entry in found["mismatched_keys"])
    if missing and not reshaped and (line := without_classifier(built.state_dict(), missing)):
        raise WeightsError(f"weights {file} {line}")
    if missing or reshaped:
        what = f"{len(missing)} missing (first: {missing[0]!r})" if missing else ""
        what += ", " if missing and reshaped else ""
        what += f"{len(reshaped)} of another shape (first: {reshaped[0]!r})" if reshaped else ""
        raise WeightsError(f"weights {file} do not fit config.json beside it: {what}; fetch both of one revision")
    return built


def adapted_detector(network: nn.Module) -> nn.Module:
    """A detector of transformers' adapted, any other network of theirs itself. Raises NetworkError for the rest."""
    from datafree.networks.huggingface.detectors import adapt, is_detector

    return adapt(network) if is_detector(network) else network


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Within it transformers says nothing: what it has to say is said in errors here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
