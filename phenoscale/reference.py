"""Reference encoders: a timm model or an exported encoder, frozen, as a baseline of a study.

Is training on this screen worth it? Only where it beats an encoder that was there before. A
reference stands in a study as a baseline: it embeds and is scored as any trial, trained on nothing.
What identifies it is its name and the digest of its weights; where these lie is placement.

Shapes: B crops, C channels, s side of a crop, D width of an embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phenoscale.config import (
    FEEDS,
    RANDOM_WEIGHTS,
    Crops,
    Objective,
    Optim,
    Placement,
    Reference,
    Trial,
)
from phenoscale.export import load_encoder
from phenoscale.models.build import AnyEncoder
from phenoscale.models.camae import ChannelAgnosticEncoder
from phenoscale.models.timm_encoder import POOLED, TimmEncoder

TIMM = "timm:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """What a reference encoder is."""

    name: str
    """timm:NAME, or exported:OBJECTIVE BACKBONE."""
    digest: str
    """SHA-256, hexadecimal: of an exported encoder's file of weights; of a timm model's weights by
    name, whatever file they come from."""
    size_px: int | None
    """Side of what the network sees; None where that is the crop as it is."""
    readout: str
    """The read-out that stands for the encoder where no other is asked for."""
    feed: str
    """How channels go in: one_by_one, three_by_three, or together, as it was trained."""
    scaling: str
    """How grey values are scaled, in words."""
    width: int
    """Values of that read-out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceModel:
    """A loaded reference."""

    encoder: AnyEncoder
    """The network, in evaluation mode and frozen; its `read` gives embeddings of crops."""
    facts: ReferenceFacts
    """What it is."""


def load_model(
    spec: str,
    *,
    channels: Sequence[str],
    weights: str | Path | None = None,
    feed: str | None = None,
    size_px: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> ReferenceModel:
    """Loads a reference encoder.

    A timm model gets each channel of a crop between its 0.1 and 99.9 percentiles
    (`timm_encoder.rescale`), normalized by the mean and deviation that its own data config states,
    averaged over red, green and blue, for a stain is none of these.

    Args:
        spec: timm:NAME, a model of timm; or a folder that `phenoscale export` wrote.
        channels: names of the channels of the crops.
        weights: of a timm model: a file (.safetensors, or a checkpoint that torch reads with
            weights_only; of one that holds an average of the weights too, the average); "random"
            for an untrained one; None for those at the model hub.
        feed: of a timm model: one_by_one, the default, or three_by_three.
        size_px: of a timm model: side that crops are resized to. By default those of a model of
            one fixed input size to that, others not at all; a transformer of a fixed size takes
            another where timm's dynamic_img_size lets it.
        seed: of random weights.
        device: where it embeds.

    Raises:
        ValueError: if there is no such model, the weights cannot be had, read, or do not fit, or an
            exported encoder is given options of a timm model or channels that it does not take.
    """
    if spec.startswith(TIMM):
        model, facts = _timm_model(spec, channels, weights, feed, size_px, seed)
    else:
        options = {"weights": weights, "feed": feed, "size_px": size_px}
        model, facts = _exported_model(spec, channels, options)
    model.eval().requires_grad_(False)
    model.to(device)
    return ReferenceModel(encoder=model, facts=facts)


def reference_trial(
    spec: str,
    crops: Crops,
    *,
    channels: Sequence[str],
    weights: str | Path | None = None,
    feed: str | None = None,
    size_px: int | None = None,
    seed: int = 0,
) -> Trial:
    """The baseline that a reference is in a study; loads it, to say which weights it has.

    Args:
        spec: as `load_model`, like the other arguments.
        crops: of the study: side of the tiles and what is held out. It trains on none.
        channels: of the screen.
        weights: path of the file, "random", or None.
        feed: how channels go in.
        size_px: side that crops are resized to.
        seed: of random weights.

    Raises:
        ValueError: as `load_model`, and if crops are not of the size that the encoder takes.
    """
    model = load_model(
        spec, channels=channels, weights=weights, feed=feed, size_px=size_px, seed=seed
    )
    facts, exported = model.facts, not spec.startswith(TIMM)
    if exported and facts.size_px != crops.size_px:
        raise ValueError(
            f"{spec} was trained on crops of {facts.size_px} px, the study has crops of "
            f"{crops.size_px} px. Give crops of {facts.size_px} px."
        )
    _, operations = _measured(model.encoder, channels, crops.size_px, facts.readout)
    random = weights == RANDOM_WEIGHTS
    path = None if random or (weights is None and not exported) else Path(weights or spec)
    return Trial(
        objective=Objective(name="reference"),
        backbone=facts.name,
        crops=dataclasses.replace(crops, passes=0, crops_per_read=1),
        optim=Optim(lr=1.0),
        seed=seed,
        placement=Placement(weights=None if path is None else str(path.resolve())),
        reference=Reference(
            weights=RANDOM_WEIGHTS if random else facts.digest,
            feed=facts.feed,
            input_px=size_px,
            parameters=sum(p.numel() for p in model.encoder.parameters()),
            crop_flops=operations,
        ),
    )


def reference_encoder(trial: Trial, *, channels: Sequence[str]) -> AnyEncoder:
    """The encoder of a reference trial.

    Args:
        trial: that `reference_trial` made.
        channels: of the screen.

    Raises:
        ValueError: as `load_model`, and if the weights are no longer those of the trial.
    """
    reference, path = trial.reference, trial.placement.weights
    assert reference is not None, f"{trial.id} is no reference"
    if not trial.backbone.startswith(TIMM):
        if path is None:
            raise ValueError(
                f"Trial {trial.id} does not say where its encoder lies. Give the exported folder "
                "as placement.weights."
            )
        model = load_model(path, channels=channels)
    else:
        model = load_model(
            trial.backbone,
            channels=channels,
            weights=RANDOM_WEIGHTS if reference.weights == RANDOM_WEIGHTS else path,
            feed=reference.feed,
            size_px=reference.input_px,
            seed=trial.seed,
        )
    if reference.weights not in (RANDOM_WEIGHTS, model.facts.digest):
        raise ValueError(
            f"The weights at {path or 'the model hub'} have the digest {model.facts.digest}; trial "
            f"{trial.id} was made with {reference.weights}. Give those weights, or make the trial "
            "anew."
        )
    return model.encoder


def _exported_model(
    spec: str, channels: Sequence[str], options: Mapping[str, object]
) -> tuple[AnyEncoder, ReferenceFacts]:
    if not Path(spec).is_dir():
        raise ValueError(
            f"There is no reference {spec!r}: give {TIMM}NAME, a model of timm, or a folder that "
            "`phenoscale export` wrote."
        )
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)} given for {spec}: an exported encoder has its own weights and "
            "takes channels and crops as it was trained on them. Leave them out."
        )
    exported = load_encoder(spec)
    facts, encoder = exported.facts, exported.encoder
    agnostic = isinstance(encoder, ChannelAgnosticEncoder)
    if not agnostic and sorted(channels) != sorted(facts.channels):
        raise ValueError(
            f"{spec} takes exactly the channels {', '.join(facts.channels)}; the crops have "
            f"{', '.join(channels)}. Take an encoder of these channels, or a channel-agnostic one."
        )
    objective = Objective(**facts.trial["objective"]).label
    return encoder, ReferenceFacts(
        name=f"exported:{objective} {facts.backbone}",
        digest=facts.weights_sha256,
        size_px=facts.size_px,
        readout=facts.readout,
        feed="together",
        scaling="mean 0 and variance 1 of each crop and channel",
        width=facts.width,
    )


