"""The networks of libraries by name: ours, segmentation_models_pytorch's, torchvision's and timm's.

The libraries are imported when they are asked for; some take seconds. What their makers would drop or ignore silently
is refused by name. Nothing is downloaded unless an argument asks for it.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from datafree.errors import DatafreeError, NetworkError
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.foreign.ultralytics_model import build_ultralytics
from datafree.networks.imagenet_resnet import imagenet_resnet
from datafree.networks.pretrained import in_its_own_words, within_reach
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.text import one_line

_DATAFREE: dict[str, Callable[..., nn.Module]] = {
    "imagenet_resnet": imagenet_resnet,
    "resnet": resnet,
    "unet": unet,
    "yolov3": yolov3,
}
_SMP = (  # architectures of segmentation_models_pytorch
    *("deeplabv3", "deeplabv3plus", "dpt", "fpn", "linknet", "manet"),
    *("pan", "pspnet", "segformer", "unet", "unetplusplus", "upernet"),
)
_SMP_SHORT = {"encoder": "encoder_name", "output_stride": "encoder_output_stride"}
_SEGMENTATION = (  # torchvision's
    *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet101", "deeplabv3_resnet50"),
    *("fcn_resnet101", "fcn_resnet50", "lraspp_mobilenet_v3_large"),
)
_DETECTION = (  # torchvision's
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn"),
    *("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn"),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
)
_NEEDED = "networks of one image to classes, class maps or boxes are needed"
_OTHERS = {  # torchvision's other packages of networks
    "detection": f"answers masks or key points; {_NEEDED}",
    "optical_flow": f"answers how pixels move from one image to the next; {_NEEDED}",
    "quantization": "has quantised layers, without gradients; take the network of floats that it was made from",
    "video": f"takes video; {_NEEDED}",
}
_SAID_ELSEWHERE = {  # options of torchvision's detectors, and what says the same in a recipe
    **dict.fromkeys(("fixed_size", "max_size", "min_size", "size"), "input_size beside args"),
    "image_mean": "mean beside args",
    "image_std": "std beside args",
    **dict.fromkeys(("box_score_thresh", "score_thresh", "topk_candidates"), "task.score_threshold"),
    **dict.fromkeys(("box_nms_thresh", "nms_thresh"), "task.nms_iou"),
    **dict.fromkeys(("box_detections_per_img", "detections_per_img"), "task.max_boxes"),
}
_CHANNELS_ARG = {"datafree": "channels", "smp": "in_channels", "timm": "in_chans"}  # torchvision's are all for three
# Arguments by which timm reads a file itself, in older releases with pickle.
_FILE_ARGS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def library_names() -> list[str]:
    """Names ("library/name") of our networks and of libraries for segmentation and detection, sorted; timm has more."""
    libraries: dict[str, Iterable[str]] = {
        "datafree": _DATAFREE,
        "smp": _SMP,
        "torchvision": (*_SEGMENTATION, *_DETECTION),
    }
    return sorted(f"{library}/{name}" for library, names in libraries.items() for name in names)


def build_from_library(network: str, args: dict[str, Any], *, num_classes: int, channels: int) -> nn.Module:
    """The network called "library/name", a detector adapted, for `num_classes` classes and images of `channels`.

    torchvision's detectors count background as a class: they are built for `num_classes` + 1.
    Raises NetworkError for whatever cannot be built.
    """
    library, _, name = network.partition("/")
    if library not in _LIBRARIES or (library in ("datafree", "smp") and network not in library_names()):
        same = [full for full in library_names() if full.endswith(f"/{network}")]
        raise unknown(network, [*library_names(), "timm/NAME", "PACKAGE.MODULE:CALLABLE"], close=same)
    args = dict(args)
    wanted = num_classes
    for key in ("classes", "num_classes"):
        given = args.pop(key, wanted)
        if given == 1 and wanted == 2:  # one output, for yes and no
            num_classes = 1
        elif given != wanted:
            what = ", which leaves its classifier out: what it answers then is an embedding" if given == 0 else ""
            raise NetworkError(f"{network} is given {key}={given!r}{what}, but the task has {wanted}: leave {key} out")
    if channels != 3:
        if library not in _CHANNELS_ARG:
            raise NetworkError(f"{network} takes colour images only; choose another network, or channels: 3")
        args[_CHANNELS_ARG[library]] = channels
    for key in _FILE_ARGS:
        if key in args:
            raise NetworkError(f"{network} does not take {key} here: give the file as `weights`")
    args = in_its_own_words(library, network, args)
    with warnings.catch_warnings(), one_line_errors(f"{network} cannot be built with args {args}"):
        warnings.simplefilter("ignore")  # the libraries' own deprecations are not the user's concern
        with within_reach(library, name, args):
            return _LIBRARIES[library](name, dict(args), num_classes)


def _build_datafree(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    return _DATAFREE[name](num_classes=num_classes, **args)


def _build_smp(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    make = smp.MODEL_ARCHITECTURES_MAPPING[name]
    for short, full in _SMP_SHORT.items():
        if short in args and full in args:
            raise NetworkError(f"smp/{name} is given {short} and {full}, which mean the same: leave one out")
        if short in args:
            args[full] = args.pop(short)
    parameters = inspect.signature(make).parameters
    encoder = str(args.get("encoder_name", parameters["encoder_name"].default))
    if ":" in encoder:  # tu-hf_hub:..., tu-local-dir:... take code paths that download or read files
        raise NetworkError(f"encoder {encoder!r} of smp/{name} is a place: give a name, and `weights`")
    if not encoder.startswith(("tu-", "timm-")):  # those take timm's arguments, the others drop any silently
        if encoder not in smp.encoders.get_encoder_names():
            raise unknown(encoder, smp.encoders.get_encoder_names(), what=f"encoder of smp/{name}")
        _check_args(f"smp/{name}", args, parameters.keys() - {"kwargs", "classes"} | _SMP_SHORT.keys())
    network: nn.Module = make(**{"encoder_weights": None, **args, "classes": num_classes})
    return network


def _build_torchvision(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    import torchvision

    known = [*_SEGMENTATION, *_DETECTION, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        _refuse_others(name)
        raise unknown(f"torchvision/{name}", (f"torchvision/{k}" for k in known))
    if name in _DETECTION:
        return _build_detector(name, args, num_classes)
    offline = {"weights": None}
    if name in _SEGMENTATION:  # these drop arguments they do not know
        offline["weights_backbone"] = None
        parameters = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        _check_args(f"torchvision/{name}", args, parameters.keys() - {"kwargs", "num_classes"})
    network: nn.Module = torchvision.models.get_model(name, **{**offline, **args, "num_classes": num_classes})
    return network


def _refuse_others(name: str) -> None:
    """Raise NetworkError for a network that torchvision has for something else."""
    import torchvision

    if name in torchvision.models.list_models():
        family = torchvision.models.get_model_builder(name).__module__.split(".")[2]
        network = f"torchvision/{name}"
        raise NetworkError(f"{network!r} {_OTHERS.get(family, f'is made for something else; {_NEEDED}')}")


def _build_detector(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    """A detector of torchvision's, adapted, for our classes and its background: `num_classes` + 1 columns.

    Built without weights, its BatchNorm layers are ordinary ones; where `weights` or `weights_backbone` are asked for,
    torchvision makes most of them FrozenBatchNorm2d.
    """
    import torchvision
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
    from torchvision.models.detection.ssd import SSD

    from datafree.networks.torchvision_detectors import adapt

    for key in args.keys() & _SAID_ELSEWHERE.keys():
        raise NetworkError(f"torchvision/{name} does not take {key} here: set {_SAID_ELSEWHERE[key]}")
    kinds = {"fasterrcnn": FasterRCNN, "fcos": FCOS, "retinanet": RetinaNet, "ssd300": SSD, "ssdlite320": SSD}
    model = inspect.signature(kinds[name.partition("_")[0]]).parameters
    builder = torchvision.models.get_model_builder(name)
    known = inspect.signature(builder).parameters.keys() - {"kwargs", "num_classes"}
    known |= {key for key, option in model.items() if isinstance(option.default, (int, float))} - _SAID_ELSEWHERE.keys()
    known |= {"width_mult"} if name.startswith("ssdlite") else set()  # its backbone's, which passes it on
    _check_args(f"torchvision/{name}", args, known)
    network: nn.Module = builder(**{"weights": None, "weights_backbone": None, **args, "num_classes": num_classes + 1})
    return adapt(network)


def _build_timm(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    import timm

    if ":" in name or not timm.is_model(name):  # hf_hub:... and local-dir:... would download or read files
        raise unknown(f"timm/{name}", (f"timm/{known}" for known in timm.list_models()))
    network: nn.Module = timm.create_model(name, **{"pretrained": False, **args, "num_classes": num_classes})
    return network


_LIBRARIES: dict[str, Callable[[str, dict[str, Any], int], nn.Module]] = {
    "datafree": _build_datafree,
    "smp": _build_smp,
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "ultralytics": build_ultralytics,
}


def _check_args(network: str, args: dict[str, Any], known: Iterable[str]) -> None:
    for key in args:
        if key not in known:
            raise unknown(key, known, what=f"argument of {network}")


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn whatever foreign code raises into one line; the original stays as the cause."""
    try:
        yield
    except DatafreeError:
        raise
    except (Exception, SystemExit) as error:  # a user's script may call exit() at import
        raise NetworkError(f"{what}: {one_line(error)}") from error


def unknown(name: str, known: Iterable[str], what: str = "network", close: list[str] | None = None) -> NetworkError:
    """The error for a name that is none of those known, with a hint."""
    known = sorted(known)
    close = close or difflib.get_close_matches(name, known, n=3)
    listed = f"known: {', '.join(known)}" if len(known) <= 40 else f"{len(known)} are known, as {known[0]}"
    return NetworkError(f"there is no {what} {name!r}; " + (f"did you mean {' or '.join(close)}?" if close else listed))
