from __future__ import annotations

from pathlib import Path

import pytest

from datafree.config import paths
from datafree.errors import DatafreeError


def test_home_variables_and_relative_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "a")
    monkeypatch.chdir(tmp_path / "a")
    for text in ("~/a/b", "$HOME/$PLACE/b", "${HOME}/${PLACE}/b", "b", "../a/./b", str(tmp_path / "a" / "b")):
        assert paths.expand(text) == tmp_path / "a" / "b"


def test_a_path_of_a_command_is_kept_as_it_was_written_where_nothing_in_it_stands_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PLACE", raising=False)
    for text in ("runs/mine", "../runs", "./~", "a b"):
        assert str(paths.as_written(text)) == str(Path(text))
    assert paths.as_written("~/runs") == paths.as_written(Path("$HOME/runs")) == tmp_path / "runs"
    assert paths.placed("~/set") == tmp_path / "set"
    assert paths.as_written("builtin:garments") == paths.builtin_folder() / "garments"
    with pytest.raises(DatafreeError, match="the variable PLACE is not set"):
        paths.as_written("$PLACE/runs")


def test_an_unset_or_empty_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAFREE_DATA", raising=False)
    monkeypatch.setenv("EMPTY_FOR_TEST", "")
    with pytest.raises(ValueError, match="DATAFREE_DATA is not set; set it to the folder"):
        paths.expand("$DATAFREE_DATA/x")
    with pytest.raises(ValueError, match="EMPTY_FOR_TEST is not set"):
        paths.expand("${EMPTY_FOR_TEST}/x")


@pytest.mark.parametrize("given", ["", "  ", "a\0b", 3, None, ["a"]])
def test_other_things_are_no_paths(given: object) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        paths.expand(given)


def test_a_url_is_no_path_and_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a s3:// URL is no path: copy what is there to a disk, and give its path$"):
        paths.expand("s3://key:secret@bucket/set")


def test_builtin_names_stand_for_files_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "example" / "photos").mkdir(parents=True)
    monkeypatch.setattr(paths, "builtin_folder", lambda: tmp_path / "example")
    path = paths.expand("builtin:photos")
    assert path == tmp_path / "example" / "photos"
    assert paths.shorten(path) == "builtin:photos"
    assert paths.shorten(tmp_path) == str(tmp_path)
    with pytest.raises(ValueError, match="known: builtin:photos"):
        paths.expand("builtin:photo")
    for outside in ("builtin:../example", f"builtin:{tmp_path}", "builtin:"):
        with pytest.raises(ValueError, match="is not in the package"):
            paths.expand(outside)
