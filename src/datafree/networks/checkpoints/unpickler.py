"""A safe unpickler for untrusted files, which makes plain values and nothing else.

A pickle is a program, for a machine with a stack, that may call any Python function by its name. The machine here
knows the operations but looks no name up: a name stays a name, and only the few given to `read_pickle` do anything.
torch's restricted unpickler runs none of a stranger's code either, but a few bytes can make it hash for ever or
allocate terabytes before anyone can look.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

# Of one pickle. So many take seconds to read and 100 MB of memory; a checkpoint of a thousand tensors has 50,000.
MAX_OPERATIONS = 1_000_000
_LONGEST_NAME = 1000
_MOST_ARGUMENTS = 16

Calls = Mapping[str, Callable[..., Any] | None]


class NeedsCode(Exception):
    """A pickle that is no plain data. `names` are the functions and classes it wanted: "posix.system"."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        super().__init__(", ".join(names))


class Other:
    """A value that is not made; `kind` says what it would be."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Name(Other):
    """A function, a class or a constant: its full name is its `kind`."""

    __slots__ = ()


class Object(Other):
    """A stand-in for an object of a class that is not known: what its pickle would have given it, and nothing more."""

    __slots__ = ("items", "state")

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.state: dict[Any, Any] = {}  # attributes
        self.items: list[Any] = []  # of a set or a list


def kind_of(value: object) -> str:
    """What a value out of a pickle is, in a word."""
    return value.kind if isinstance(value, Other) else type(value).__name__


def read_pickle(data: BinaryIO, calls: Calls, find: Callable[[Any], Any], *, objects: bool = False) -> Any:
    """The value of the pickle that begins here; `data` is left just behind it.

    None, bools, numbers, text, bytes, lists, tuples and dicts come as they are. Where the pickle calls a name in
    `calls`, the value is what that function makes, and Other if it is None; `find` takes the references to what lies
    outside the pickle. Keys that are not text come as Other: hashing what a stranger chose can take for ever.

    With `objects`, a call of any other name makes an `Object`, which then holds what the pickle gives it: nothing is
    looked up or run for that. Else raises NeedsCode with all the names that are not in `calls`. Raises anything from
    ValueError to IndexError if damaged.
    """
    machine = _Machine(calls, find, objects)
    try:
        for operation, argument, _ in pickletools.genops(data):
            machine.spend(1)
            machine.step(operation.name, argument)
    except Exception:
        if objects or not machine.wanted:  # these say more than what was stumbled upon because of them
            raise
    if machine.wanted and not objects:
        raise NeedsCode(list(machine.wanted))
    return machine.stack[-1]


def filled(pairs: Iterable[tuple[Any, Any]], target: dict[Any, Any] | None = None) -> dict[Any, Any]:
    """`target`, or a new dict, with `pairs` put in. Raises ValueError for a name that is there already."""
    target = {} if target is None else target
    for key, value in pairs:
        if isinstance(key, str) and key in target:
            raise ValueError(f"the name {key[:80]!r} twice")
        target[key if isinstance(key, str) else Other(kind_of(key))] = value
    return target


_PUSHED = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Machine:
    """Pickle's machine without functions. Python's pickletools explains the operations."""

    def __init__(self, calls: Calls, find: Callable[[Any], Any], objects: bool) -> None:
        self.calls = calls
        self.objects = objects
        self.find = find
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.wanted: dict[str, None] = {}  # names that are not known, in the order they were met
        self.spent = 0

    def spend(self, operations: int) -> None:
        self.spent += operations
        if self.spent > MAX_OPERATIONS:
            raise ValueError(f"a pickle of more than {MAX_OPERATIONS:,} operations")

    def step(self, operation: str, argument: Any) -> None:
        stack = self.stack
        if operation in _PUSHED:
            stack.append(argument)
            return
        if operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
            return
        match operation:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                if not 0 <= argument < 2**32:
                    raise ValueError("a memo index out of range")
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(stack))
            case "POP_MARK":
                self._above_mark()
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._top(int(operation[-1]))))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self._above_mark())
            case "APPEND":
                self._extend(self._top(1))
            case "APPENDS":
                self._extend(self._above_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(filled(_pairs(self._above_mark())))
            case "SETITEM":
                self._set_items(self._top(2))
            case "SETITEMS":
                self._set_items(self._above_mark())
            case "EMPTY_SET":
                stack.append(Object("set"))
            case "ADDITEMS":
                _keep(self._above_mark(), stack[-1])
            case "FROZENSET":
                _keep(self._above_mark(), made := Object("frozenset"))
                stack.append(made)
            case "GLOBAL":
                stack.append(self._name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._name(*self._top(2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(self._call(*self._top(2)))
            case "NEWOBJ_EX":
                stack.append(Object(kind_of(self._top(3)[0])))
            case "OBJ":
                stack.append(Object(kind_of(self._above_mark()[0])))
            case "INST":
                self._above_mark()
                stack.append(Object(self._name(*argument.split(" ", 1)).kind))
            case "BUILD":  # attributes; of what is no object, of no interest: the versions in a state dict, say
                self._set_attributes(self._top(1)[0])
            case "BINPERSID":
                stack.append(self.find(stack.pop()))
            case "EXT1" | "EXT2" | "EXT4":  # a name by a number
                stack.append(self._name("copyreg", f"extension_{argument}"))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"the operation {operation}, which torch.save does not write")

    def _top(self, count: int) -> list[Any]:
        top = self.stack[-count:]
        if len(top) < count:
            raise ValueError("a pickle that takes more than it has")
        del self.stack[-count:]
        return top

    def _above_mark(self) -> list[Any]:
        height = self.marks.pop()
        above = self.stack[height:]
        del self.stack[height:]
        return above

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict | Object):
            filled(_pairs(items), target.state if isinstance(target, Object) else target)

    def _set_attributes(self, given: Any) -> None:
        """A dict, or a pair of dicts where a class has slots as well."""
        for part in given if isinstance(given, tuple) else (given,):
            if isinstance(part, dict) and isinstance(target := self.stack[-1], Object):
                self.spend(len(part))
                target.state |= part

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if len(module) + len(name) > _LONGEST_NAME:
            raise ValueError("a name that is too long")
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # as Python 3 calls Python 2's
        if full not in self.calls:
            self.wanted[full] = None
        return Name(full)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
            raise ValueError("a call with no arguments that torch.save would write")
        # Two bytes call again with a list of before, however long it is.
        self.spend(sum(len(a) for a in arguments if isinstance(a, list | tuple | dict)))
        make = self.calls.get(function.kind) if isinstance(function, Name) else None
        if make is not None:
            return make(*arguments)
        if kind_of(function) == "builtins.set":  # as protocol 2 writes them
            made = Object("builtins.set")
            _keep([item for given in arguments if isinstance(given, list) for item in given], made)
            return made
        if isinstance(function, Name) and function.kind in self.calls:
            return Other(function.kind)
        of = arguments[:1] if kind_of(function) == "copyreg._reconstructor" else ()  # an object, by its class
        return Object(kind_of(of[0] if of else function))


def _keep(items: list[Any], target: Any) -> None:
    """The texts among what is put into a set: of a module, the names of buffers that are not saved."""
    if isinstance(target, Object):
        target.items += [item for item in items if isinstance(item, str)]


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)
