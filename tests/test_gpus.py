"""Memory formulas against the tensors that torch keeps, on the CPU and as on a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from phenoscale import flops, gpus
from phenoscale.backbones import DENSENETS, NO_BACKBONE
from phenoscale.config import Crops, Objective, Optim, Placement, Trial
from phenoscale.models import blocks
from phenoscale.models.build import Model, build_model
from phenoscale.parallel import mixed_precision, wrap
from phenoscale.zoo import CHANNELS, CLASSES, ZOO, System
from tests.tiny import TINY

UNIT = 2  # crops of a plate
NAMES = tuple(f"channel {i}" for i in range(CHANNELS))


def trial_of(objective: str, name: str, size_px: int = 64, precision="fp32", **options) -> Trial:
    by_plate = {"sampling": "plate_wise", "crops_per_plate": UNIT} if name in DENSENETS else {}
    return dataclasses.replace(
        TINY,
        objective=Objective(name=objective, **options),
        backbone=name,
        crops=Crops(size_px=size_px, **by_plate),
        optim=Optim(lr=1e-3, precision=precision),
    )


SMALL = [
    ("mae", "nano/8", {}),
    ("mae", "nano/8", {"fourier_weight": 0.01, "normalized_targets": True}),
    ("wsl", "micro/8", {}),
    ("ca_mae", "nano/8", {}),
    ("ca_mae", "nano/8", {"fourier_weight": 0.01}),
    ("munet", "MU-net-nano", {"mask_ratio": 0.25, "fourier_weight": 0.01}),
    ("wsl", "DenseNet-nano", {}),
]


def model_of(trial: Trial) -> Model:
    model = build_model(trial, channels=NAMES, num_classes=CLASSES)
    model.train()
    return model


def inputs(model: Model, crops: int, size_px: int, device: str = "cpu") -> tuple[Tensor, ...]:
    return (
        torch.zeros(crops, CHANNELS, size_px, size_px, dtype=torch.uint8, device=device),
        torch.zeros(crops, dtype=torch.int64, device=device),
        torch.rand(crops, model.draws + model.shared_draws, device=device),
    )


@pytest.fixture(autouse=True)
def fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what trains on a CPU may keep the N x N matrices (`blocks.attend`)."""
    monkeypatch.setattr(blocks, "attend", lambda *parts: F.scaled_dot_product_attention(*parts))


@contextlib.contextmanager
def kept_tensors(model: torch.nn.Module) -> Iterator[list[int]]:
    """Bytes of every storage that autograd keeps inside, but for those of the model."""
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
    sizes += [storage.nbytes() for storage in kept.values()]