def _timm_model(
    spec: str,
    channels: Sequence[str],
    weights: str | Path | None,
    feed: str | None,
    size_px: int | None,
    seed: int,
) -> tuple[AnyEncoder, ReferenceFacts]:
    # timm takes seconds to import, and an exported encoder needs none of it.
    from timm.data import resolve_model_data_config

    from phenoscale.models.timm_weights import create_model, pretrained_cfg, weights_digest

    feed = feed or FEEDS[0]
    if feed not in FEEDS[:2]:
        raise ValueError(f"feed is {feed!r}; a timm model takes {' or '.join(FEEDS[:2])}.")
    model = create_model(spec.removeprefix(TIMM), weights, size_px=size_px, seed=seed)
    config = resolve_model_data_config(model)
    own_px = config["input_size"][-1] if pretrained_cfg(model).get("fixed_input_size") else None
    mean, sd = (sum(config[name]) / len(config[name]) for name in ("mean", "std"))
    encoder = TimmEncoder(
        model, channels=channels, feed=feed, input_px=size_px or own_px, mean=mean, sd=sd
    )
    side = encoder.input_px or config["input_size"][-1]
    width, _ = _measured(encoder, channels, side, POOLED)
    return encoder, ReferenceFacts(
        name=spec,
        digest=weights_digest(model),
        size_px=encoder.input_px,
        readout=POOLED,
        feed=feed,
        scaling="0.1 to 99.9 percentile of each crop and channel, then mean "
        f"{mean:.3g} and deviation {sd:.3g} of the model's data config",
        width=width,
    )


def _measured(
    encoder: AnyEncoder, channels: Sequence[str], size_px: int, readout: str
) -> tuple[int, int]:
    """Values of a read-out, and operations of reading one crop, both found by reading one."""
    blank = torch.zeros(1, len(channels), size_px, size_px, dtype=torch.uint8)
    encoder.eval()
    try:
        with (
            torch.inference_mode(),
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            read = encoder.read(blank, channels)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"The reference cannot read crops of {size_px} px ({error}). Give size_px, a side that "
            "they are resized to."
        ) from error
    return read[readout].shape[1], counter.get_total_flops()
