"""A folder of an object store, by its fsspec URL (s3://bucket/folder, gs://...): whole objects, and nothing else.

Objects are put, read, listed and removed; a store knows no locks, no renames, no appending. Who may do so is said by
the store's own configuration (environment, files), never by a URL. fsspec is imported when the first URL is met.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datafree.config.paths import URL
from datafree.errors import DatafreeError, RunError

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_SECRETS = ((re.compile(r"(\w://)[^\s/@]*@"), r"\1"), (re.compile(r"(\w://[^\s?]*)\?[^\s'\"]*"), r"\1"))
_SHOWN = 300  # characters of a store's own words


class Bucket:
    """The folder at `url`. Objects in it go by their path below it, such as "shards/00000.json".

    Every call raises RunError, in one line, for whatever the store or the way to it does not do.
    """

    def __init__(self, url: str) -> None:
        """Raises RunError for a URL that cannot be used, or whose package is missing, saying how to install it."""
        self.url = _checked(url)
        self._files, self._root = _opened(self.url)

    def names(self, folder: str = "") -> dict[str, str]:
        """What lies directly in a folder, with what changes when it is written anew; nothing where there is none."""
        place = self._at(folder)
        with self._reached():
            try:
                entries = self._files.ls(place, detail=True)
            except FileNotFoundError:
                return {}
        paths = {entry["name"].rstrip("/"): str(entry) for entry in entries}
        return {path.rpartition("/")[2]: stamp for path, stamp in paths.items() if path != place}

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that is not there yet; False if it is, with another content.

        Of several processes at once one does so, where the store can tell (S3, Google, Azure).
        """
        with self._reached():
            try:
                self._files.pipe_file(self._at(name), content, mode="create")
            except Exception:  # FileExistsError, or what a store calls it that is only nearly S3
                if (there := self.read(name)) is None:
                    raise
                return there == content  # it is ours if the store's answer was lost, and it was asked again
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whole."""
        with self._reached():
            self._files.pipe_file(self._at(name), content)

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none."""
        with self._reached():
            try:
                content: bytes = self._files.cat_file(self._at(name))
            except FileNotFoundError:
                return None
        return content

    def put(self, files: Mapping[str, Path]) -> None:
        """Write objects from files, many at once where the store can."""
        if files:
            with self._reached():
                self._files.put([str(file) for file in files.values()], [self._at(name) for name in files])

    def get(self, files: Mapping[str, Path]) -> None:
        """Read objects into files, many at once where the store can; folders above them are made."""
        if files:
            with self._reached():
                for folder in {file.parent for file in files.values()}:
                    folder.mkdir(parents=True, exist_ok=True)
                self._files.get([self._at(name) for name in files], [str(file) for file in files.values()])

    def digests(self, names: Sequence[str]) -> Iterator[str | Exception]:
        """The SHA-256 of each of some small objects, read many at once where the store can; or why it has none."""
        with self._reached():
            contents = self._files.cat_ranges([self._at(name) for name in names], None, None, on_error="return")
        for content in contents:
            yield content if isinstance(content, Exception) else hashlib.sha256(content).hexdigest()

    def below(self, folder: str) -> Iterator[str]:
        """The names of all objects below a folder, from the bucket's own folder on; hidden ones are left out."""
        with self._reached():
            found: list[str] = self._files.find(self._at(folder))
        for path in found:
            name = path[path.rindex(f"{self._root.strip('/')}/") + len(self._root.strip("/")) + 1 :]
            if not any(part.startswith(".") for part in name.split("/")):
                yield name

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._reached():
            try:
                self._files.rm_file(self._at(name))
            except FileNotFoundError:
                return

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """One line for whatever goes wrong; stores raise anything, of libraries that are not imported here."""
        try:
            self._files.invalidate_cache()  # else what others have written is not seen, not even by its name
            yield
        except DatafreeError:
            raise
        except Exception as error:
            raise RunError(
                f"cannot read or write {self.url}: {in_words(error)}; its complete shards are intact: fix that and "
                "run the same command to resume"
            ) from error


def in_words(error: Exception) -> str:
    """What a store's library says of a fault, on one line, without what a URL in it may hold of secrets."""
    text = " ".join(str(error).split())
    for pattern, kept in _SECRETS:
        text = pattern.sub(kept, text)
    return f"{type(error).__name__}: {text[:_SHOWN]}" if text else type(error).__name__


def _checked(url: str) -> str:
    """A URL without a slash at its end. Raises RunError where it says more than a place, and then does not show it."""
    found = URL.fullmatch(url)
    assert found is not None
    protocol, place = found[1], found[2].rstrip("/")
    if ":" in place.partition("/")[0].rpartition("@")[0]:
        raise RunError(
            f"the {protocol}:// URL of --out holds a password; leave it out, and give it where the store's own tools "
            "read it (environment variables, configuration files)"
        )
    if "?" in place or "::" in url or not place:
        raise RunError(f"a {protocol}:// URL for --out is one place, such as {protocol}://bucket/folder, and no more")
    return f"{protocol}://{place}"


def _opened(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    protocol = url.partition("://")[0]
    install = f'pip install "datafree[remote]" {_PACKAGES.get(protocol, "")}'.rstrip()
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise RunError(f"{url} needs fsspec; {install}") from error
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        raise RunError(f"{url} needs a package that is missing ({in_words(error)}); {install}") from error
    except Exception as error:  # of whatever the store's package does when it is set up
        if isinstance(error, ValueError) and "Protocol not known" in str(error):
            raise RunError(
                f"{protocol}:// is no kind of URL that fsspec knows; --out is a path, or such as s3://bucket/folder"
            ) from error
        raise RunError(f"cannot open {url}: {in_words(error)}") from error
    return files, str(root).rstrip("/")
