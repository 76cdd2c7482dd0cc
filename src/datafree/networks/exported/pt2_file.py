"""`torch.export.save`'s .pt2 files, read as a table of steps and tensors, without torch's own loader.

That one runs what a file holds: it evaluates the text of sizes (sympy.sympify), falls back to an unrestricted unpickler
for sample inputs, and looks names up in all of torch and Python's operator. Here a file is JSON and raw values. A step
may name one of the ATen operators listed here or whole-number arithmetic, nothing else; texts of sizes, sample inputs
and guards are never looked at.

The format is torch's (torch/_export/serde/schema.py, major version 8, in an archive of version 0, torch 2.9 and later).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from datafree.errors import WeightsError
from datafree.networks.checkpoints.index import unique
from datafree.networks.checkpoints.stored_tensors import Storage, StoredTensor
from datafree.networks.checkpoints.torch_files import open_archive, read_block
from datafree.networks.exported.operators import FORMATS, TYPES, call_named, only_checks
from datafree.text import one_line, show

MAX_JSON = 32 * 2**20  # bytes of a table; those of large networks have 5
_MAJOR = 8  # of the schema


@dataclass(frozen=True, slots=True)
class Value:
    """An argument that an earlier step has made."""

    name: str


class SameDevice:
    """An argument that stands for the device of the images."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A call: of an operator of ATen or arithmetic of whole numbers. Arguments hold Value, SameDevice, plain values."""

    target: str
    call: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    makes: list[str | list[str]]  # names of what it answers, one for each


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """What a .pt2 file holds."""

    image: str  # the name that the images go by
    size: tuple[int | None, ...]  # (B, channels, H, W); None: any
    tensors: dict[str, Tensor]  # by the names that steps use
    parameters: frozenset[str]  # those that were parameters
    steps: list[Step]
    answers: list[str]
    form: Any  # of the answers: None for a tensor, a list of keys for a dict, a number for a tuple