@pytest.fixture
def norms_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's autocast gives layer and group norm fp32; the CPU's leaves them bf16."""
    layer_norm, group_norm = F.layer_norm, F.group_norm
    monkeypatch.setattr(F, "layer_norm", lambda x, *args, **kw: layer_norm(x.float(), *args, **kw))
    monkeypatch.setattr(F, "group_norm", lambda x, *args, **kw: group_norm(x.float(), *args, **kw))


def kept_per_crop(trial: Trial, unit: int = UNIT) -> float:
    """What more crops add, each: bf16 copies of weights are kept once."""
    model, total = model_of(trial), []
    for crops in (unit, 2 * unit):
        with (
            kept_tensors(model) as sizes,
            mixed_precision(trial.optim.precision, torch.device("cpu")),
        ):
            model(*inputs(model, crops, trial.crops.size_px))
        total.append(sum(sizes))
    return (total[1] - total[0]) / unit


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("objective", "name", "options"), SMALL)
def test_activations_are_what_autograd_keeps(objective, name, options, precision, norms_in_fp32):
    trial = trial_of(objective, name, precision=precision, **options)
    # Left out: a few numbers of each group and batch norm, which count where crops are this small.
    expected = pytest.approx(kept_per_crop(trial), rel=0.01)
    assert gpus.activation_bytes(trial, CHANNELS, CLASSES) == expected


@pytest.mark.parametrize(("precision", "size_px"), [("fp32", 256), ("bf16", 64)])
def test_a_crop_of_a_papers_model_keeps_what_it_says(precision, size_px, norms_in_fp32):
    trial = trial_of("mae", "S/16", size_px, precision)
    expected = pytest.approx(kept_per_crop(trial, 1), rel=0.001)
    assert gpus.activation_bytes(trial, CHANNELS, CLASSES) == expected


def attention_of_a_gpu(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
    """The kernel that `scaled_dot_product_attention` takes on a GPU: none is asked for here."""
    q, k, v = (x.to(torch.bfloat16) for x in (query, key, value))
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def kept_on_a_gpu(trial: Trial, crops: int) -> int:
    """As `kept_tensors`, with CUDA's autocast, on tensors that have a device and no memory."""
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention_of_a_gpu)
        patch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **options: tensor)
        with torch.device("cuda"):
            model = model_of(trial)
        with kept_tensors(model) as sizes:
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            torch.autocast_increment_nesting()
            try:
                model(*inputs(model, crops, trial.crops.size_px, "cuda"))
            finally:
                torch.clear_autocast_cache()
                torch.autocast_decrement_nesting()
                torch.set_autocast_enabled("cuda", False)
        return sum(sizes)


@pytest.mark.parametrize(
    "name",
    ["WSL DenseNet-nano", "WSL ViT-B/16", "MU-net-L+", "MAE-B/8+", "CA-MAE-S/16+"],
)
def test_a_row_of_the_zoo_keeps_on_a_gpu_what_it_says(name: str):
    (trial,) = (system.trial() for system in ZOO if system.name == name)
    unit = trial.crops.unit
    expected = (kept_on_a_gpu(trial, 2 * unit) - kept_on_a_gpu(trial, unit)) / unit
    found = gpus.activation_bytes(trial, CHANNELS, CLASSES)
    assert found == pytest.approx(expected, rel=0.001)


