"""The model zoo: every system of the papers and the sizes for laptops, measured by arithmetic.

`phenoscale models` prints it, and docs/models.md holds its table.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from phenoscale import flops, gpus
from phenoscale.backbones import DenseNet, backbone
from phenoscale.config import Crops, Objective, Optim, Strategy, Trial

CHANNELS = 6
"""Of a crop, as in RxRx1 and RxRx3."""
CLASSES = 1_139
"""That wsl tells apart: siRNA and controls of RxRx1."""
CROPS_PER_GPU = 32
"""Crops of a step on each GPU, for the number of GPUs."""
PARTS = ("encoder", "rest", "whole")
"""Whose parameters a paper may give: the encoder's, those of decoder or head, or all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """One row of the zoo."""

    name: str
    """As the papers have it."""
    objective: str
    """What it learns."""
    backbone: str
    """Name in the table of backbones."""
    published: dict[str, float]
    """Millions of parameters that a paper gives, by part; empty where none does."""
    source: str
    """The paper."""
    mask_ratio: float = 0.75
    """Share of patches that are removed; wsl does not use it."""
    fourier_weight: float = 0.0
    """Share of the Fourier loss."""
    size_px: int = 256
    """Side of a crop, pixels."""

    def __post_init__(self) -> None:
        assert set(self.published) <= set(PARTS)
        assert bool(self.published) == bool(self.source)

    def trial(self) -> Trial:
        """The system as the papers train it, with Lion; in bf16."""
        by_plate = isinstance(backbone(self.backbone), DenseNet)
        return Trial(
            objective=Objective(
                name=self.objective, mask_ratio=self.mask_ratio, fourier_weight=self.fourier_weight
            ),
            backbone=self.backbone,
            crops=Crops(size_px=self.size_px, sampling="plate_wise" if by_plate else "shuffled"),
            optim=Optim(name="lion", lr=1e-4, precision="bf16"),
        )


def _row(
    name: str,
    objective: str,
    backbone: str,
    published: dict[str, float] | None = None,
    source: str = "",
    **options: Any,
) -> System:
    return System(
        name=name,
        objective=objective,
        backbone=backbone,
        published=published or {},
        source=source,
        **options,
    )


_K23, _K24 = "Kraus et al. 2023", "Kraus et al. 2024"
_S, _B, _L = {"encoder": 22.0}, {"encoder": 86.0}, {"encoder": 304.0}
_25M = {"rest": 25.0}
_PLUS = {"fourier_weight": 0.01}

