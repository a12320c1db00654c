"""What a study will cost, before anything is spent: arithmetic on its trials and its screen."""

from __future__ import annotations

import dataclasses

from phenoscale import flops, gpus
from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Study, Trial, num_steps
from phenoscale.layout import layout_of

A100_FLOPS = 312e12  # dense bf16 peak, NVIDIA A100 datasheet
UTILIZATION = 0.4  # of that peak; what the bill's GPU-hours assume
# Operations of the same time as what else a crop of training, and a tile of embedding, costs:
# reading, standardizing, moving. Measured on one core; they matter below S/16.
_CROP_FLOPS, _TILE_FLOPS = 4e7, 1e7


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreenSize:
    """The counts of a screen that costs depend on."""

    wells: int
    """Wells that no trial holds out."""
    sites_per_well: float
    """Sites of each, on average."""
    total_sites: int
    """Sites to embed, the held-out ones among them."""
    channels: int
    """Channels of a site."""
    classes: int
    """Perturbations, the negative control among them."""
    site_px: int
    """Side of a site, pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """The cost of one trial."""

    trial: Trial
    """The trial."""
    parameters: int
    """Of the encoder."""
    steps: int
    """Optimizer updates."""
    crops: int
    """Training crops."""
    training_flops: float
    """Operations of training."""
    embedding_flops: float
    """Operations of embedding the whole screen."""
    tiles: int
    """Crops that the whole screen is embedded as."""
    gpu_bytes: float
    """Memory of each GPU in training (`gpus.py`); 0 where the trial has none."""

    @property
    def gpu_hours(self) -> float:
        """Hours of one A100 at `UTILIZATION`, training and embedding."""
        return (self.training_flops + self.embedding_flops) / (A100_FLOPS * UTILIZATION) / 3600

    @property
    def cost(self) -> tuple[float, float]:
        """Relative time of training and of embedding on one core, for scheduling and time to go."""
        train = self.training_flops + _CROP_FLOPS * self.crops
        return train, self.embedding_flops + _TILE_FLOPS * self.tiles


def bill(study: Study, screen: ScreenSize) -> list[Line]:
    """One line per trial; errors as `bill_line`."""
    return [bill_line(trial, screen) for trial in study.trials]


def bill_line(trial: Trial, screen: ScreenSize) -> Line:
    """The cost of one trial.

    Raises:
        ValueError: if it has too few sites for one step, or crops larger than a site.
    """
    crops = trial.crops
    steps = 0
    if not trial.is_baseline:
        if crops.size_px > screen.site_px:
            raise ValueError(
                f"Trial {trial.id} wants crops of {crops.size_px} px from sites of "
                f"{screen.site_px} px; give size_px of at most that."
            )
        wells = int(crops.data_fraction * screen.wells + 0.5)  # as `ScreenIndex.rows` rounds
        steps = num_steps(crops, round(wells * screen.sites_per_well))
    count = steps * crops.global_batch_size
    tiles = screen.total_sites * (screen.site_px // crops.size_px) ** 2
    network = trial.backbone != NO_BACKBONE
    return Line(
        trial=trial,
        parameters=flops.trial_encoder_parameters(trial, screen.channels) if network else 0,
        steps=steps,
        crops=count,
        training_flops=flops.training_flops(trial, screen.channels, screen.classes, count),
        embedding_flops=flops.embedding_flops(trial, screen.channels, tiles),
        tiles=tiles,
        gpu_bytes=_gpu_bytes(trial, screen),
    )


def _gpu_bytes(trial: Trial, screen: ScreenSize) -> float:
    place = trial.placement
    if not place.gpu or trial.is_baseline:
        return 0.0
    layout = layout_of(
        trial, screen.channels, screen.classes, workers=place.workers, gpu_bytes=gpus.GPU_BYTES
    )
    share = -(-trial.crops.global_batch_size // place.workers)
    return gpus.gpu_bytes(
        trial,
        screen.channels,
        screen.classes,
        crops=layout.crops_at_once or share,
        gpus=place.workers,
        strategy=layout.strategy,
    )


def bill_text(study: Study, screen: ScreenSize) -> list[str]:
    """The bill as lines of text: a trial a line, then the sum."""
    lines = bill(study, screen)
    width = max(42, *(len(line.trial.id) for line in lines)) + 2
    head = (
        f"{'trial':<{width}}{'parameters':>11}{'steps':>10}{'crops':>15}{'FLOPs':>10}"
        f"{'workers':>9}{'GPUs':>6}{'GPU-h':>10}{'GB/GPU':>8}"
    )
    text = [head, "-" * len(head)]
    for line in lines:
        place = line.trial.placement
        memory = f"{line.gpu_bytes / 1e9:.1f}" if line.gpu_bytes else "-"
        text.append(
            f"{line.trial.id:<{width}}{line.parameters:>11,}{line.steps:>10,}{line.crops:>15,}"
            f"{line.training_flops:>10.2e}{place.workers:>9}{place.workers * place.gpu:>6}"
            f"{_hours(line.gpu_hours):>10}{memory:>8}"
        )
    trained = sum(not line.trial.is_baseline for line in lines)
    total = sum(line.training_flops + line.embedding_flops for line in lines)
    text += [
        "-" * len(head),
        f"{len(lines)} trials ({trained} trained, {len(lines) - trained} baselines), "
        f"{sum(line.steps for line in lines):,} steps, "
        f"{sum(line.crops for line in lines):,} crops, "
        f"{total:.2e} FLOPs with embedding of {screen.total_sites:,} sites each.",
        f"On A100s at {UTILIZATION:.0%} of the bf16 peak: "
        f"{_hours(sum(line.gpu_hours for line in lines))} GPU-hours.",
    ]
    return text


def _hours(hours: float) -> str:
    """Two digits, or all of those before the point."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
