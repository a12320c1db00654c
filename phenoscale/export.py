"""Exported encoders: a folder that says what an encoder is, holds its weights, and is loaded alone.

Loading needs torch, safetensors, numpy and, for a DenseNet, timm, and runs no code out of the
folder. A folder is refused where its weights, or the backbone's row in the table, are not those
that it was written with. `export_trial.py` writes such folders, `export_graph.py` what else may lie
in them.

Shapes: B crops, C channels, s side of a crop, D width of an embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from phenoscale.backbones import backbone
from phenoscale.models.build import AnyEncoder, empty_encoder
from phenoscale.models.camae import ChannelAgnosticEncoder
from phenoscale.models.densenet import DenseNetEncoder, evenly
from phenoscale.models.munet import UNetEncoder
from phenoscale.models.vit import Encoder

FORMAT_VERSION = 1
"""Changes when a reader of an older version would go wrong."""
CONFIG_FILE, WEIGHTS_FILE = "config.json", "encoder.safetensors"
_KINDS = {
    "vision_transformer": Encoder,
    "channel_agnostic_transformer": ChannelAgnosticEncoder,
    "densenet": DenseNetEncoder,
    "unet": UNetEncoder,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What config.json says of an encoder."""

    kind: str
    """vision_transformer, channel_agnostic_transformer, densenet or unet."""
    backbone: str
    """Name in the table of backbones."""
    shape: dict[str, Any]
    """The backbone's row as it was, without the decoders, which an encoder does not have."""
    channels: list[str]
    """Names of the channels that it was trained on."""
    size_px: int
    """Side of a crop."""
    readout: str
    """The read-out that `embed` gives unless it is told another."""
    width: int
    """Values of that embedding."""
    trial: dict[str, Any]
    """The trial, as its `as_dict`."""
    index_fingerprint: str
    """Fingerprint of the screen's index."""
    code_version: str
    """Version of phenoscale that wrote the folder."""
    weights_sha256: str
    """SHA-256 of the weights' file."""
    graphs: dict[str, float]
    """Each graph's file, and its largest absolute difference from the encoder when written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedEncoder:
    """A loaded encoder."""

    encoder: AnyEncoder
    """The network, in evaluation mode."""
    facts: EncoderFacts
    """What it is."""

    @torch.inference_mode()
    def embed(
        self,
        crops: np.ndarray | Tensor,
        *,
        channels: Sequence[str],
        readout: str | None = None,
        block: int | None = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Embeddings of crops.

        A DenseNet normalizes by statistics of a plate: all crops of a call must be of one plate.
        It takes them from `ADAPTING_CROPS` crops evenly spread over the call, whatever the batches.

        Args:
            crops: (B, C, s, s) uint8.
            channels: their names. A channel-agnostic encoder takes any, others exactly their own;
                the order does not matter to either.
            readout: patch_mean, class_token, patch_sd, per_channel, or block_1, block_2, ...; by
                default that of the facts.
            block: instead of `readout`, the number from 1 of a transformer's block: the mean of its
                patch tokens.
            batch_size: crops that are encoded together; fewer need less memory.

        Returns:
            (B, D) float32.

        Raises:
            ValueError: if crops are not of this type and size, the encoder does not take these
                channels, or it has no such read-out.
        """
        _check_crops(crops, self.facts.size_px)
        if block is not None and readout is not None:
            raise ValueError(f"readout={readout!r} and block={block} were given; give one of them.")
        wanted = readout or self.facts.readout if block is None else f"block_{block}"
        if isinstance(self.encoder, DenseNetEncoder):
            self.encoder.adapt(self._tensor(crops[evenly(len(crops))]), channels)
        parts = []
        for first in range(0, len(crops), batch_size):
            batch = self._tensor(crops[first : first + batch_size])
            parts.append(read_one(self.encoder, batch, channels, wanted).float().cpu().numpy())
        return np.concatenate(parts)

    def _tensor(self, crops: np.ndarray | Tensor) -> Tensor:
        """On the encoder's device; arrays are copied, since torch takes no read-only one."""
        tensor = crops if isinstance(crops, Tensor) else torch.from_numpy(np.array(crops))
        return tensor.to(next(self.encoder.parameters()).device)