class Living(TorchDispatchMode):
    """Remembers what is made, to tell what is left of it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Callable, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.made[reference.cdata] = reference, storage.nbytes()
        return out

    def left(self) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("objective", "name", "options"), SMALL)
def test_recomputed_layers_keep_what_they_are_given(
    objective, name, options, precision, norms_in_fp32
):
    trial = trial_of(objective, name, precision=precision, **options)
    again = dataclasses.replace(trial, placement=Placement(recompute=True))
    model, left = model_of(again), []
    wrap(model, torch.device("cpu"), again.placement)
    for crops in (UNIT, 2 * UNIT):
        given = inputs(model, crops, trial.crops.size_px)
        with Living() as living:
            with mixed_precision(trial.optim.precision, torch.device("cpu")):
                loss = model(*given)
            left.append(living.left())
            del loss
    # And the largest layer, when its turn has come.
    expected = (left[1] - left[0]) / UNIT + largest_layer(trial)
    found = gpus.activation_bytes(again, CHANNELS, CLASSES)
    # What a layer gives may be kept by the next one too: here counted twice, there once.
    assert found == pytest.approx(expected, rel=0.07 if objective == "munet" else 0.02)
    assert found < gpus.activation_bytes(trial, CHANNELS, CLASSES) * 1.06


def largest_layer(trial: Trial) -> float:
    """Bytes per crop that autograd keeps inside the layer that keeps most."""
    model = model_of(trial)
    seen: list[tuple[torch.nn.Module, Tensor]] = []
    for layer in model.layers():
        layer.register_forward_pre_hook(lambda layer, args: seen.append((layer, args[0].detach())))
    with mixed_precision(trial.optim.precision, torch.device("cpu")):
        model(*inputs(model, 2 * UNIT, trial.crops.size_px))
        most = 0.0
        for layer, x in seen:
            total = []
            for crops in (UNIT, 2 * UNIT):
                with kept_tensors(model) as sizes:
                    layer.forward(x[:crops].clone().requires_grad_(x.is_floating_point()))
                total.append(sum(sizes))
            most = max(most, (total[1] - total[0]) / UNIT)
    return most


@pytest.mark.parametrize(("optimizer", "bytes_each"), [("adamw", 16), ("lion", 12)])
def test_state_is_weights_gradients_and_moments(optimizer: str, bytes_each: int):
    trial = trial_of("mae", "nano/8")
    trial = dataclasses.replace(trial, optim=dataclasses.replace(trial.optim, name=optimizer))
    model = model_of(trial)
    from phenoscale.optim import build_optimizer

    built = build_optimizer(model, trial.optim)
    model(*inputs(model, 2, 64)).backward()
    built.step()
    held = [p for p in model.parameters()] + [p.grad for p in model.parameters()]
    held += [t for s in built.state.values() for t in s.values() if torch.is_tensor(t) and t.ndim]
    assert gpus.state_bytes(trial, CHANNELS, CLASSES) == sum(t.nbytes for t in held)
    parameters = flops.model_parameters(trial, CHANNELS, CLASSES)
    assert gpus.state_bytes(trial, CHANNELS, CLASSES) == bytes_each * parameters


def of_the_zoo(name: str) -> System:
    return next(system for system in ZOO if system.name == name)


@pytest.mark.parametrize(
    ("name", "crops", "expected"),
    [
        ("MAE-S/16", 32, (1, "ddp")),
        ("MAE-L/8+", 64, (1, "ddp")),
        ("MAE-G/8+", 32, (2, "fsdp")),
        ("MAE-G/8+", 4, (1, "ddp")),
    ],
)
def test_gpus_of_the_papers_models(name: str, crops: int, expected: tuple[int, str]):
    trial = of_the_zoo(name).trial()
    assert gpus.gpus_needed(trial, CHANNELS, CLASSES, crops_per_gpu=crops) == expected


def test_the_number_is_the_smallest_that_fits():
    trial = of_the_zoo("MAE-G/8+").trial()
    trial = dataclasses.replace(trial, optim=dataclasses.replace(trial.optim, name="adamw"))
    room = gpus.GPU_BYTES * (1 - gpus.RESERVE)
    for crops in range(1, 50):
        try:
            number, how = gpus.gpus_needed(trial, 6, 50, crops_per_gpu=crops)
        except ValueError:
            break

        def needed(gpus_: int, strategy: str, crops: int = crops) -> float:
            return gpus.gpu_bytes(trial, 6, 50, crops=crops, gpus=gpus_, strategy=strategy)

        assert needed(number, how) <= room
        if how == "fsdp":
            assert needed(1, "ddp") > room
            assert number == 2 or needed(number - 1, "fsdp") > room
    assert 35 < crops < 45, "the last ones need many GPUs, and then none suffice"


def test_what_no_number_of_gpus_holds_is_refused_and_recomputation_helps():
    trial = of_the_zoo("MAE-G/8+").trial()
    with pytest.raises(ValueError, match="Give fewer crops per GPU, or placement.recompute"):
        gpus.gpus_needed(trial, CHANNELS, CLASSES, crops_per_gpu=128)
    again = dataclasses.replace(trial, placement=Placement(recompute=True))
    number, how = gpus.gpus_needed(again, CHANNELS, CLASSES, crops_per_gpu=128)
    assert number <= 2 and how in ("ddp", "fsdp")


def test_baselines_take_nothing():
    untrained = dataclasses.replace(
        TINY, objective=Objective(name="untrained"), crops=Crops(size_px=64, passes=0)
    )
    intensity = dataclasses.replace(
        untrained, objective=Objective(name="intensity"), backbone=NO_BACKBONE
    )
    for trial in (untrained, intensity):
        assert gpus.activation_bytes(trial, 6, 50) == gpus.state_bytes(trial, 6, 50) == 0
