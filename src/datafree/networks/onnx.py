"""ONNX export, and ONNX files run by onnxruntime on the CPU.

B images, C classes, L locations, H x W pixels.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.config.extras import require
from datafree.errors import NetworkError, WeightsError
from datafree.networks.comparison import WORST, relative_error, tensors_of, undecided
from datafree.networks.normalized import Normalized
from datafree.ops import modes
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions
from datafree.storage import strict_json, written
from datafree.text import is_unicode, one_line, show

DESCRIPTION = "datafree"  # the entry of a file's metadata that holds `OnnxNetwork.description` as JSON
BATCHES = (1, 3)  # images at once in the check; the graph is traced with two

_FIXED = "Constraints violated"  # what torch says of a number of images that came out fixed
_SMALLEST = 1e-7  # scores are kept this far from 0 and 1 where logits are made of them


class OnnxNetwork(nn.Module):
    """A network in an ONNX file: images (B, 3, H, W) in [0, 1] -> its `logits`, or `Predictions` of `boxes`, `scores`.

    It has no parameters that could be trained and no gradients. A detector's answer has no raw heads, its
    `class_logits` are those of its scores. `description` is what `datafree export` wrote into the file: "task",
    "class_names". Raises DatafreeError without onnxruntime, WeightsError for a file that cannot be read, NetworkError
    for other inputs or outputs.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._session = open_session(file)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._outputs = [output.name for output in outputs]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            raise NetworkError(
                f"{file} does not take one float tensor (B, 3, H, W); `datafree export` writes such files"
            )
        if self._outputs not in (["logits"], ["boxes", "scores"]):
            raise NetworkError(
                f"{file} answers {show(self._outputs)}, not logits, nor boxes and scores; `datafree export` writes such"
            )
        self._input, self._shape = inputs[0].name, tuple(inputs[0].shape)
        self.description = _description(self._session)

    def forward(self, images: Tensor) -> Tensor | Predictions:
        """Raises NetworkError for images of another size than the file's."""
        wanted = [side for side in self._shape[1:] if isinstance(side, int)]
        if len(wanted) == 3 and list(images.shape[1:]) != wanted:
            raise NetworkError(
                f"{self.file} takes images of {wanted[1]} x {wanted[2]} pixels and {wanted[0]} channels, not "
                f"{' x '.join(map(str, images.shape[2:]))} and {images.shape[1]}"
            )
        values = images.detach().to("cpu", torch.float32).contiguous().numpy()
        try:
            arrays = self._session.run(None, {self._input: values})
        except Exception as error:  # of classes that onnxruntime does not export
            raise NetworkError(f"{self.file} cannot be computed ({one_line(error)})") from error
        return answer_of([torch.from_numpy(array).to(images.device) for array in arrays])


def write_onnx(
    network: Normalized, file: Path, size: tuple[int, int], description: Mapping[str, Any], *, opset: int | None = None
) -> int:
    """Write `network` for images of `size` (height, width) as an ONNX graph, and return its opset.

    The graph takes `images` (B, 3, H, W), any number at once, and holds mean, standard deviation and channel order; it
    answers `logits`, or `boxes` (B, L, 4) and `scores` (B, L, C) of a detector. `opset`: torch's choice by default.
    Raises NetworkError if the network cannot be traced or written in that opset, DatafreeError without the packages.
    """
    require("exporting to ONNX", "onnx", "onnxscript")
    try:
        with silence(), torch.no_grad(), modes.frozen(network):
            from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # comes with onnxscript

            names = names_of(network(noise(2, size)))
            # Traced here and not by onnx.export, which gives up on the free number of images without a word.
            made: Any = torch.onnx.export(
                traced(network, size, batch=True),
                dynamo=True,
                input_names=["images"],
                output_names=names,
                opset_version=opset,
                verbose=False,
            )
            ClearMetadataAndDocStringPass()(
                made.model
            )  # lines of the network's code, and where they lie on this machine
            made.model.metadata_props[DESCRIPTION] = json.dumps(description)
            written = int(made.model.opset_imports[""])
            if opset not in (None, written):  # torch says nothing of a version that it cannot turn its own into
                raise NetworkError(
                    f"opset {opset} is asked for, but torch writes this network as opset {written}: ask for "
                    f"{written}, or leave it out"
                )
            made.save(str(file), external_data=False)
            return written
    except (OSError, NetworkError):
        raise
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        raise NetworkError(f"the network cannot be exported to ONNX ({why(error)}); leave ONNX out") from error


