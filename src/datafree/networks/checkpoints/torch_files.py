"""Reading `torch.save` files without torch's loader: the pickle first, then only the tensors that are wanted.

Since torch 1.6 such a file is a zip archive: the pickle ARCHIVE/data.pkl and a member ARCHIVE/data/KEY for each
storage. Before, it was pickles in a row: a magic number, a version, facts of the machine, the content, the storages'
keys; then for each key a number of values (8 bytes) and the values.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from datafree.errors import WeightsError
from datafree.networks.checkpoints.stored_tensors import TORCH_CALLS, Storage, StoredTensor, find_storage
from datafree.networks.checkpoints.unpickler import NeedsCode, read_pickle

MAX_PICKLE = 16 * 2**20  # bytes; the values lie outside of the pickle
_MAX_DIRECTORY = 8 * 2**20  # bytes of a zip archive's directory: about 100,000 members
_CHUNK = 2**20
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_NAMES_SHOWN = 4

# What else people have in files with torch's endings, by how they begin: what it is, and a way out.
_OTHERS = {
    b"version https://git-lfs": "is a pointer of git-lfs, not the weights themselves; `git lfs pull` fetches them",
    b"<!DOCTYPE": "is a web page; download the file itself",
    b"<html": "is a web page; download the file itself",
    b"\x1f\x8b": "is compressed by gzip; unpack it",
    b"\x89HDF": "is an HDF5 file; save the network's state_dict() as safetensors",
}

Blocks = Callable[[Storage], Tensor]  # all bytes of a storage, (N,) uint8


def read_torch_file(
    path: Path, choose: Callable[[Any], dict[str, StoredTensor]], *, objects: bool = False
) -> dict[str, Tensor]:
    """The tensors that `choose` takes out of the file's content, on the CPU; tied ones share their memory.

    The content is made of plain values, StoredTensor and Other (`read_pickle`, which explains `objects`). No more
    memory is taken than the file is large, besides the pickle's own. Raises WeightsError; for damaged files, also what
    pickles and archives raise.
    """
    with path.open("rb") as file:
        start = file.read(512)
        for beginning, reason in _OTHERS.items():
            if start.startswith(beginning):
                raise WeightsError(f"weights {path}: {reason}")
        if start[257:262] == b"ustar":
            raise WeightsError(f"weights {path}: a tar archive, from before torch 0.1.10 or of other files; {_CONVERT}")
        if start[8:9] == b"{":
            raise WeightsError(f"weights {path}: holds safetensors, by its beginning; name it {path.stem}.safetensors")
        try:
            content, blocks = (_open_zip if start.startswith(b"PK\x03\x04") else _open_old)(path, file, objects)
        except NeedsCode as error:
            raise WeightsError(
                f"weights {path}: needs {_listed(error.names)} to be loaded, which could run any code; take its "
                f"tensors out without running it: datafree convert {path.name} {path.stem}.safetensors"
            ) from None
        chosen = choose(content)
        whole: dict[str, Tensor] = {}
        tensors = {}
        for name, stored in chosen.items():
            key = stored.storage.key
            if key not in whole:
                whole[key] = blocks(stored.storage)
            tensor = stored.view(whole[key])
            if tensor is None:
                raise WeightsError(f"weights {path}: {name[:80]!r} is no plain tensor stored whole in the file")
            tensors[name] = tensor
        return tensors


_CONVERT = "load it where it was made and save the network's state_dict() as safetensors"


def _listed(names: list[str]) -> str:
    shown = [name[:80] if name.isprintable() else ascii(name[:80]) for name in names[:_NAMES_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


# --- zip archives ---


def open_archive(what: str, path: Path, file: BinaryIO) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """The zip archive in `file`, which torch wrote, and its members by name: whole, uncompressed, each name once.

    `what` the file at `path` is called in errors. Raises WeightsError.
    """
    size = file.seek(0, io.SEEK_END)
    check_directory(what, path, file)
    archive = zipfile.ZipFile(file)  # closed with the file
    members = {member.filename: member for member in archive.infolist()}
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in members):
        raise WeightsError(
            f"{what} {path}: a TorchScript program, which is code; save torch.jit.load(...).state_dict(), or give the "
            "file as the network, with args: {trusted: true}, if you trust its maker"
        )
    # torch stores its members one after the other, so they cannot be larger than the file.
    if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()):
        raise WeightsError(f"{what} {path}: a compressed archive, which torch never writes; unpack it")
    if sum(m.file_size for m in archive.infolist()) > size:
        raise WeightsError(f"{what} {path}: declares more bytes than it has; it is damaged or forged")
    if len(members) < len(archive.infolist()):
        raise WeightsError(f"{what} {path}: two members of the archive have one name; it is damaged or forged")
    return archive, members


def _open_zip(path: Path, file: BinaryIO, objects: bool) -> tuple[Any, Blocks]:
    archive, members = open_archive("weights", path, file)
    if any(name.endswith("/archive_format") for name in members):
        raise WeightsError(
            f"weights {path}: a program of torch.export, not weights beside a network; name it {path.stem}.pt2 and "
            "give it as `network`"
        )
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise WeightsError(f"weights {path}: a zip archive, but not one of torch.save; save network.state_dict()")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError(f"weights {path}: written on a big-endian machine; {_CONVERT}")
    if members[pickles[0]].file_size > MAX_PICKLE:
        raise ValueError(f"a pickle of more than {MAX_PICKLE:,} bytes")
    content = read_pickle(io.BytesIO(archive.read(pickles[0])), TORCH_CALLS, partial(find_storage, {}), objects=objects)

    def block(storage: Storage) -> Tensor:
        member = members[f"{root}data/{storage.key}"]
        if member.file_size != storage.nbytes:
            raise ValueError("a storage of another size than declared")
        with archive.open(member) as values:
            return read_block(values, storage.nbytes)

    return content, block


def check_directory(what: str, path: Path, file: BinaryIO) -> None:
    """Refuse a directory that would take much memory, before zipfile makes objects of it. Raises WeightsError.

    `what` the file at `path` is called in errors.
    """
    end = 22  # bytes of the record that ends an archive without a comment
    file.seek(max(0, file.seek(0, io.SEEK_END) - end - 20 - 56))
    tail = file.read()
    if tail[-end : -end + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise WeightsError(f"{what} {path}: damaged, or not a {what} file (the archive has no end): fetch it again")
    (size,) = struct.unpack("<I", tail[-end + 12 : -end + 16])
    if tail[-end - 20 :].startswith(b"PK\x06\x07"):  # archives beyond 4 GiB have a larger record before
        size = max(size, struct.unpack("<Q", tail[-end - 20 - 16 : -end - 20 - 8])[0])
    if size > _MAX_DIRECTORY:
        raise WeightsError(f"{what} {path}: an archive with a directory of {size:,} bytes; it is damaged or forged")


def read_block(values: Any, size: int) -> Tensor:
    """`size` bytes of a stream, (size,) uint8; read in chunks, so that no second copy is made."""
    block = torch.empty(size, dtype=torch.uint8)
    into: Any = block.numpy()
    done = 0
    while done < size:
        count = values.readinto(into[done : done + _CHUNK])
        if not count:
            raise EOFError("cut short")
        done += count
    return block


# --- files of before ---


def _find_old(storages: dict[str, Storage], reference: Any) -> Any:
    """A storage, or the class of a module: ("module", class, its file, its code)."""
    if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
        return reference[1]
    return find_storage(storages, reference)


def _open_old(path: Path, file: BinaryIO, objects: bool) -> tuple[Any, Blocks]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    pickles = io.BytesIO(file.read(min(size, MAX_PICKLE)))
    storages: dict[str, Storage] = {}
    read = partial(read_pickle, pickles, TORCH_CALLS, partial(_find_old, storages), objects=objects)
    if read() != _MAGIC:
        raise WeightsError(f"weights {path}: a pickle, but not one of torch.save; save network.state_dict()")
    version, machine = read(), read()
    if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise WeightsError(f"weights {path}: of another version of the format, or another kind of machine; {_CONVERT}")
    content, keys = read(), read()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("no list of storages")
    places: dict[str, int] = {}
    at = pickles.tell()
    for key in keys:
        file.seek(at)
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages.get(key) or Storage(key, torch.uint8, 0)
        places[key] = at + 8
        at += 8 + storage.nbytes
        if count != storage.count or at > size:
            raise ValueError("a storage of another size than declared")

    def block(storage: Storage) -> Tensor:
        file.seek(places[storage.key])
        return read_block(file, storage.nbytes)

    return content, block
