from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from datafree.config import yaml as yaml12


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "1e-4": 1e-4,
        "-1E5": -1e5,
        "1.": 1.0,
        ".5": 0.5,
        "010": 10,
        "1:30": "1:30",
        "no": "no",
        "on": "on",
        "2026-01-02": "2026-01-02",
        "true": True,
        "~": None,
        "'1'": "1",
        "0x10": "0x10",
    }.items(),
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = yaml12.parse(f"x: {text}", "test")["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: {}\nname: a\nname: b\n", "street.yaml, line 3: 'name' is given twice (first in line 2)"),
        ("name: &a x\ndata: *a\n", "line 1: anchors (&) are not allowed"),
        ("name: *a\n", "line 1: aliases (*) are not allowed"),
        ("name: !!python/object/apply:os.getcwd []\n", "line 1: tags (!) are not allowed"),
        ("name: {a: b", "line 1: expected ',' or '}'"),
        ("[" * 5000, "nested deeper than"),
        ("? [a]\n: 1\n", "a key has to be a word"),
        (f"name: {'9' * 5000}\n", "a whole number of 5000 digits is too large"),
        ("name: 1e999\n", "1e999 is too large"),
        ('name: "\\ud800"\n', "half a character"),
        ('name: "\\UFFFFFFFF"\n', "a character that does not exist"),
        ("name: a\n---\nname: b\n", "line 2: but found another document"),
    ],
)
def test_what_could_run_repeat_or_explode_is_one_line_that_says_where(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        yaml12.parse(text, "street.yaml")
    assert str(caught.value).startswith("street.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_repeated_keys_are_all_named() -> None:
    with pytest.raises(ValueError) as caught:
        yaml12.parse("a: 1\na: 2\nb: {c: 1, c: 2}\n", "test")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["test, line 2", "test, line 3"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.from_regex(r"[-+]?[0-9]*\.?[0-9]*e?[0-9]*")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=pytest.mark.thorough)])
def test_what_is_rendered_is_read_back_by_this_and_by_other_readers(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(value=PLAIN)
    def check(value: object) -> None:
        text = yaml12.render(value)
        assert yaml12.parse(text, "test") == value
        assert yaml.safe_load(text) == value

    check()


@given(text=st.text(max_size=60))
def test_any_text_is_plain_values_or_a_value_error(text: str) -> None:
    try:
        value = yaml12.parse(text, "test")
    except ValueError as error:
        assert str(error).startswith("test")
    else:
        assert value is None or isinstance(value, (bool, int, float, str, list, dict))
        assert not (isinstance(value, float) and math.isinf(value))
