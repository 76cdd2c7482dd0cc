"""The wire format of ONNX files, counted before it is parsed: a byte or two may become a hundred in memory.

A message is a row of fields: a key (number * 8 + kind), then a number, 4 or 8 bytes, or a length and so many bytes,
which may be a message again (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from typing import Any

MAX_FIELDS = 1_000_000  # of one file, seconds to count; a network of a thousand layers has 50,000
_DEEPEST = 100  # messages within messages, as protobuf itself has it

# Which fields of onnx.proto hold messages, and of which form: number -> fields.
_Form = dict[int, Any]
_ENTRY: _Form = {}
_TENSOR: _Form = {13: _ENTRY, 16: _ENTRY}
_TYPE: _Form = {}
_TYPE |= {
    1: {2: {1: _ENTRY}},
    4: {1: _TYPE},
    5: {2: _TYPE},
    8: {2: {1: _ENTRY}},
    9: {1: _TYPE},
}
_VALUE: _Form = {2: _TYPE, 4: _ENTRY}
_SPARSE: _Form = {1: _TENSOR, 2: _TENSOR}
_GRAPH: _Form = {}
_ATTRIBUTE: _Form = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 14: _TYPE, 15: _TYPE, 22: _SPARSE, 23: _SPARSE}
_REFUSED: _Form = {-1: None}  # how a node is divided among devices: nested, and of no use here
_NODE: _Form = {5: _ATTRIBUTE, 9: _ENTRY, 10: _REFUSED}
_GRAPH |= {
    1: _NODE,
    5: _TENSOR,
    11: _VALUE,
    12: _VALUE,
    13: _VALUE,
    14: {2: _ENTRY},
    15: _SPARSE,
    16: _ENTRY,
}
_FUNCTION: _Form = {7: _NODE, 9: _ENTRY, 11: _ATTRIBUTE, 12: _VALUE, 14: _ENTRY}
_MODEL: _Form = {
    7: _GRAPH,
    8: _ENTRY,
    14: _ENTRY,
    25: _FUNCTION,
    26: {2: _ENTRY},
    20: {1: _GRAPH, 2: _GRAPH, 3: _ENTRY, 4: _ENTRY},
}


def count_fields(content: bytes) -> int:
    """The fields of an ONNX file and of all messages in it. Raises ValueError for too many, and for what is none."""
    counted = 0
    left: list[tuple[int, int, _Form, int]] = [(0, len(content), _MODEL, 0)]  # begin, end, form, how deep
    while left:
        at, end, form, deep = left.pop()
        if form is _REFUSED:
            raise ValueError("nodes divided among devices, which are not read")
        if deep > _DEEPEST:
            raise ValueError("messages too deep within messages")
        while at < end:
            counted += 1
            if counted > MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS:,} fields")
            key, at = _number(content, at, end)
            match key & 7:
                case 0:
                    _, at = _number(content, at, end)
                case 1:
                    at += 8
                case 2:
                    length, at = _number(content, at, end)
                    if (inner := form.get(key >> 3)) is not None:
                        left.append((at, at + length, inner, deep + 1))
                    at += length
                case 5:
                    at += 4
                case kind:
                    raise ValueError(f"a field of kind {kind}")
            if at > end:
                raise ValueError("cut short")
    return counted


def _number(content: bytes, at: int, end: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ValueError("cut short, or a number of more than 64 bits")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