# The papers' figures are rounded; those of DenseNet, MU-net and the decoder are "about".
ZOO = (
    _row("WSL DenseNet-161", "wsl", "DenseNet-161", {"whole": 28.0}, _K23),
    _row("WSL ViT-B/16", "wsl", "B/16", _B, _K24),
    _row("WSL ViT-L/16", "wsl", "L/16", _L, _K24),
    _row("MU-net-M", "munet", "MU-net-M", {"whole": 52.0}, _K23, mask_ratio=0.25),
    _row("MU-net-L", "munet", "MU-net-L", {"whole": 135.0}, _K23, mask_ratio=0.25),
    _row("MU-net-L+", "munet", "MU-net-L", {"whole": 135.0}, _K23, mask_ratio=0.25, **_PLUS),
    _row("MAE-S/16", "mae", "S/16", _S | _25M, _K23),
    _row("MAE-B/16", "mae", "B/16", _B | _25M, _K23),
    _row("MAE-B/8", "mae", "B/8", _B | _25M, _K23),
    _row("MAE-B/8+", "mae", "B/8", _B | _25M, _K23, **_PLUS),
    _row("MAE-L/16", "mae", "L/16", _L | _25M, _K23),
    _row("MAE-L/16+", "mae", "L/16", _L | _25M, _K23, **_PLUS),
    _row("MAE-L/8", "mae", "L/8", _L | _25M, _K23),
    _row("MAE-L/8+", "mae", "L/8", _L | _25M, _K23, **_PLUS),
    # Of neither paper: Dosovitskiy et al. count 632 M with 3 channels and without a decoder. Its
    # patches do not divide 256 px.
    _row("MAE-H/14", "mae", "H/14", {"encoder": 632.0}, "Dosovitskiy et al. 2021", size_px=252),
    _row("MAE-G/8+", "mae", "G/8", {"whole": 1900.0}, "Kenyon-Dean et al. 2025", **_PLUS),
    _row("CA-MAE-S/16", "ca_mae", "S/16", _S, _K24),
    _row("CA-MAE-S/16+", "ca_mae", "S/16", _S, _K24, **_PLUS),
    _row("CA-MAE-B/16+", "ca_mae", "B/16", _B, _K24, **_PLUS),
    _row("CA-MAE-L/16+", "ca_mae", "L/16", _L, _K24, **_PLUS),
    # For laptops; no paper has them.
    _row("WSL DenseNet-nano", "wsl", "DenseNet-nano"),
    _row("WSL ViT-nano/8", "wsl", "nano/8"),
    _row("WSL ViT-micro/8", "wsl", "micro/8"),
    _row("MU-net-nano", "munet", "MU-net-nano", mask_ratio=0.25),
    _row("MAE-pico/8", "mae", "pico/8"),
    _row("MAE-nano/16", "mae", "nano/16"),
    _row("MAE-nano/8", "mae", "nano/8"),
    _row("MAE-micro/16", "mae", "micro/16"),
    _row("MAE-micro/8", "mae", "micro/8"),
    _row("MAE-tiny/16", "mae", "tiny/16"),
    _row("MAE-tiny/8", "mae", "tiny/8"),
    _row("CA-MAE-nano/8", "ca_mae", "nano/8"),
    _row("CA-MAE-micro/8", "ca_mae", "micro/8"),
    _row("CA-MAE-tiny/8", "ca_mae", "tiny/8"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a row of the zoo comes to."""

    system: System
    """The row."""
    parameters: dict[str, int]
    """Of each of `PARTS`."""
    training_flops: float
    """Operations of training, per crop."""
    embedding_flops: float
    """Operations of embedding, per crop."""
    activation_bytes: int
    """Bytes that a training crop keeps for the backward pass."""
    state_bytes: int
    """Bytes of weights, gradients and moments."""
    gpus: int
    """Smallest number of 80 GB GPUs, with `CROPS_PER_GPU` crops on each."""
    strategy: Strategy
    """How they share the work."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        system, label = self.system, self.system.trial().objective.label
        return {
            "name": system.name,
            "objective": label,
            "backbone": system.backbone,
            "mask_ratio": None if system.objective == "wsl" else system.mask_ratio,
            "crop_px": system.size_px,
            "parameters": self.parameters,
            "published_parameters": {part: x * 1e6 for part, x in system.published.items()},
            "source": system.source,
            "training_flops_per_crop": self.training_flops,
            "embedding_flops_per_crop": self.embedding_flops,
            "activation_bytes_per_crop": self.activation_bytes,
            "state_bytes": self.state_bytes,
            "gpus": self.gpus,
            "strategy": self.strategy,
        }


def measure(system: System) -> Measured:
    """A row for 6 channels and the classes of RxRx1."""
    trial = system.trial()
    encoder = flops.trial_encoder_parameters(trial, CHANNELS)
    whole = flops.model_parameters(trial, CHANNELS, CLASSES)
    number, strategy = gpus.gpus_needed(trial, CHANNELS, CLASSES, crops_per_gpu=CROPS_PER_GPU)
    return Measured(
        system=system,
        parameters={"encoder": encoder, "rest": whole - encoder, "whole": whole},
        training_flops=flops.training_flops(trial, CHANNELS, CLASSES, 1),
        embedding_flops=flops.embedding_flops(trial, CHANNELS, 1),
        activation_bytes=gpus.activation_bytes(trial, CHANNELS, CLASSES),
        state_bytes=gpus.state_bytes(trial, CHANNELS, CLASSES),
        gpus=number,
        strategy=strategy,
    )


_HEAD = (
    "system",
    "objective",
    "encoder, M",
    "decoder or head, M",
    "whole, M",
    "training, GFLOPs",
    "embedding, GFLOPs",
    "activations, MB",
    "state, MB",
    "GPUs",
    "brackets from",
)
_TEXT = (0, 1, len(_HEAD) - 1)  # columns that stand on the left


def _cells(row: Measured) -> list[str]:
    """A row as text; parameters with the paper's in brackets."""
    counts = []
    for part in PARTS:
        told = row.system.published.get(part)
        brackets = "" if told is None else f" ({told:,.0f})"
        counts.append(_short(row.parameters[part] / 1e6) + brackets)
    return [
        row.system.name,
        row.system.trial().objective.label,
        *counts,
        _short(row.training_flops / 1e9),
        _short(row.embedding_flops / 1e9),
        _short(row.activation_bytes / 1e6),
        _short(row.state_bytes / 1e6),
        f"{row.gpus} {row.strategy}",
        row.system.source,
    ]


def _short(x: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:#.3g}"


def table() -> str:
    """The zoo for a terminal."""
    rows = [list(_HEAD), *(_cells(measure(system)) for system in ZOO)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in _TEXT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", NOTE])


def markdown() -> str:
    """The zoo as a table of Markdown."""
    marks = ["---" if column in _TEXT else "---:" for column in range(len(_HEAD))]
    rows = [list(_HEAD), marks, *(_cells(measure(system)) for system in ZOO)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def as_json() -> str:
    """The zoo as a JSON list."""
    return json.dumps([measure(system).as_dict() for system in ZOO], indent=1)


NOTE = (
    f"{CHANNELS} channels, crops of 256 px (H/14: 252), {CLASSES:,} classes. FLOPs and activations "
    "are those of one\ncrop, in bf16; the state is that of Lion. GPUs: the smallest number of "
    f"{gpus.GPU_BYTES / 1e9:.0f} GB that hold {CROPS_PER_GPU} crops each,\nwith "
    f"{gpus.RESERVE:.0%} in reserve. In brackets: the figure of the paper in the last column."
)
