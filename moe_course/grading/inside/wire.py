"""Values between the grader and a student's process: JSON and raw bytes, checked before anything is made of them.

The reader trusts nothing: it refuses what is too long, too deep, of an unknown kind, or does not add up. Nothing is
ever unpickled.
"""

import dataclasses
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .channel import MAX_BLOB, ProtocolError

MAX_NODES = 2000  # of one output; a right one has fewer than ten
MAX_DEPTH = 8  # of nested containers
MAX_TEXT = 2000
ALIGNMENT = 16
_FLOATS = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128"]
_INTEGERS = ["int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in [*_FLOATS, *_INTEGERS]}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Packer:
    """Turns outputs into JSON trees; collects the bytes of their tensors."""

    def __init__(self) -> None:
        self.blob = bytearray()
        self.nodes = 0

    def pack(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """The tree of any object whatever. What is no tensor, number, text or container of those goes by its type."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            return {"kind": "other", "type": "value_too_many"}
        if value is None:
            return {"kind": "none"}
        if type(value) in (bool, float) or (type(value) is int and -(2**63) <= value < 2**63):
            return {"kind": type(value).__name__, "value": value}
        if type(value) is str and len(value) <= MAX_TEXT:
            return {"kind": "str", "value": value}
        if isinstance(value, Tensor):
            return self.tensor(value) or {"kind": "other", "type": f"{_peculiarity(value)}_tensor"}
        if depth < MAX_DEPTH:
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
                name = type(value).__name__[:100]
                return {"kind": "dataclass", "type": name, "items": self._items(fields, depth)}
            if isinstance(value, dict):
                known = [(key, part) for key, part in value.items() if type(key) in (str, int)]
                return {"kind": "dict", "items": self._items(known, depth)}
            if isinstance(value, tuple | list):
                parts = [self.pack(part, depth + 1) for part in value[:MAX_NODES]]
                return {"kind": "tuple" if isinstance(value, tuple) else "list", "items": parts}
        return {"kind": "other", "type": type(value).__name__[:100]}

    def _items(self, parts: list[Any], depth: int) -> list[list[Any]]:
        return [[key, self.pack(part, depth + 1)] for key, part in parts[:MAX_NODES]]

    def tensor(self, value: Tensor) -> dict[str, Any] | None:
        """A tensor's head; its bytes go to the blob. None for one that has no plain values, or too many."""
        if value.numel() * value.element_size() > MAX_BLOB // 2 or value.dtype not in NAMES:
            return None
        try:
            plain = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            plain = plain.resolve_conj().resolve_neg().cpu().contiguous()
            raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        except (RuntimeError, TypeError, NotImplementedError):  # on the meta device, nested, quantised, …
            return None
        self.blob += bytes(-len(self.blob) % ALIGNMENT)
        offset = len(self.blob)
        self.blob += raw
        return {"kind": "tensor", "dtype": NAMES[value.dtype], "shape": list(value.shape), "offset": offset}


class Unpacker:
    """Turns trees that came from a student's process into values; checks everything."""

    def __init__(self, blob: bytearray) -> None:
        self.blob = blob
        self.nodes = 0

    def unpack(self, tree: Any, like: Any = None, depth: int = 0) -> Any:
        """The value of a tree.

        Args:
            tree: as it came.
            like: what the reference returned in this place: a dataclass with its fields becomes one of its class.
            depth: of this tree in the whole.

        Raises:
            ProtocolError: the tree is not what `Packer` makes.
        """
        self.nodes += 1
        if not isinstance(tree, dict) or self.nodes > MAX_NODES + 1 or depth > MAX_DEPTH + 1:
            raise ProtocolError("a value of no known form")
        kind = tree.get("kind")
        if kind == "none":
            return None
        if kind in _SCALARS:
            value: Any = tree.get("value")
            if type(value) is not _SCALARS[str(kind)] or (type(value) is int and not -(2**63) <= value < 2**63):
                raise ProtocolError("a number of another kind than it says")
            return value
        if kind == "tensor":
            return self.tensor(tree)
        if kind in ("tuple", "list"):
            parts = [
                self.unpack(part, like[i] if isinstance(like, tuple | list) and i < len(like) else None, depth + 1)
                for i, part in enumerate(_list(tree.get("items")))
            ]
            return tuple(parts) if kind == "tuple" else parts
        if kind in ("dict", "dataclass"):
            return self._named(kind, tree, like, depth)
        if kind == "other":
            return _something(tree.get("type"))
        raise ProtocolError("a value of an unknown kind")

    def _named(self, kind: str, tree: dict[str, Any], like: Any, depth: int) -> Any:
        parts: dict[Any, Any] = {}
        for item in _list(tree.get("items")):
            if not isinstance(item, list) or len(item) != 2 or type(item[0]) not in (str, int):
                raise ProtocolError("a part without a name")
            inner = getattr(like, item[0], None) if kind == "dataclass" and type(item[0]) is str else None
            inner = like.get(item[0]) if isinstance(like, dict) else inner
            parts[item[0]] = self.unpack(item[1], inner, depth + 1)
        if kind == "dict":
            return parts
        if not all(type(name) is str and name.isidentifier() for name in parts):
            raise ProtocolError("a dataclass with a field of no name")
        if dataclasses.is_dataclass(like) and [field.name for field in dataclasses.fields(like)] == list(parts):
            value = object.__new__(type(like))  # its own methods, not its __init__: the parts are still unchecked
        else:
            value = object.__new__(dataclasses.make_dataclass(_identifier(tree.get("type")), list(parts)))
        for name, part in parts.items():
            object.__setattr__(value, name, part)
        return value

    def tensor(self, head: Any) -> Tensor:
        """The tensor that a head describes.

        Raises:
            ProtocolError: the head and the bytes do not fit.
        """
        if not isinstance(head, dict):
            raise ProtocolError("a tensor without a head")
        dtype = DTYPES.get(str(head.get("dtype")))
        shape: list[Any] = _list(head.get("shape"))
        offset: Any = head.get("offset")
        if dtype is None or len(shape) > 16 or not all(_is_whole(n, MAX_BLOB) for n in shape):
            raise ProtocolError("a tensor of no known dtype or shape")
        count = math.prod(shape)
        size = count * dtype.itemsize
        if not _is_whole(offset, len(self.blob) - size) or offset % ALIGNMENT:
            raise ProtocolError("a tensor whose bytes are missing")
        if count == 0:
            if math.prod(n or 1 for n in shape) > MAX_BLOB:  # nothing in it, and yet too large for torch
                raise ProtocolError("a tensor of an impossible shape")
            return torch.empty(shape, dtype=dtype)
        if dtype == torch.bool:  # a byte other than 0 and 1 would be neither True nor False
            return (torch.frombuffer(self.blob, dtype=torch.uint8, count=count, offset=offset) != 0).reshape(shape)
        return torch.frombuffer(self.blob, dtype=dtype, count=count, offset=offset).reshape(shape).clone()


_SCALARS = {"bool": bool, "int": int, "float": float, "str": str}


def _is_whole(value: Any, most: int) -> bool:
    """Whether a value is a number of bytes or elements up to some bound."""
    return type(value) is int and 0 <= value <= most


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_NODES:
        raise ProtocolError("a list that is none, or too long")
    return value


def _identifier(name: Any) -> str:
    return name[:60] if isinstance(name, str) and name[:60].isidentifier() else "Something"


@cache
def _type(name: str) -> type:
    return type(name, (), {})


def _something(name: Any) -> Any:
    """An object that can do nothing but say its type's name, for messages."""
    return _type(_identifier(name))()


def _peculiarity(value: Tensor) -> str:
    """What about a tensor keeps its values from being sent."""
    if value.dtype not in NAMES:
        return str(value.dtype).removeprefix("torch.")
    return value.device.type if value.device.type != "cpu" else "huge"
