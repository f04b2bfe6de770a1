"""A file that torch has written, with everything in it to be looked at and nothing of it run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


class Opaque(list[Any]):
    """An object of a class that is not known here: what it was made of, and what it held."""

    def __new__(cls, *parts: Any) -> Opaque:
        """Take what a pickle would call a class or a function with."""
        made = super().__new__(cls)
        list.extend(made, parts)
        return made

    def __init__(self, *parts: Any) -> None:
        """Leave it as it was made."""

    def __setstate__(self, state: Any) -> None:
        """Take the attributes."""
        self.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take what stands below a key of a mapping."""
        self.append({key: value})

    def __call__(self, *parts: Any) -> Opaque:
        """Take what a method of it would be called with."""
        return Opaque(self, *parts)

    def add(self, part: Any) -> None:
        """Take what is in a set."""
        self.append(part)

    __hash__ = object.__hash__  # type: ignore[assignment]  # a key of a dict, or in a set


def read_all(path: Path) -> Any:
    """Return what is in a file of torch's; objects that are no tensors, arrays and plain values as :class:`Opaque`.

    Args:
        path: of the file.

    Example:
        >>> import decimal, tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.ckpt")
        >>> torch.save({"share": decimal.Decimal("0.3"), "weight": torch.ones(2)}, path)
        >>> read_all(path)
        {'share': ['0.3'], 'weight': tensor([1., 1.])}
    """
    reader = SimpleNamespace(__name__=__name__, Unpickler=_Reader, load=lambda file, **how: _Reader(file, **how).load())
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=mapped)


class _Reader(pickle.Unpickler):
    """Knows what makes tensors and arrays, which runs nothing, and takes all else for :class:`Opaque`."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _KNOWN or (module == "torch._utils" and name.startswith("_rebuild"))
        known |= module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.qscheme))
        found: Any = super().find_class(module, name) if known else Opaque
        return (lambda *parts: found(*parts).item()) if known and name == "scalar" else found


_ARRAYS = [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
_KNOWN = {
    *(("collections", name) for name in ("OrderedDict", "Counter", "defaultdict")),
    *(("torch", name) for name in ("Size", "device")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage"),
    ("_codecs", "encode"),  # bytes
    ("__builtin__", "bytearray"),
    *_ARRAYS,
}