def traced(network: Normalized, size: tuple[int, int], *, batch: bool) -> torch.export.ExportedProgram:
    """`network` as torch traces it for images of `size`, its answers as tensors: of any number of images, or of one.

    Raises whatever torch and the network's own code do.
    """
    answers, example = Answers(network), noise(2 if batch else 1, size)
    free = ({0: torch.export.Dim("batch", min=1, max=2**16)},) if batch else None
    with torch.no_grad(), modes.frozen(answers):
        try:
            return torch.export.export(answers, (example,), dynamic_shapes=free, strict=False)
        except Exception as error:
            if _FIXED not in str(error):
                raise
            # len(images) is a plain number to Python, but not to the slower reader of its code (RT-DETR).
            try:
                return torch.export.export(answers, (example,), dynamic_shapes=free, strict=True)
            except Exception:
                raise error from None


def opset_of(file: Path) -> int | None:
    """The opset of an ONNX file; None where it does not say."""
    import onnx

    versions = {each.domain: each.version for each in onnx.load(str(file), load_external_data=False).opset_import}
    return versions.get("")


def why(error: BaseException) -> str:
    """Why a network cannot be traced or converted, on one line."""
    if type(error).__name__ == "GuardOnDataDependentSymNode":  # torch's, but in no public module
        return "what it computes depends on what it finds in an image, as a two-stage detector's proposals do"
    if _FIXED in str(error):
        return "its code fixes how many images there are, as len(images) does where images.shape[0] would not"
    return one_line(error)


@contextmanager
def silence() -> Iterator[None]:
    """Keep from the user what the libraries say of their own affairs: deprecations, graphs, a line for each tensor."""
    root, silent = logging.getLogger(), logging.NullHandler()  # a root logger without a handler would be given one
    level = root.level
    root.addHandler(silent)
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(silent)


def check_onnx(network: Normalized, file: Path, size: tuple[int, int]) -> dict[int, float]:
    """The relative error of `file` against `network`, for batches of each of BATCHES images of noise.

    Raises NetworkError above WORST.
    """
    exported, errors = OnnxNetwork(file), {}
    with torch.no_grad(), modes.frozen(network):
        for count in BATCHES:
            images = noise(count, size)
            errors[count] = relative_error(network(images), exported(images))
    worst = max(errors.values())
    if not worst <= WORST:
        raise NetworkError(
            f"the ONNX file does not answer as the network: a relative error of {worst:.1e}, more than {WORST:.0e}; it "
            f"was not kept: {undecided(network, noise(BATCHES[-1], size)) or 'try another opset'}, or leave ONNX out"
        )
    return errors


def open_session(file: Path) -> Any:
    """An onnxruntime session of `file` on the CPU, with torch's number of threads. Raises as `OnnxNetwork`.

    onnxruntime reads no data beside the file from outside its folder.
    """
    require("computing ONNX files", "onnxruntime")
    import onnxruntime

    if not file.is_file():
        raise WeightsError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
    written.check(file)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow torch down
    settings.log_severity_level = 4  # what goes wrong is raised as well
    try:
        model = str(file) if is_unicode(str(file)) else file.read_bytes()
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes that onnxruntime does not export
        raise WeightsError(f"{file}: damaged, or not an ONNX file ({one_line(error)}): fetch it again") from error


def _description(session: Any) -> Mapping[str, Any]:
    try:
        found = strict_json.parse(session.get_modelmeta().custom_metadata_map[DESCRIPTION])
    except (KeyError, strict_json.Damaged):
        return {}
    return found if isinstance(found, Mapping) else {}


def answer_of(tensors: Sequence[Tensor]) -> Tensor | Predictions:
    """The answer that a file's tensors are: logits, or boxes (B, L, 4) and scores (B, L, C)."""
    if len(tensors) == 1:
        return tensors[0]
    boxes, scores = tensors
    return Predictions(
        class_logits=scores.clamp(_SMALLEST, 1 - _SMALLEST).logit(),
        scores=scores,
        boxes=boxes,
        centres=(boxes[..., :2] + boxes[..., 2:]) / 2,
        heads=(),
        loss=_no_loss,
    )


def _no_loss(heads: Heads, targets: list[Labelled]) -> Tensor:
    raise NetworkError("an exported file has no training loss; distil from the network it was exported from")


class Answers(nn.Module):
    """What a file's graph can answer: tensors."""

    def __init__(self, network: Normalized) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        answers = tensors_of(self.network(images))
        return answers if len(answers) > 1 else answers[0]


def names_of(answer: Tensor | Predictions) -> list[str]:
    """What a file calls those tensors."""
    return ["boxes", "scores"] if isinstance(answer, Predictions) else ["logits"]


def noise(count: int, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) of noise, always the same."""
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))