def load_encoder(folder: str | Path, *, device: str | torch.device = "cpu") -> ExportedEncoder:
    """Loads an exported encoder.

    Args:
        folder: that `export_encoder` wrote.
        device: where it embeds.

    Raises:
        ValueError: if the folder holds none, or one of another format version, or of other weights
            or another backbone than it was written with.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    if facts.shape != (now := shape_of(facts.backbone)):
        raise ValueError(
            f"{folder} holds a {facts.backbone} of {facts.shape}; the table of this phenoscale "
            f"has {now} by that name. Load it with the version that wrote it, {facts.code_version}."
        )
    with torch.random.fork_rng(devices=[]):
        encoder = empty_encoder(
            facts.backbone,
            channels=facts.channels,
            size_px=facts.size_px,
            agnostic=facts.kind == "channel_agnostic_transformer",
        )
    path = folder / WEIGHTS_FILE
    if not path.is_file() or sha256(path) != facts.weights_sha256:
        raise ValueError(
            f"{path} is missing, or is not the file that {CONFIG_FILE} was written with: its "
            "SHA-256 differs. Copy the folder again, or export the trial again."
        )
    weights, empty = load_file(path), encoder.state_dict()
    if kind_of(encoder) != facts.kind or _shapes(weights) != _shapes(empty):
        raise ValueError(
            f"The weights of {folder} are not those of a {facts.kind} {facts.backbone} of "
            f"{len(facts.channels)} channels and {facts.size_px} px. Export the trial again."
        )
    encoder.load_state_dict(weights)
    encoder.eval().requires_grad_(False).to(device)
    return ExportedEncoder(encoder=encoder, facts=facts)


def read_facts(folder: Path) -> EncoderFacts:
    """Reads config.json.

    Raises:
        ValueError: if there is none, or it is not one of this format version.
    """
    path = folder / CONFIG_FILE
    try:
        fields = json.loads(path.read_text())
        version = fields.pop("format_version")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{folder} is no exported encoder: {path} cannot be read ({error!r}). Give a folder "
            "that `phenoscale export` wrote."
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} is an exported encoder of format version {version}; this phenoscale reads "
            f"version {FORMAT_VERSION}. Load it with the version that wrote it, "
            f"{fields.get('code_version')}."
        )
    kinds = {"str": str, "int": int, "list[str]": list}
    wanted = {f.name: kinds.get(str(f.type), dict) for f in dataclasses.fields(EncoderFacts)}
    wrong = [name for name, kind in wanted.items() if not isinstance(fields.get(name), kind)]
    if wrong or (unknown := sorted(fields.keys() - wanted.keys())):
        raise ValueError(
            f"{path} is damaged: of its fields, {', '.join(wrong or unknown)} are missing, wrong "
            "or unknown. Copy the folder again, or export the trial again."
        )
    return EncoderFacts(**fields)


def read_one(encoder: AnyEncoder, crops: Tensor, channels: Sequence[str], readout: str) -> Tensor:
    """One read-out of crops on the encoder's device, (B, D)."""
    read = encoder.read(crops, channels, every_block=readout.startswith("block_"))
    if readout not in read:
        raise ValueError(
            f"This {kind_of(encoder)} has no read-out {readout!r}; it has {', '.join(read)}."
        )
    return read[readout]


def _check_crops(crops: np.ndarray | Tensor, size_px: int) -> None:
    """Raises ValueError unless crops are uint8 (B, C, size_px, size_px), one at least."""
    dtype = str(getattr(crops, "dtype", type(crops).__name__)).removeprefix("torch.")
    shape = tuple(getattr(crops, "shape", ()))
    if dtype != "uint8" or len(shape) != 4 or shape[2:] != (size_px, size_px) or not shape[0]:
        raise ValueError(
            f"The crops are {dtype} of shape {shape}; required is uint8 of shape (crops, channels, "
            f"{size_px}, {size_px}), the crops of training, and one at least. Whole sites of an "
            "index, 8 or 16 bits, are scaled and cut into tiles by `phenoscale embed`."
        )


def kind_of(encoder: AnyEncoder) -> str:
    """What config.json calls this kind of encoder."""
    return next(name for name, kind in _KINDS.items() if type(encoder) is kind)


def shape_of(name: str) -> dict[str, Any]:
    """A backbone's row in the values that JSON has, without decoders."""
    row = dataclasses.asdict(backbone(name))
    kept = {key: value for key, value in row.items() if not key.endswith("decoder")}
    return {key: list(x) if isinstance(x, tuple) else x for key, x in kept.items()}


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (x.shape, x.dtype) for name, x in state.items()}


def sha256(path: Path) -> str:
    """Digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
