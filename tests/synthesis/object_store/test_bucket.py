"""URLs: which are places, what is missing to reach them, and what is never shown of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from datafree.config.paths import is_url, placed
from datafree.errors import RunError
from datafree.synthesis.object_store.bucket import Bucket
from datafree.synthesis.synthesize import synthesize
from folder_store import FolderStore
from set_recipes import INVERSION, everything, recipe_for


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("made", Path("made")),
        ("/data/made", Path("/data/made")),
        ("C:/made", Path("C:/made")),
        ("file:///data/made", Path("/data/made")),
        ("local:///data/made", Path("/data/made")),
        ("s3://bucket/set", "s3://bucket/set"),
        ("gs://bucket", "gs://bucket"),
    ],
)
def test_a_place_is_a_path_or_a_url(text: str, place: Path | str) -> None:
    assert placed(text) == place
    assert is_url(text) == ("://" in text)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("s3://key:secret@bucket/set", "the s3:// URL of --out holds a password; leave it out"),
        ("memory://bucket/set?token=secret", "a memory:// URL for --out is one place"),
        ("simplecache::s3://bucket/secret", None),
        ("memory://", "a memory:// URL for --out is one place"),
        ("foo://bucket/set", "foo:// is no kind of URL that fsspec knows"),
    ],
)
def test_a_url_that_is_no_place_is_one_line_without_its_secrets(url: str, line: str | None) -> None:
    if line is None:
        assert not is_url(url)  # a file's odd name, to us
        return
    with pytest.raises(RunError) as caught:
        Bucket(url)
    assert str(caught.value).startswith(line)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, packages in (("s3://b/set", " s3fs"), ("gs://b/set", " gcsfs"), ("sftp://host/set", "")):
        module = {"s3": "s3fs", "gs": "gcsfs", "sftp": "paramiko"}[url.partition(":")[0]]
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(RunError) as caught:
            Bucket(url)
        assert str(caught.value).startswith(f"{url} needs a package that is missing (ImportError: ")
        assert str(caught.value).endswith(f'; pip install "datafree[remote]"{packages}')


def test_a_path_needs_no_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(recipe_for(tmp_path, INVERSION), tmp_path / "with", 5)
    for name in [name for name in sys.modules if name.split(".")[0] == "fsspec"]:
        monkeypatch.setitem(sys.modules, name, None)
    synthesize(recipe_for(tmp_path, INVERSION), tmp_path / "without", 5)
    assert everything(tmp_path / "without") == everything(tmp_path / "with")
    with pytest.raises(RunError, match=r'^s3://b/set needs fsspec; pip install "datafree\[remote\]" s3fs$'):
        synthesize(recipe_for(tmp_path, INVERSION), "s3://b/set", 5)


def test_an_object_is_created_once_whatever_the_store_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(f"folder://{tmp_path}")

    def fails(path: str) -> None:
        raise OSError("At least one of the pre-conditions you specified did not hold")

    assert bucket.create("a", b"ours")
    monkeypatch.setattr(FolderStore, "before_put", staticmethod(fails))
    assert bucket.create("a", b"ours")  # the answer was lost, and the store asked again
    assert not bucket.create("a", b"another's")
    with pytest.raises(RunError, match="OSError: At least one"):
        bucket.create("b", b"ours")


def test_names_are_those_directly_in_a_folder_and_their_stamps_change(tmp_path: Path) -> None:
    bucket = Bucket(f"folder://{tmp_path}/set/")
    assert bucket.url == f"folder://{tmp_path}/set" and bucket.names() == {}
    assert bucket.create("a/x [1]*", b"1") and not bucket.create("a/x [1]*", b"2")
    bucket.write("a/b/y", b"")
    before = bucket.names("a")
    assert list(before) == ["b", "x [1]*"] and list(bucket.names()) == ["a"]
    bucket.write("a/x [1]*", b"3")
    assert bucket.names("a")["x [1]*"] != before["x [1]*"]
    bucket.get({"a/x [1]*": tmp_path / "new" / "file"})
    assert (tmp_path / "new" / "file").read_bytes() == bucket.read("a/x [1]*") == b"3"
    bucket.put({"a/?": tmp_path / "new" / "file"})
    bucket.remove("a/x [1]*")
    bucket.remove("a/x [1]*")
    assert bucket.read("a/x [1]*") is None and bucket.read("a/?") == b"3"
