"""Any timm model as a frozen encoder of crops with any number of channels.

A model of photographs takes three channels. Here each channel of a crop is a grey picture: it goes
in alone, three times over, or with two others, and the embeddings stand one behind the other.

Shapes: B crops, C channels, s side of a crop, V views of a crop, d width of the model, D = V d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenoscale.models.readout import choose

DARKEST, BRIGHTEST = 0.001, 0.999
"""Quantiles of a crop's channel that become 0 and 1."""
POOLED = "pooled"
"""The read-out: what the model's classifier would be given."""


def rescale(crops: Tensor) -> Tensor:
    """Brings each channel of each crop to [0, 1] between its 0.1 and 99.9 percentiles.

    The encoders of this package see no absolute brightness (`vit.standardize`), and neither shall a
    reference: then encoders are compared, not their inputs. The few pixels beyond are clipped: one
    hot pixel would make the rest of a crop dark. A constant channel becomes 0.

    Args:
        crops: (B, C, s, s), uint8.

    Returns:
        (B, C, s, s) float32.
    """
    ordered = crops.flatten(2).sort(dim=2).values
    last = ordered.shape[2] - 1
    low = ordered[:, :, int(DARKEST * last)].float()[..., None, None]
    high = ordered[:, :, last - int((1 - BRIGHTEST) * last)].float()[..., None, None]
    span = high - low
    scaled = ((crops.float() - low) / span.clamp(min=1)).clamp(0, 1)
    return torch.where(span > 0, scaled, 0.0)


def views_of(channels: Sequence[str], feed: str) -> list[tuple[str, str, str]]:
    """The channels of each view of a crop: what the model's three channels are given.

    Args:
        channels: names, in any order: views are in the order of names.
        feed: one_by_one (each channel three times over) or three_by_three (three at a time; the
            last view is filled by repeating its channels).
    """
    names = sorted(channels)
    if feed == "one_by_one":
        return [(name, name, name) for name in names]
    threes = [names[first : first + 3] for first in range(0, len(names), 3)]
    return [(three[0], three[1 % len(three)], three[2 % len(three)]) for three in threes]


class TimmEncoder(nn.Module):
    """uint8 crops in, the model's pooled features of all views out."""

    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        channels: Sequence[str],
        feed: str,
        input_px: int | None,
        mean: float,
        sd: float,
    ) -> None:
        """Wraps a model without classifier.

        Args:
            model: of timm, created with num_classes=0.
            channels: names of the channels of a crop.
            feed: one_by_one or three_by_three.
            input_px: side that crops are resized to; None to leave them as they are.
            mean: that the model's pictures, in [0, 1], are normalized by.
            sd: their standard deviation.
        """
        super().__init__()
        self.model = model
        self.channels = tuple(channels)
        self.input_px = input_px
        names = sorted(channels)
        self._names = tuple(names)
        views = views_of(channels, feed)
        self._views = [[names.index(name) for name in view] for view in views]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("sd", torch.tensor(sd), persistent=False)

    def read(
        self, crops: Tensor, channels: Sequence[str], *, every_block: bool = False
    ) -> dict[str, Tensor]:
        """Embeddings of crops, (B, D): pooled, and, where wanted, block_1, block_2, ...

        A block's read-out is the mean over its places, or patch tokens, of what the block gives;
        which blocks a model tells apart is timm's choice (`forward_intermediates`), and models
        without it have none.

        Args:
            crops: (B, C, s, s) uint8.
            channels: their names.
            every_block: whether to read each block too.

        Raises:
            ValueError: if the channels are not those that the encoder takes.
        """
        x = rescale(choose(crops, channels, self._names))
        if self.input_px is not None and x.shape[-1] != self.input_px:
            size = (self.input_px, self.input_px)
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        x = (x - self.mean) / self.sd
        parts = [self._read_view(x[:, view], every_block) for view in self._views]
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

    def _read_view(self, view: Tensor, every_block: bool) -> dict[str, Tensor]:
        """Read-outs (B, d) of one view, (B, 3, s, s)."""
        model: Any = self.model  # what else than `forward` it has, no type says
        if not every_block or not hasattr(model, "forward_intermediates"):
            return {POOLED: model(view)}
        last, blocks = model.forward_intermediates(view, output_fmt="NCHW")
        read = {POOLED: model.forward_head(last)}
        for number, block in enumerate(blocks, start=1):
            read[f"block_{number}"] = block.mean(dim=(2, 3))
        return read
