"""Our own checkpoints: atomic, checksummed, loaded without running pickled code."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.backbone import Backbone, OwnClassifier, OwnProjector, build_backbone
from harness.errors import UserError
from harness.files import write_atomically
from harness.heads import mlp
from harness.recipe import BackboneSpec
from harness.views import Pixels

FORMAT = "ssl-reproduce backbone 1"
# What torch's restricted unpickler raises on damaged bytes: it follows them wherever they lead.
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)
KEPT = 2  # training checkpoints: the last one and the one before


def to_bytes(state: Any) -> bytes:
    """`state` as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def save_training(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `folder/step-<step>-<sha256>.pt`; the checkpoint before it is kept, older ones go.

    The checksum is part of the name, so that content and checksum appear in one rename.
    """
    data = to_bytes(state)
    path = folder / f"step-{step:09d}-{sha256(data)[:16]}.pt"
    write_atomically(path, data)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def load_training(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The newest whole training checkpoint and its path, or None.

    A damaged one is named on stderr and the one before it is used.
    """
    for path in _newest_first(folder):
        data = path.read_bytes()
        if sha256(data)[:16] == path.stem.rpartition("-")[2]:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), path
        print(
            f"warning: checkpoint {path} is damaged (its checksum differs from its name); "
            "going back to the one before",
            file=sys.stderr,
        )
    return None


def forget_training(folder: Path) -> None:
    """Remove the training checkpoints, so that the run starts again."""
    for path in _newest_first(folder):
        path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


def save_backbone(
    backbone: Backbone,
    path: Path,
    *,
    classifier: nn.Linear | None = None,
    projector: OwnProjector | None = None,
    **info: Any,
) -> None:
    """Write a trunk with all that is needed to build it again.

    Args:
        backbone: The trunk.
        path: Of the file, usually `backbone.pt`.
        classifier: The layer of classes that was trained on it, if one was.
        projector: The projector that it was trained with, if an evaluation reads that.
        **info: Plain values about its training (recipe, seed, seconds).
    """
    state = {
        "format": FORMAT,
        "spec": dataclasses.asdict(backbone.spec),
        "image_size": backbone.image_size,
        "pixels": dataclasses.asdict(backbone.pixels),
        "info": info,
        "state": _on_cpu(backbone.trunk),
    }
    # files without them stay byte for byte what they were
    if classifier is not None:
        state["classifier"] = _on_cpu(classifier)
    if projector is not None:
        settings = projector._asdict() | {"layers": _on_cpu(projector.layers)}
        state["projector"] = settings
    write_atomically(path, to_bytes(state))


def _on_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous().cpu() for name, value in module.state_dict().items()}


def _projector(saved: dict[str, Any]) -> OwnProjector:
    widths = tuple(saved["widths"])
    with torch.device("meta"):  # its hundred million weights come from the file
        layers = mlp(widths)
    layers.load_state_dict(saved["layers"], assign=True)
    return OwnProjector(
        layers=layers.requires_grad_(False).eval(),
        widths=widths,
        units=saved["units"],
        temperature=saved["temperature"],
    )


def load_backbone(path: Path) -> tuple[Backbone, dict[str, Any]]:
    """A trunk that `save_backbone` wrote, in eval mode, and what is known of its training.

    Its classifier and projector, if it was written with one, are the trunk's attributes.

    Raises:
        UserError: The file is not one of ours.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise UserError(f"{path} is not a backbone.pt of this harness")
    backbone = build_backbone(BackboneSpec(**saved["spec"]), saved["image_size"])
    backbone.trunk.load_state_dict(saved["state"])
    backbone.pixels = Pixels(**{name: tuple(value) for name, value in saved["pixels"].items()})
    if "classifier" in saved:
        backbone.classifier = OwnClassifier(**saved["classifier"])
    if "projector" in saved:
        backbone.projector = _projector(saved["projector"])
    return backbone.eval(), saved["info"]
