"""Do ViT classifiers close the gap to masked autoencoders, and does one encoder take any channels?

Command: python -m experiments.cvpr2024 [--dry-run] [--scale laptop] [--index DATASET=INDEX]
Expected, at the papers' scale: MAEs stay above the best classifier, a ViT, by up to 11.5%
(relative) in recall of known relationships; channel-agnostic MAEs come close to the MAEs of their
size and read images of other channels. On a laptop: the order of objectives may differ, and six
passes show no more than that every system runs from pixels to its score.

Kraus et al. 2024, arXiv 2404.10242: adds ViT classifiers and CA-MAE to what neurips2023.py has.
Without --index the papers' scale prints its bill: RPI sets and RxRx1-2M are not public.
"""

from __future__ import annotations

import typer

from experiments.papers import Paper, command, rows

# What is known and what is chosen: as in neurips2023.py. CA-MAE-S/16 on RxRx3 took 400 hours of
# A100s, 16 at a time (Kenyon-Dean et al. 2025): 2,048 crops a batch at 128 on each.
_SMALL, _LARGE = 1e-4, 3e-5
# system, data set, passes, global batch, rate
_ROWS = (
    ("WSL DenseNet-161", "RxRx1", 100, 2_048, _SMALL),
    ("WSL DenseNet-161", "RxRx3", 100, 2_048, _SMALL),
    ("WSL ViT-B/16", "RxRx1", 100, 2_048, _SMALL),
    ("WSL ViT-B/16", "RxRx1-2M", 100, 4_096, _SMALL),
    ("WSL ViT-B/16", "RxRx3", 100, 4_096, _SMALL),
    ("WSL ViT-L/16", "RxRx1-2M", 100, 8_192, _LARGE),
    ("WSL ViT-L/16", "RxRx3", 100, 8_192, _LARGE),
    ("MAE-S/16", "RxRx3", 100, 2_048, _SMALL),
    ("MAE-B/16", "RxRx3", 100, 4_096, _SMALL),
    ("MAE-B/8", "RxRx3", 100, 4_096, _SMALL),
    ("MAE-B/8+", "RPI-52M", 50, 8_192, _SMALL),
    ("MAE-L/16", "RxRx3", 100, 8_192, _LARGE),
    ("MAE-L/16+", "RPI-93M", 50, 16_384, _LARGE),
    ("MAE-L/8+", "RPI-93M", 38, 16_384, _LARGE),
    ("CA-MAE-S/16", "RxRx3", 100, 2_048, _SMALL),
    ("CA-MAE-S/16+", "RxRx3", 100, 2_048, _SMALL),
    ("CA-MAE-B/16+", "RPI-52M", 50, 8_192, _SMALL),
    ("CA-MAE-L/16+", "RPI-93M", 50, 16_384, _LARGE),
)

PAPER = Paper(
    name="cvpr2024",
    question="Do masked autoencoders beat ViT classifiers, and does one encoder take any channels?",
    rows=rows(_ROWS),
)

if __name__ == "__main__":
    typer.run(command(PAPER))
