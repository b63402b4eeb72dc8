"""Content of a checkpoint's file, without running anything from it unless the user trusts it."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from harness.checkpoint import UNREADABLE
from harness.errors import UserError

# How torch's restricted unpickler names what it won't call.
_REFUSED = re.compile(
    r"(?:Unsupported global: GLOBAL|unsupported GLOBAL|Unsupported class|unrecognized function) "
    r"(\S+)"
)
# What damaged bytes raise: torch also asserts that storages it is told of are there.
_BROKEN = (*UNREADABLE, AssertionError, ArithmeticError, MemoryError)
_NO_CHECKPOINT = (
    (b"<", "an HTML or XML page, which is what a failed download leaves"),
    (b"version https://git-lfs", "a Git LFS pointer, not what it points to"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
)
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # before torch 1.6: no zip


def read(path: Path, trust: bool) -> Mapping[str, Any]:
    """What is in a PyTorch, pickle or safetensors file.

    Args:
        path: Of the file.
        trust: Load pickles that may run any code. Classes that are not installed then become
            `Unknown`.

    Raises:
        UserError: Not a file, not a checkpoint, damaged, or a pickle that needs trust.
    """
    head = _head(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _safetensors(path)
    try:
        content = _trusted(path, head) if trust else _restricted(path)
    except _BROKEN as error:
        if not trust and (what := _what_needs_trust(path, head, str(error))):
            raise UserError(
                f"{path} is {what}, and loading that may run any code; if you trust where it comes "
                "from, add --trust-checkpoint"
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise UserError(
            f"{path} is not a PyTorch checkpoint or is damaged "
            f"({reason[:120] or type(error).__name__}); get it again"
        ) from error
    if isinstance(content, nn.Module):
        return content.state_dict()
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__} where weights by name are needed; save its "
            "state_dict() instead"
        )
    return content


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give --ckpt the path of a checkpoint's file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise UserError(
            f"there is no checkpoint at {path}; give --ckpt the path of a file"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check --ckpt") from error
    if not head:
        raise UserError(f"{path} is empty; get it again")
    for start, kind in _NO_CHECKPOINT:
        if head.lstrip().startswith(start):
            raise UserError(f"{path} is {kind}; get it again")
    return head


def _safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *_BROKEN) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); get it again"
        ) from error


def _restricted(path: Path) -> Any:
    # DINO and others keep their command line, an argparse.Namespace of plain values.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols newer than torch's own: told by the error
        return torch.load(path, map_location="cpu", weights_only=True)


def _trusted(path: Path, head: bytes) -> Any:
    """Any pickle; a plain one (BYOL's, written by dill) as well as torch's."""
    if _is_plain_pickle(path, head):
        with path.open("rb") as file:
            return _Unpickler(file).load()
    module = SimpleNamespace(
        __name__="pickle",
        Unpickler=_Unpickler,
        load=lambda file, **options: _Unpickler(file, **options).load(),
    )
    with warnings.catch_warnings():
        # Old files carry the source code of their classes, which torch compares with ours.
        warnings.simplefilter("ignore")
        # May run any code: only called where the user has said --trust-checkpoint.
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)


def _what_needs_trust(path: Path, head: bytes, error: str) -> str:
    """What the file is where it needs more than torch's restricted unpickler; else ""."""
    if needs := _REFUSED.search(error):
        return f"a pickle that needs {needs[1]}"
    if _is_plain_pickle(path, head):
        return "a plain pickle, not torch's"
    newer = "Unsupported operand" in error and zipfile.is_zipfile(path)
    return "a pickle of a newer protocol than torch's" if newer else ""


def _is_plain_pickle(path: Path, head: bytes) -> bool:
    torchs = head.startswith(_LEGACY_TORCH) or zipfile.is_zipfile(path)
    return head.startswith(b"\x80") and not torchs


class _Unpickler(pickle.Unpickler):
    """A full unpickler in which classes that are not installed become `Unknown`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (Unknown,), {"__module__": module})


class Unknown:
    """Stands for an object whose class is not installed: NPID's memory bank, haiku's mappings."""

    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any, **_: Any) -> Unknown:
        """Keep what the pickle builds the object from."""
        self = super().__new__(cls)
        self.args = args
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Lightning's hyper-parameters are a kind of dict, other objects a kind of list."""

    def append(self, value: Any) -> None:
        """See `__setitem__`."""

    def extend(self, values: Any) -> None:
        """See `__setitem__`."""