def read_program(path: Path) -> ProgramFile:
    """What a .pt2 file holds; runs nothing, whatever that is. Raises WeightsError."""
    try:
        if not path.is_file():
            raise WeightsError(f"program {path}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            return _Reader(path, file).read()
    except WeightsError:
        raise
    except (OSError, MemoryError) as error:
        raise WeightsError(f"program {path}: cannot be read ({one_line(error)})") from error
    except Exception as error:  # KeyError, TypeError, RecursionError, ...: a table of another form
        fault = f"damaged, or not what torch.export.save writes ({one_line(error)})"
        raise WeightsError(f"program {path}: {fault}") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        if file.read(4) != b"PK\x03\x04":
            raise self.fault("not a file of torch.export.save")
        self.archive, self.members = open_archive("program", path, file)
        roots = [name.removesuffix("archive_format") for name in self.members if name.endswith("/archive_format")]
        if len(roots) != 1 or self.text("archive_format", roots[0]) != "pt2":
            raise self.fault("no program, or one of torch 2.8 or before; save it again with a newer torch")
        self.root = roots[0]
        if self.text("byteorder", self.root) != "little":
            raise self.fault("written on a big-endian machine; save it on another")

    def fault(self, what: str) -> WeightsError:
        return WeightsError(f"program {self.path}: {what}")

    def text(self, name: str, root: str) -> str:
        return self.archive.read(f"{root}{name}")[:100].decode("ascii").strip()

    def table(self, name: str) -> Any:
        member = self.members[f"{self.root}{name}"]
        if member.file_size > MAX_JSON:
            raise self.fault(f"a table of {member.file_size:,} bytes; up to {MAX_JSON:,} are read")
        return json.loads(self.archive.read(member), object_pairs_hook=unique)

    def read(self) -> ProgramFile:
        models = [name for name in self.members if re.fullmatch(re.escape(self.root) + r"models/[^/]+\.json", name)]
        if len(models) != 1:
            raise self.fault(f"holds {len(models)} programs; save one")
        name = models[0].rpartition("/")[2].removesuffix(".json")
        table = self.table(f"models/{name}.json")
        if table["schema_version"]["major"] != _MAJOR:
            raise self.fault(
                f"of version {show(table['schema_version']['major'])} of the format, {_MAJOR} is read; save it again "
                "with another torch"
            )
        module = table["graph_module"]
        graph, signature = module["graph"], module["signature"]
        stored = {
            kind: self.table(f"data/{kind}/{name}_{kind}_config.json")["config"] for kind in ("weights", "constants")
        }
        image, names, parameters = self.inputs(signature["input_specs"])
        blocks: dict[str, Tensor] = {}
        tensors = {own: self.tensor(stored, given, blocks) for own, given in names.items()}
        size = tuple(side.get("as_int") for side in graph["tensor_values"][image]["sizes"])
        if size[0] is not None:
            way = "export it for any number, with dynamic_shapes=({0: torch.export.Dim('batch')},)"
            raise self.fault(f"was exported for {size[0]} images at once; {way}")
        answers, form = self.outputs(signature["output_specs"], module["module_call_graph"])
        known = {image, *tensors}
        steps = [step for node in graph["nodes"] if (step := self.step(node, known)) is not None]
        if missing := [answer for answer in answers if answer not in known]:
            raise self.fault(f"answers {show(missing[0])}, which no step makes")
        return ProgramFile(
            image=image,
            size=size,
            tensors=tensors,
            parameters=frozenset(parameters),
            steps=steps,
            answers=answers,
            form=form,
        )

    # --- tensors ---

    def inputs(self, specs: list[dict[str, Any]]) -> tuple[str, dict[str, str], set[str]]:
        """The images' name; the steps' names of stored tensors -> the file's; those of parameters."""
        images, names, parameters = [], {}, set()
        for spec in specs:
            ((kind, given),) = spec.items()
            if kind == "user_input":
                images.append(given["arg"]["as_tensor"]["name"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                names[given["arg"]["name"]] = given[f"{kind}_name"]
                parameters |= {given["arg"]["name"]} if kind == "parameter" else set()
            else:
                raise self.fault(
                    f"takes a {kind.replace('_', ' ')}; only images, tensors and nothing else can be given to it"
                )
        if len(images) != 1:
            raise self.fault(f"takes {len(images)} inputs; export a network that takes images and nothing else")
        return images[0], names, parameters

    def tensor(self, stored: Mapping[str, Any], name: str, blocks: dict[str, Tensor]) -> Tensor:
        kind = "weights" if name in stored["weights"] else "constants"
        entry = stored[kind][name]
        meta, file = entry["tensor_meta"], entry["path_name"]
        if entry["use_pickle"] or not re.fullmatch(r"\w+", file):
            raise self.fault(f"stores {name[:80]!r} as a pickle, not as plain values")
        dtype = TYPES.get(meta["dtype"])
        if dtype is None or meta["layout"] != 7:
            raise self.fault(f"stores {name[:80]!r} in a type that is not read")
        numbers = [side["as_int"] for side in (*meta["sizes"], *meta["strides"], meta["storage_offset"])]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError("a size that is no whole number")
        rank, place = len(meta["sizes"]), f"{kind}/{file}"
        if place not in blocks:
            with self.archive.open(member := self.members[f"{self.root}data/{place}"]) as values:
                blocks[place] = read_block(values, member.file_size)
        view = StoredTensor(
            Storage(place, torch.uint8, blocks[place].numel()),
            dtype,
            numbers[-1],
            tuple(numbers[:rank]),
            tuple(numbers[rank:-1]),
        ).view(blocks[place])
        if view is None:
            raise self.fault(f"{name[:80]!r} does not lie whole in the file")
        if view.is_floating_point() and not torch.isfinite(view).all():
            raise self.fault(f"{name[:80]!r} has values that are not finite; use another file")
        return view

    # --- steps ---

    def step(self, node: Mapping[str, Any], known: set[str]) -> Step | None:
        """A node's call, None for one that only checks something; what it makes is added to `known`."""
        target = node["target"]
        if only_checks(target):
            return None
        try:
            call = call_named(target)
        except LookupError as error:
            raise self.fault(f"calls {show(target)}, {error.args[0]}") from None
        args, kwargs = [], {}
        for given in node["inputs"]:
            value = self.argument(given["arg"], known)
            if value is True and given["name"] in ("train", "training"):  # of dropout, of BatchNorm
                raise self.fault("was exported in training mode; export network.eval()")
            if given.get("kind") == 2:
                kwargs[given["name"]] = value
            else:
                args.append(value)
        makes = [self.made(output) for output in node["outputs"]]
        known.update(name for names in makes for name in ([names] if isinstance(names, str) else names))
        return Step(target=target, call=call, args=args, kwargs=kwargs, makes=makes)

    def made(self, output: Mapping[str, Any]) -> str | list[str]:
        ((kind, given),) = output.items()
        if kind == "as_tensor":
            return str(given["name"])
        if kind == "as_tensors":
            return [str(one["name"]) for one in given]
        if kind == "as_sym_int":
            return str(given["as_name"])
        raise self.fault(f"has a step that makes a value of kind {show(kind)}, which is not run from a file")

    def argument(self, given: Mapping[str, Any], known: set[str]) -> Any:
        ((kind, value),) = given.items()
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_sym_int"):
            return self.value(value, known)
        if kind in ("as_tensors", "as_sym_ints", "as_optional_tensors"):
            return [self.value(one, known) for one in value]
        if kind == "as_float" and value in _NOT_FINITE:
            return float(value)
        if kind in _PLAIN and _is_plain(value, _PLAIN[kind]):
            return value
        if kind == "as_scalar_type":
            return TYPES[value]
        if kind == "as_memory_format":
            return FORMATS[value]
        if kind == "as_layout":
            return torch.strided  # tensors of other layouts are not read
        if kind == "as_device":
            return SameDevice()
        raise self.fault(f"has a step with an argument of kind {show(kind)}, which is not run from a file")

    def value(self, given: Mapping[str, Any], known: set[str]) -> Any:
        """A tensor, a size or nothing."""
        if "as_none" in given:
            return None
        if "as_int" in given:
            if type(given["as_int"]) is not int:
                raise ValueError("a size that is no whole number")
            return given["as_int"]
        inner = given.get("as_tensor", given)
        name = inner.get("name", inner.get("as_name"))
        if name not in known:
            raise self.fault(f"uses {show(name)} before it is made")
        return Value(name)

    def outputs(self, specs: list[dict[str, Any]], calls: list[dict[str, Any]]) -> tuple[list[str], Any]:
        answers: list[str] = []
        if not specs:
            raise self.fault("answers nothing; export a network that answers its logits")
        for ((kind, given),) in map(dict.items, specs):
            if kind != "user_output":
                raise self.fault(f"does not only answer, it has a {kind.replace('_', ' ')}; export network.eval()")
            answers.append(given["arg"]["as_tensor"]["name"])
        top = next(call for call in calls if call["fqn"] == "")
        spec = json.loads(top["signature"]["out_spec"])[1]
        if spec["type"] is None:
            return answers, None
        if any(part["type"] is not None for part in spec["children_spec"]):
            raise self.fault("answers parts within parts; export a network that answers its logits")
        if spec["type"] in ("builtins.tuple", "builtins.list"):
            return answers, len(answers)
        if spec["type"] in ("builtins.dict", "collections.OrderedDict"):
            keys = json.loads(spec["context"])
            if len(keys) == len(answers) and all(isinstance(key, str) for key in keys):
                return answers, list(keys)
        raise self.fault(f"answers a {show(spec['type'])}; export a network that answers its logits")


_NOT_FINITE = ("Infinity", "-Infinity", "NaN")  # as the format writes them
_PLAIN: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("as_int", "as_ints"), (int,)),
    **dict.fromkeys(("as_float", "as_floats"), (int, float)),
    **dict.fromkeys(("as_bool", "as_bools"), (bool,)),
    "as_string": (str,),
}


def _is_plain(value: Any, kinds: tuple[type, ...]) -> bool:
    return all(type(one) in kinds for one in (value if isinstance(value, list) else [value]))
