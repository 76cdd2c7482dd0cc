"""What a user's word for a teacher names, by a look at the first bytes of the file: recipe, weights, program, ONNX, ...

Nothing is read but the beginning of a file, the directory of a zip archive, and text that may be a recipe; torch is not
imported, so that what is no teacher is refused at once.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Literal

from datafree.config import yaml
from datafree.errors import NetworkError
from datafree.networks.checkpoints.other_files import CHECKPOINT, OTHER_FILES, SAVED_MODEL, is_part, other_file
from datafree.text import show

Kind = Literal["recipe", "weights", "program", "onnx", "directory", "name"]

RECIPES = (".yaml", ".yml")
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".index.json")
_PROGRAMS = (".pt2", ".torchscript", ".ts")
_SCRIPTS = (".pt", ".pth", ".torchscript", ".ts")  # how archives of TorchScript are called
PHOTOS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_TEACHERS = (
    "a teacher is a network's name (timm/resnet18), a weights file, a .pt2, an ONNX file, a Hugging Face "
    "directory or a recipe"
)
_MOST_TEXT = 1_000_000  # bytes of a recipe
_MOST_DIRECTORY = 8 * 2**20  # bytes of a zip archive's directory
_LOOKED_AT = 512  # bytes of a file, first

# How other files begin: what they are, and a way out.
_OTHERS = {
    b"\x89PNG": "is an image",
    b"\xff\xd8\xff": "is an image",
    b"GIF8": "is an image",
    b"BM": "is an image",
    b"RIFF": "is an image or a sound",
    b"II*\0": "is an image",
    b"MM\0*": "is an image",
    b"%PDF": "is a PDF document",
    b"\x7fELF": "is a program of this machine",
    b"\x1f\x8b": "is compressed by gzip: unpack it",
    b"BZh": "is compressed by bzip2: unpack it",
    b"\xfd7zXZ": "is compressed by xz: unpack it",
    b"7z\xbc\xaf": "is a 7z archive: unpack it",
    b"\x89HDF": "is an HDF5 file, perhaps of Keras: export that network to ONNX, and give the .onnx",
    b"GGUF": "is a GGUF file, of a language model",
    b"\x93NUMPY": "is an array of NumPy",
    b"version https://git-lfs": "is a pointer of git-lfs, not the file itself: `git lfs pull` fetches it",
    b"<!DOCTYPE": "is a web page: download the file itself",
    b"<html": "is a web page: download the file itself",
    b"model_checkpoint_path:": CHECKPOINT,
}


def kind_of(teacher: str) -> Kind:
    """What `teacher` names. "name": of a network, to be built; "recipe": also a packaged one, or nothing that is known.

    Raises NetworkError, one line, for a file or a folder that can be no teacher.
    """
    path = Path(teacher).expanduser()
    if "\0" in teacher:
        raise NetworkError(f"{show(teacher)} is no name; {_TEACHERS}")
    if path.suffix in OTHER_FILES and path.exists():
        raise NetworkError(f"{path} {OTHER_FILES[path.suffix]}")
    if path.is_dir():
        return _of_folder(path)
    if path.exists():
        return _of_file(path)
    if path.suffix in RECIPES:
        return "recipe"
    if path.with_name(f"{path.name}.index").is_file():  # a checkpoint is called by what its files' names begin with
        raise NetworkError(f"{path} {CHECKPOINT}")
    if path.name.endswith((*WEIGHTS, *_PROGRAMS, ".onnx", ".weights", *OTHER_FILES, *PHOTOS, ".zip", ".txt", ".json")):
        raise NetworkError(f"there is no file {teacher}; {_TEACHERS}")
    return "name" if "/" in teacher or ":" in teacher else "recipe"


def _of_folder(path: Path) -> Kind:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise NetworkError(f"{path} cannot be read: {error.strerror}") from error
    if not names:
        raise NetworkError(f"{path} is an empty folder; {_TEACHERS}")
    if "config.json" in names:
        return "directory"
    if SAVED_MODEL in names:
        raise NetworkError(f"{path} {OTHER_FILES['.pb']}")
    if any(map(is_part, names)):
        raise NetworkError(f"{path} {CHECKPOINT}")
    if "recipe.yaml" in names:
        raise NetworkError(f"{path} is a run; to run its recipe again, give {path / 'recipe.yaml'}")
    if files := [name for name in names if name.endswith((*WEIGHTS, ".pt2", ".onnx"))]:
        raise NetworkError(f"{path} is a folder without config.json: give a file in it, such as {path / files[0]}")
    if any(name.lower().endswith(PHOTOS) for name in names):
        raise NetworkError(f"{path} is a folder of images, and no teacher: give a teacher, and --photos {path}")
    raise NetworkError(f"{path} is a folder that holds no network; {_TEACHERS}")


def _of_file(path: Path) -> Kind:
    if not path.is_file():  # a pipe, a device: would be waited for
        raise NetworkError(f"{path} is not a file; {_TEACHERS}")
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
        other = other_file(path)
    except OSError as error:
        raise NetworkError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix in RECIPES:
        return "recipe"
    if other is not None:
        raise NetworkError(f"{path} {other}")
    if not start:
        raise NetworkError(f"{path} is empty; {_TEACHERS}")
    for beginning, what in _OTHERS.items():
        if start.startswith(beginning):
            raise NetworkError(f"{path} {what}" + ("" if ":" in what else f"; {_TEACHERS}"))
    if not any(start):
        raise NetworkError(f"{path} begins with nothing but zeros, so it is no weights file: fetch it again")
    if start.startswith(b"PK"):
        return _of_archive(path)
    if path.suffix in (".onnx", ".weights") and _is_text(start):
        raise NetworkError(f"{path} is a text, and no {path.suffix} file: fetch it again; {_TEACHERS}")
    if path.name.endswith(".index.json"):
        return _of_index(path)
    if path.suffix == ".weights":
        return "weights"
    if start[8:9] == b"{":
        _require_whole(path, int.from_bytes(start[:8], "little"))
        return "weights"
    if start[:1] == b"\x80":  # a pickle, as torch.save wrote before 1.6
        return "weights"
    if path.suffix == ".onnx":
        return "onnx"
    if start[0] == 0x08 and start[2:3] in (b"\x12", b":"):  # its version, a text
        raise NetworkError(f"{path} is an ONNX file by its first bytes: name it {path.stem}.onnx, and give that")
    return _of_text(path)


def _require_whole(path: Path, length: int) -> None:
    """Raise NetworkError for a file of safetensors, with a header of so many bytes, that ends before its tensors do."""
    held = path.stat().st_size - 8 - length
    if length > _MOST_DIRECTORY:  # large, forged, or no safetensors: whoever reads it as weights says so
        return
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length)) if held >= 0 else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        missing = max(ends, default=0) - held
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return
    if missing > 0:
        raise NetworkError(f"{path} is cut short, its last {missing:,} bytes are missing: fetch it again")


def _is_text(start: bytes) -> bool:
    """Whether a file begins as texts do; those of binary formats have other control characters early."""
    return not any(byte < 9 or 13 < byte < 32 for byte in start)


def _of_index(path: Path) -> Kind:
    """The index of weights in several files, as Hugging Face has it."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _MOST_DIRECTORY else {"weight_map": {}}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "weight_map" not in content:
        raise NetworkError(f"{path} is no index of weights: it needs `weight_map`, from tensors to files")
    return "weights"


