"""A pickle read as data: its opcodes are followed on a stack of our own, and nothing is imported, called or built.

Containers, numbers and strings become themselves, tensors a description of theirs, and everything else one mark.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any, Final


class Opaque:
    """What stands for every object that is not data: an instance of any class, the result of any call."""


OPAQUE: Final = Opaque()


@dataclass(frozen=True)
class Name:
    """A class or function a pickle names, which is never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """The memory of tensors: ``kind`` such as ``FloatStorage``, ``key`` of the file with its ``numel`` elements."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class SavedTensor:
    """Where a tensor lies in its storage, in elements; nothing about it has been checked but the types."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


REBUILT = {"_rebuild_tensor", "_rebuild_tensor_v2"}
WRAPPED = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}
PUSHED_OPAQUE = {"EMPTY_SET", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "NEWOBJ": 2, "NEWOBJ_EX": 3}
MEMORISING = {"PUT", "BINPUT", "LONG_BINPUT"}
RECALLING = {"GET", "BINGET", "LONG_BINGET"}
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip


def read_pickle(data: bytes) -> Any:
    """Return what a pickle describes; ValueError for one that describes nothing.

    Memory is in proportion to the pickle's length, and containers may contain themselves: do not walk them to the end.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, OverflowError) as error:
        raise ValueError("its operations do not fit together") from error
    raise ValueError("it does not end")


class _Machine:
    """``stack``: above the last mark; ``below``: what lies under each mark; ``memo``: objects to be named again."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says; IndexError or KeyError when something it needs is not there."""
        if name in LITERALS:
            self.push(argument)
        elif name in MEMORISING:
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in RECALLING:
            self.push(self.memo[argument])
        elif name in CONSTANTS:
            self.push(CONSTANTS[name])
        elif name in PUSHED_OPAQUE:
            self.push(OPAQUE)
        elif name in TAKES:
            items = self.taken(TAKES[name])
            self.push(tuple(items) if name.startswith("TUPLE") else OPAQUE)
        elif name not in IGNORED and not self.containers(name) and not self.objects(name, argument):
            raise ValueError(f"unknown operation {name}")

    def containers(self, name: str) -> bool:
        """Do what the opcodes of lists, dicts and the stack say; False for any other."""
        if name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name == "POP" and self.stack:
            self.stack.pop()
        elif name in ("POP", "POP_MARK"):
            self.marked()
        elif name == "DUP":
            self.push(self.stack[-1])
        elif name in ("EMPTY_LIST", "LIST"):
            self.push(self.marked() if name == "LIST" else [])
        elif name in ("EMPTY_DICT", "DICT"):
            pairs = self.marked() if name == "DICT" else []
            self.push({})
            self.put(pairs)
        elif name == "TUPLE":
            self.push(tuple(self.marked()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self.taken(1) if name == "APPEND" else self.marked()
            if isinstance(self.stack[-1], list):
                self.stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.put(self.taken(2) if name == "SETITEM" else self.marked())
        else:
            return False
        return True

    def objects(self, name: str, argument: Any) -> bool:
        """Do what the opcodes of classes and calls say, as far as tensors need it; False for any other."""
        if name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            self.push(Name(module, attribute))
        elif name == "STACK_GLOBAL":
            module, attribute = self.taken(2)
            known = isinstance(module, str) and isinstance(attribute, str)
            self.push(Name(module, attribute) if known else OPAQUE)
        elif name == "REDUCE":
            function, arguments = self.taken(2)
            self.push(_result(function, arguments))
        elif name == "BUILD":
            self.push(self.taken(2)[0])  # what the state belongs to stays, without it
        elif name in ("INST", "OBJ", "FROZENSET"):
            self.marked()
            self.push(OPAQUE)
        elif name in ("PERSID", "BINPERSID"):
            self.push(_storage(argument if name == "PERSID" else self.taken(1)[0]))
        else:
            return False
        return True

    def push(self, value: Any) -> None:
        """Put an object on the stack."""
        self.stack.append(value)

    def taken(self, count: int) -> list[Any]:
        """Return the last ``count`` objects and take them off the stack."""
        if count > len(self.stack):
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def marked(self) -> list[Any]:
        """Return everything above the last mark and take it off the stack, with the mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def put(self, pairs: list[Any]) -> None:
        """Put keys and values that follow each other into the dict on top; only strings are kept as keys."""
        target = self.stack[-1]
        if isinstance(target, dict):
            # other keys may be tuples in tuples in tuples, which cannot even be hashed without overflowing
            target.update((k, v) for k, v in zip(pairs[::2], pairs[1::2], strict=True) if type(k) is str)


def _storage(described: Any) -> Storage | Opaque:
    match described:
        case ("storage", Name("torch" | "torch.storage", kind), str(key), _, int(numel), *_):
            return Storage(kind, key, numel)
    return OPAQUE


def _result(function: Any, arguments: Any) -> Any:
    """Return what a call would give where that is data, and the mark where it is not."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        return OPAQUE
    if function == Name("collections", "OrderedDict") and not arguments:
        return {}
    if function.module != "torch._utils" or not arguments:
        return OPAQUE
    if function.name in WRAPPED and isinstance(arguments[0], SavedTensor):
        return arguments[0]
    if function.name in REBUILT and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        numbers = isinstance(shape, tuple) and isinstance(strides, tuple) and (offset, *shape, *strides)
        if isinstance(storage, Storage) and numbers and all(type(number) is int for number in numbers):
            return SavedTensor(storage, offset, shape, strides)
    return OPAQUE
