"""YAML 1.2 over PyYAML: its scalars, and nothing that could run code, repeat a key or expand without end.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no`, `off` and `on` are booleans, `1:30` is ninety, a
repeated key silently wins, a tag can build objects and ten lines of aliases can fill the memory. Here:

- booleans are `true` and `false` only: `on`, `off`, `yes` and `no` are strings;
- `1e-4` is a number, `010` is ten, `1:30` and `2026-01-02` are strings; `.nan` and `.inf` are strings too,
  since no option can be either;
- a repeated key, a tag (`!!python/...`), an anchor or an alias is a fault that names its line.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

MAX_DEPTH = 32  # sections within sections

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")

_TAG = "tag:yaml.org,2002:"
_RESOLVERS: list[tuple[str, re.Pattern[str], list[str]]] = [
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("null", _NULL, ["~", "n", "N", ""]),
]


def parse(text: str, where: str) -> Any:
    """The plain value that `text` says. `where` names the text in errors ("recipe.yaml").

    Raises ValueError with one line for each fault.
    """
    try:
        loader = _Loader(text)  # refuses characters that YAML does not allow
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error, where)) from error
    except (ValueError, OverflowError) as error:  # PyYAML lets chr()'s own error through: "\\UFFFFFFFF"
        raise ValueError(f"{where}: a character that does not exist ({error})") from error
    if loader.faults:
        raise ValueError("\n".join(f"{where}, {fault}" for fault in loader.faults))
    return value


def render(value: object) -> str:
    """`value` (dicts, lists, strings, numbers, booleans, None) as YAML; YAML 1.1 reads it alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _one_line(error: yaml.YAMLError, where: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        return f"{where},{line}: {error.problem or error.context}"
    return f"{where}: {' '.join(str(error).split())}"


class _Loader(yaml.SafeLoader):
    """Plain values only. Collects the faults that do not stop it from reading on."""

    # ClassVar in PyYAML, copied by add_implicit_resolver only where a class has none of its own: start empty.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: list[str] = []
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        line: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*) are not allowed; write the value out", problem_mark=line)
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors (&) are not allowed; write the value out", problem_mark=line)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tags (!) are not allowed; quote the value", problem_mark=line)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=line)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _plain_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            value = self.construct_object(value_node, deep=True)
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(f"line {line}: a key has to be a word, not a list or a section")
                continue
            key = self._plain_str(key_node)  # as written: `1: x` has the key "1"
            if key in lines:
                self.faults.append(f"line {line}: {key!r} is given twice (first in line {lines[key]}); keep one")
            lines.setdefault(key, line)
            mapping[key] = value
        return mapping

    def _plain_list(self, node: yaml.SequenceNode) -> list[Any]:
        return list(self.construct_sequence(node, deep=True))

    def _plain_str(self, node: yaml.ScalarNode) -> str:
        try:
            node.value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, "\\ud800": could be neither printed nor saved
            self.faults.append(f"line {node.start_mark.line + 1}: a text holds half a character")
            return ""
        return str(node.value)

    def _plain_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 40:  # far beyond any option, and int() refuses 4,301 digits with a traceback
            self.faults.append(
                f"line {node.start_mark.line + 1}: a whole number of {len(node.value)} digits is too large"
            )
            return 0
        return int(node.value)

    def _plain_float(self, node: yaml.ScalarNode) -> float:
        value = float(node.value)
        if math.isinf(value):
            self.faults.append(f"line {node.start_mark.line + 1}: {node.value[:40]} is too large for a number")
            return 0.0
        return value


_Loader.add_constructor(f"{_TAG}map", _Loader._plain_mapping)
_Loader.add_constructor(f"{_TAG}str", _Loader._plain_str)
_Loader.add_constructor(f"{_TAG}int", _Loader._plain_int)
_Loader.add_constructor(f"{_TAG}float", _Loader._plain_float)
_Loader.add_constructor(f"{_TAG}seq", _Loader._plain_list)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than a string; short lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def _str(self, text: str) -> yaml.Node:
        # In other styles PyYAML folds line breaks, and loses those that only Unicode knows (U+0085).
        return self.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')

    def _list(self, values: list[Any]) -> yaml.Node:
        flat = not any(isinstance(value, (list, dict)) for value in values)
        return self.represent_sequence(f"{_TAG}seq", values, flow_style=flat)


_Dumper.add_representer(str, _Dumper._str)
_Dumper.add_representer(list, _Dumper._list)
for _kind, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _kind, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _kind, _pattern, _first)