def _of_archive(path: Path) -> Kind:
    """torch.save and torch.export write zip archives, and so do others."""
    names = _members(path)
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        if path.suffix not in _SCRIPTS:
            raise NetworkError(f"{path} is a TorchScript program: name it {path.stem}.torchscript, and give that")
        return "program"
    if any(name.endswith(("/data.pkl", "/archive_format", "serialized_exported_program.json")) for name in names):
        return "program" if path.suffix in _PROGRAMS else "weights"
    inside = [name for name in names if name.endswith((*WEIGHTS, ".onnx"))]
    held = f" and give {inside[0][:80]}" if inside else ""
    raise NetworkError(f"{path} is a zip archive, and none of torch's: unpack it{held}; {_TEACHERS}")


def _members(path: Path) -> list[str]:
    """Their names. Raises NetworkError for what is damaged."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 22))  # the record that ends an archive without a comment
            end = file.read()
        whole = len(end) == 22 and end.startswith(b"PK\x05\x06")
        if whole and struct.unpack("<I", end[12:16])[0] not in range(_MOST_DIRECTORY):
            return ["/data.pkl"]  # beyond 4 GiB, or forged: whoever reads it as weights looks closer
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise NetworkError(f"{path} is a damaged zip archive, cut short perhaps: fetch it again") from error


def _of_text(path: Path) -> Kind:
    """A recipe may have any name, but it is a text of sections."""
    unknown = NetworkError(f"{path} is no file of a kind that is known here; {_TEACHERS}")
    try:
        if path.stat().st_size > _MOST_TEXT:
            raise unknown
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise unknown from None
    try:
        content = yaml.parse(text, path.name)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"task", "teacher", "student", "source"} & content.keys():
        raise NetworkError(f"{path} is a text, and no recipe (of sections such as `task:`); {_TEACHERS}")
    return "recipe"
