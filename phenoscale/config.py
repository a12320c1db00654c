"""The values that describe a study: frozen, complete, checked when they are made.

A `Trial` is one cell of the grid. Everything that changes its result is in it, nothing else is, and
its id says what it is: a readable name and a short hash of those fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any, Literal

from phenoscale.backbones import BACKBONES_OF, NO_BACKBONE, DenseNet, VisionTransformer, backbone
from phenoscale.results import BASELINES

TRAINED_OBJECTIVES = ("wsl", "munet", "mae", "ca_mae")
MASKED_OBJECTIVES = ("munet", "mae", "ca_mae")
READOUTS = ("patch_mean", "class_token", "patch_sd", "per_channel")
SAMPLINGS = ("shuffled", "plate_wise", "class_balanced")
METRICS = ("recall_0.05_0.95", "balanced_accuracy")
OPTIMIZERS = ("adamw", "lion", "muon")
PRECISIONS = ("auto", "fp32", "bf16")
RATE_SOURCES = ("given", "tuned", "transferred", "paper")
FEEDS = ("one_by_one", "three_by_three", "together")
RANDOM_WEIGHTS = "random"
_SHOWN_DIGITS = 8

Launcher = Literal["in_place", "ray_train"]
Strategy = Literal["ddp", "fsdp"]


def _require(holds: bool, name: str, given: object, required: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {given!r}, but must be {required}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
    """Which crops a trial sees."""

    size_px: int
    """Side of the square crop, pixels."""
    data_fraction: float = 1.0
    """Share of the wells that are not held out, (0, 1]; smaller shares lie inside larger ones."""
    passes: int = 1
    """Times that every site of the subset is visited; each visit cuts one new crop."""
    global_batch_size: int = 64
    """Crops per optimizer update, over all workers."""
    crops_per_read: int = 1
    """Crops, of `passes`, that one reading of a site serves; more where decoding is dear."""
    sampling: str = "shuffled"
    """shuffled, plate_wise (neighbouring crops of one plate, for AdaBN) or class_balanced."""
    crops_per_plate: int = 16
    """For plate_wise: crops of one plate that stand together in a batch."""
    held_out: tuple[str, ...] = ()
    """Experimental batches, or plates as "experimental_batch/plate", that no trial trains on."""
    tolerated_bad_sites: float = 0.0
    """Share of unreadable sites, [0, 1), up to which a trial goes on without them."""

    def __post_init__(self) -> None:
        _require(self.size_px > 0, "size_px", self.size_px, "a positive number of pixels")
        _require(0 < self.data_fraction <= 1, "data_fraction", self.data_fraction, "in (0, 1]")
        _require(self.passes >= 0, "passes", self.passes, "0 (a baseline) or more")
        _require(
            self.global_batch_size > 0, "global_batch_size", self.global_batch_size, "positive"
        )
        _require(
            self.crops_per_read > 0 and self.passes % self.crops_per_read == 0,
            "crops_per_read",
            self.crops_per_read,
            f"1 or another divisor of the {self.passes} passes",
        )
        _require(
            self.sampling in SAMPLINGS, "sampling", self.sampling, f"one of {', '.join(SAMPLINGS)}"
        )
        if self.sampling == "plate_wise":
            _require(
                self.crops_per_plate > 0 and self.global_batch_size % self.crops_per_plate == 0,
                "crops_per_plate",
                self.crops_per_plate,
                f"a divisor of the global batch of {self.global_batch_size}",
            )
        _require(
            0 <= self.tolerated_bad_sites < 1,
            "tolerated_bad_sites",
            self.tolerated_bad_sites,
            "a share in [0, 1)",
        )

    @property
    def unit(self) -> int:
        """Crops that stand together in a batch, and go to one worker together."""
        return self.crops_per_plate if self.sampling == "plate_wise" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a trial learns from its crops."""

    name: str
    """wsl (classify the perturbation); munet, mae and ca_mae (reconstruct what is masked, with a
    U-Net, a transformer, a channel-agnostic transformer); or a baseline."""
    mask_ratio: float = 0.75
    """Share of patches that are removed, (0, 1); of ca_mae, patches of single channels."""
    fourier_weight: float = 0.0
    """Share of the Fourier loss in the whole, [0, 1); the papers' "+" models have 0.01."""
    normalized_targets: bool = False
    """Whether mae and ca_mae predict patches of zero mean and unit variance each."""
    channel_subsets: bool = False
    """Whether ca_mae trains on a random subset of the channels in each step."""

    def __post_init__(self) -> None:
        known = TRAINED_OBJECTIVES + BASELINES
        _require(self.name in known, "objective", self.name, f"one of {', '.join(known)}")
        _require(0 < self.mask_ratio < 1, "mask_ratio", self.mask_ratio, "in (0, 1)")
        _require(0 <= self.fourier_weight < 1, "fourier_weight", self.fourier_weight, "in [0, 1)")
        for option, names in (
            ("fourier_weight", MASKED_OBJECTIVES),
            ("normalized_targets", ("mae", "ca_mae")),
            ("channel_subsets", ("ca_mae",)),
        ):
            if getattr(self, option) and self.name not in names:
                raise ValueError(
                    f"{option}={getattr(self, option)} with objective {self.name}: that is an "
                    f"option of {', '.join(names)}. Leave it out."
                )

    @property
    def channel_agnostic(self) -> bool:
        """Whether each channel is cut into patches of its own."""
        return self.name in ("ca_mae", "untrained_ca")

    @property
    def label(self) -> str:
        """The name as results show it: "mae+" with the Fourier loss, "ca_mae~" on subsets."""
        return self.name + "+" * bool(self.fourier_weight) + "~" * self.channel_subsets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """What a reference encoder is beside its name; `reference.reference_trial` fills it in."""

    weights: str
    """SHA-256 of the weights, hexadecimal; or "random": those that the trial's seed begins with."""
    feed: str
    """How channels go in: one_by_one, three_by_three, or together, as it was trained."""
    input_px: int | None = None
    """Side that crops are resized to; None for what the model asks for by itself."""
    parameters: int
    """Of the encoder; for the bill."""
    crop_flops: int
    """Operations of reading one crop of the screen; for the bill."""

    def __post_init__(self) -> None:
        digits = set(self.weights) <= set("0123456789abcdef") and len(self.weights) == 64
        _require(
            digits or self.weights == RANDOM_WEIGHTS,
            "weights",
            self.weights,
            f'64 hexadecimal digits of SHA-256, or "{RANDOM_WEIGHTS}"',
        )
        _require(self.feed in FEEDS, "feed", self.feed, f"one of {', '.join(FEEDS)}")
        _require(
            self.input_px is None or self.input_px > 0,
            "input_px",
            self.input_px,
            "None, or a positive number of pixels",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """How a trial's weights are updated, on a one-cycle cosine."""

    lr: float
    """Peak learning rate."""
    lr_source: str = "given"
    """Where that rate is from: tuned (a sweep of this size), transferred (`rates.py`), paper, or
    given by hand. It says how far to trust a comparison of sizes and changes nothing."""
    name: str = "adamw"
    """adamw, the papers' lion, or muon (matrices by Muon, all else by a kind of AdamW)."""
    precision: str = "auto"
    """Of matrix products and convolutions, fp32 or bf16; weights and sums stay in fp32. auto takes
    bf16 where the hardware multiplies it and the network is wide enough to gain by it."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the weight matrices; biases, norms and tokens have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    warmup_fraction: float = 0.1
    """Share of the steps over which the rate rises from 0."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    average: float = 0.0
    """Decay of the exponential moving average of the weights, [0, 1), which is then what is
    embedded and exported; 0 keeps none."""
    rollback: bool = False
    """Whether the first spike of the loss (`guard.is_spike`) takes the weights back to the last
    milestone; the trial goes on behind the spike."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr", self.lr, "positive")
        _require(self.name in OPTIMIZERS, "optimizer", self.name, f"one of {', '.join(OPTIMIZERS)}")
        _require(
            self.precision in PRECISIONS,
            "precision",
            self.precision,
            f"one of {', '.join(PRECISIONS)}",
        )
        _require(
            self.lr_source in RATE_SOURCES,
            "lr_source",
            self.lr_source,
            f"one of {', '.join(RATE_SOURCES)}",
        )
        _require(0 <= self.average < 1, "average", self.average, "a decay in [0, 1)")
        _require(
            0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "in [0, 1)"
        )
        _require(self.clip_norm > 0, "clip_norm", self.clip_norm, "positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readers:
    """Where the crops of one worker are read and cut ahead of it."""

    at_once: int = 1
    """Tasks at a time, each of one CPU; more where decoding is slower than training. For a packed
    store that the worker maps, threads of the worker."""
    resource: str | None = None
    """Custom Ray resource that each task holds, to keep decoding on the nodes that offer it."""

    def __post_init__(self) -> None:
        _require(self.at_once > 0, "readers.at_once", self.at_once, "1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a trial runs. It changes no number beyond rounding, so it is not part of the hash."""

    launcher: Launcher = "in_place"
    """in_place: inside the Tune function, one CPU worker; ray_train: a Ray Train worker group."""
    workers: int = 1
    """Data-parallel workers; more than one needs ray_train."""
    min_workers: int | None = None
    """Fewest GPU workers to train with while there is no room for all; None waits for all."""
    gpu: bool = False
    """Whether each worker holds one GPU; needs ray_train."""
    threads: int = 1
    """CPU threads per worker. One by default: sums in another order would change the last bits."""
    strategy: Strategy | None = None
    """What several workers do: ddp (each holds the model) or fsdp (each holds a part of it). None:
    fsdp where a GPU does not hold the model, else ddp (`layout.py`)."""
    crops_at_once: int | None = None
    """Most crops that a worker puts through the model at once; it sums the gradients of its share
    of the global batch. None: as many as its GPU holds by `gpus.py`, on a CPU the whole share."""
    compiled: bool = False
    """Whether the model's layers are compiled."""
    recompute: bool = False
    """Whether layers compute their activations again in the backward pass instead of keeping them:
    less memory for a third more operations."""
    save_every_s: float = 600.0
    """Seconds between checkpoints, besides those at thirds of the trial."""
    stall_s: float = 600.0
    """Seconds without crops, or without word from another worker, after which the trial fails."""
    profile: bool = False
    """Whether the first worker writes a trace of some steps to trace.json."""
    readers: Readers = Readers()
    """Who cuts the crops of each worker."""
    weights: str | None = None
    """Where a reference's weights lie: a file, or the folder of an exported encoder. None: at the
    model hub, or random."""

    def __post_init__(self) -> None:
        _require(
            self.launcher in ("in_place", "ray_train"),
            "launcher",
            self.launcher,
            "in_place or ray_train",
        )
        _require(
            self.strategy in ("ddp", "fsdp", None), "strategy", self.strategy, "ddp, fsdp or None"
        )
        _require(self.workers > 0, "workers", self.workers, "1 or more")
        _require(
            self.min_workers is None or 0 < self.min_workers <= self.workers,
            "min_workers",
            self.min_workers,
            f"None, or from 1 to the {self.workers} workers",
        )
        _require(self.threads > 0, "threads", self.threads, "1 or more")
        _require(
            self.crops_at_once is None or self.crops_at_once > 0,
            "crops_at_once",
            self.crops_at_once,
            "None, or 1 or more",
        )
        _require(self.save_every_s > 0, "save_every_s", self.save_every_s, "positive")
        _require(self.stall_s > 0, "stall_s", self.stall_s, "positive")
        if self.launcher == "in_place" and (self.workers > 1 or self.gpu):
            raise ValueError(
                f"A trial with workers={self.workers}, gpu={self.gpu} cannot run in place: that is "
                'one CPU worker. Give launcher="ray_train".'
            )

        if self.min_workers is not None and not self.gpu:
            raise ValueError(
                f"min_workers={self.min_workers} without GPUs: a group that takes what CPUs there "
                "are leaves none to its readers, and stalls. Leave it out, or give gpu=True."
            )

    @property
    def options(self) -> list[str]:
        """Names of what is not the plain way."""
        on = {
            "fsdp": self.strategy == "fsdp",
            "elastic": self.min_workers is not None,
            f"at{self.crops_at_once}": self.crops_at_once is not None,
            "compiled": self.compiled,
            "recompute": self.recompute,
        }
        return [name for name, is_on in on.items() if is_on]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell of the grid: a Tune trial, a Train run, an MLflow run, a results row."""

    objective: Objective
    """What is learned."""
    backbone: str
    """Name in `backbones.BACKBONES`, such as "B/16"; "none" for intensity and oracle; the name of
    a reference, such as "timm:resnet18"."""
    crops: Crops
    """From which crops."""
    optim: Optim
    """By which updates."""
    seed: int = 0
    """Seed of initialisation, sampling plan and masks."""
    placement: Placement = Placement()
    """Where it runs."""
    reference: Reference | None = None
    """Of the objective reference: which weights, and how it is fed."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        if (self.reference is not None) != (self.objective.name == "reference"):
            raise ValueError(
                f"objective {self.objective.name} with reference={self.reference}: a reference "
                "trial, and no other, says which weights it has. Make one by "
                "`reference.reference_trial`."
            )
        if self.reference is not None:
            _require(
                self.backbone != NO_BACKBONE, "backbone", self.backbone, "the reference's name"
            )
        elif self.objective.name not in BACKBONES_OF:
            _require(self.backbone == NO_BACKBONE, "backbone", self.backbone, f'"{NO_BACKBONE}"')
        else:
            self._check_backbone()
        if self.is_baseline != (self.crops.passes == 0):
            raise ValueError(
                f"objective {self.objective.name} with passes={self.crops.passes}: a baseline "
                "trains on nothing (passes=0), every other objective on at least one pass."
            )
        units, at_once = (
            self.crops.global_batch_size // self.crops.unit,
            self.placement.crops_at_once,
        )
        if units < self.placement.workers:
            of = f" in units of {self.crops.unit} crops of a plate" if self.crops.unit > 1 else ""
            raise ValueError(
                f"global_batch_size={self.crops.global_batch_size}{of} is too small for "
                f"{self.placement.workers} workers; give each of them one at least."
            )
        if at_once is not None and at_once % self.crops.unit:
            raise ValueError(
                f"crops_at_once={at_once} tears the {self.crops.unit} crops of a plate apart; give "
                "a multiple."
            )

    def _check_backbone(self) -> None:
        """Raises ValueError unless crops, backbone and objective go together."""
        size_px, shape = self.crops.size_px, backbone(self.backbone, self.objective.name)
        if size_px % shape.patch_px:
            raise ValueError(
                f"Crops of {size_px} px do not divide into patches of {shape.patch_px} px "
                f"({self.backbone}). Give size_px as a multiple of {shape.patch_px}."
            )
        if isinstance(shape, DenseNet):
            if size_px < shape.smallest_px:
                raise ValueError(
                    f"Crops of {size_px} px are too small for {self.backbone}, which halves them "
                    f"until nothing is left. Give size_px of at least {shape.smallest_px}."
                )
            plate_wise = self.crops.sampling == "plate_wise" and self.crops.crops_per_plate > 1
            if not self.is_baseline and not plate_wise:
                raise ValueError(
                    f"{self.backbone} takes its batch norm's statistics from the crops of a plate; "
                    f"sampling is {self.crops.sampling!r} with {self.crops.crops_per_plate} crops "
                    'per plate. Give sampling="plate_wise" and crops_per_plate of 2 or more.'
                )
        patches = (size_px // shape.patch_px) ** 2
        kept = round(patches * (1 - self.objective.mask_ratio))
        if self.objective.name in MASKED_OBJECTIVES and not 0 < kept < patches:
            raise ValueError(
                f"mask_ratio={self.objective.mask_ratio} keeps {kept} of the {patches} "
                f"patches of a crop; {self.objective.name} needs at least one to see and one to "
                "predict. Give larger crops or another mask_ratio."
            )

    @property
    def is_baseline(self) -> bool:
        """Whether the trial trains nothing."""
        return self.objective.name in BASELINES

    def has_readout(self, name: str) -> bool:
        """Whether the trial's encoder gives this read-out; a baseline without one has its own."""
        if self.backbone == NO_BACKBONE or self.reference is not None:
            return True
        if name == "per_channel":
            return self.objective.channel_agnostic
        return name != "class_token" or isinstance(backbone(self.backbone), VisionTransformer)

    @property
    def shown_backbone(self) -> str:
        """The backbone as results show it: with a reference's weights, and how it is fed."""
        if self.reference is None:
            return self.backbone
        words = [
            self.backbone.replace(":", " "),
            f"weights {self.reference.weights[:_SHOWN_DIGITS]}",
        ]
        if self.reference.weights == RANDOM_WEIGHTS:
            words[-1] = "random weights"
        if self.reference.feed == "three_by_three":
            words.append("three by three")
        if self.reference.input_px is not None:
            words.append(f"at {self.reference.input_px} px")
        return ", ".join(words)

    @property
    def id(self) -> str:
        """Readable name and 8 hexadecimal digits of SHA-256 over the fields that change the result.

        The placement is no part of the hash, nor is where the learning rate is from. The placement
        stands at the end of the name where it is not the plain one, so that twins (one trial,
        placed differently on purpose) keep separate folders.
        """
        fields = dataclasses.asdict(self)
        placement = fields.pop("placement")
        del fields["optim"]["lr_source"]
        reference = fields.pop("reference")
        if reference is not None:  # its counts follow from the rest
            hashed = ("weights", "feed", "input_px")
            fields["reference"] = {name: reference[name] for name in hashed}
        text = json.dumps(fields, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = [self.objective.label.replace("+", "_plus").replace("~", "_subsets")]
        if self.backbone != NO_BACKBONE:
            name.append(re.sub("[^A-Za-z0-9._+-]", "_", self.backbone))
        if not self.is_baseline:
            name.append(f"f{self.crops.data_fraction:.3g}")
        name += [f"s{self.seed}", digest]
        if placement["launcher"] == "ray_train":
            name.append(f"train{self.placement.workers}")
        name += self.placement.options
        return "-".join(name)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Trial:
        """Rebuilds a trial from `as_dict`, also after a trip through JSON."""
        crops = dict(fields["crops"])
        crops["held_out"] = tuple(crops["held_out"])
        optim = dict(fields["optim"])
        optim["betas"] = tuple(optim["betas"])
        return cls(
            objective=Objective(**fields["objective"]),
            backbone=fields["backbone"],
            crops=Crops(**crops),
            optim=Optim(**optim),
            seed=fields["seed"],
            placement=Placement(
                **fields["placement"] | {"readers": Readers(**fields["placement"]["readers"])}
            ),
            reference=Reference(**given) if (given := fields.get("reference")) else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of trials on one screen and how they are scored, fixed before anything is trained."""

    name: str
    """Name of the study: its MLflow experiment and the title of its report."""
    question: str
    """What the study asks, one sentence."""
    trials: tuple[Trial, ...]
    """Every cell of the grid, baselines included."""
    readout: str = "patch_mean"
    """The read-out of the headline score, one of `READOUTS`."""
    every_block: bool = False
    """Whether each block of a transformer is scored too: the search of arXiv 2411.02572."""
    metric: str = "recall_0.05_0.95"
    """recall_0.05_0.95 (needs relationships) or balanced_accuracy (needs held-out plates)."""
    bootstrap_rounds: int = 1000
    """Rounds of the bootstrap behind every interval."""

    def __post_init__(self) -> None:
        _require(self.readout in READOUTS, "readout", self.readout, f"one of {', '.join(READOUTS)}")
        _require(self.metric in METRICS, "metric", self.metric, f"one of {', '.join(METRICS)}")
        _require(len(self.trials) > 0, "trials", self.trials, "at least one trial")
        ids = [trial.id for trial in self.trials]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(
                f"The trials {twice} stand in study {self.name} twice; list each once."
            )
        if lacking := [trial.id for trial in self.trials if not trial.has_readout(self.readout)]:
            raise ValueError(
                f"The trials {lacking} have no read-out {self.readout}: class_token needs a "
                "transformer, per_channel a channel-agnostic one. Give patch_mean."
            )


def untrained_of(objective: str) -> str:
    """The baseline of the encoders that an objective, by its name or label, begins with."""
    return "untrained_ca" if objective.startswith("ca_mae") else "untrained"


def num_steps(crops: Crops, num_sites: int) -> int:
    """Optimizer updates of a trial: whole global batches in `passes` visits of `num_sites` sites.

    A multiple of `crops_per_read`, so that every reading of a site serves all its crops.

    Raises:
        ValueError: if that is less than one.
    """
    reads = crops.passes // crops.crops_per_read * num_sites
    steps = reads // crops.global_batch_size * crops.crops_per_read
    if steps < 1:
        raise ValueError(
            f"{crops.passes} passes over {num_sites} sites are fewer crops than one global batch "
            f"of {crops.global_batch_size}. Give more passes, a larger data_fraction, or a smaller "
            "batch."
        )
    return steps
