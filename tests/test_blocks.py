"""Our blocks against timm's, whose weights they load, and what asks for no timm."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from timm.models import vision_transformer as timms
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phenoscale.models.blocks import Block, Mlp, ParallelBlock, attend, positions

ROOT = Path(__file__).parents[1]
NORM = functools.partial(nn.LayerNorm, eps=1e-6)


def timms_parallel(width: int, heads: int, scale: float | None) -> nn.Module:
    return timms.ParallelScalingBlock(
        width, heads, 3.0, qk_norm=True, init_values=scale, norm_layer=NORM
    )


PAIRS = {
    "parallel": (lambda: ParallelBlock(48, 3, 144, None), lambda: timms_parallel(48, 3, None)),
    "scaled": (lambda: ParallelBlock(64, 2, 192, 0.1), lambda: timms_parallel(64, 2, 0.1)),
    "plain": (lambda: Block(48, 3), lambda: timms.Block(48, 3, qkv_bias=True, norm_layer=NORM)),
    "mlp": (lambda: Mlp(48, 192), lambda: timm.layers.Mlp(48, 192)),
}
EVERY = pytest.mark.parametrize("name", PAIRS)


def pair_of(name: str) -> tuple[nn.Module, nn.Module]:
    """Ours and timm's, of the same random weights, none of which is a constant."""
    torch.manual_seed(0)
    ours, theirs = (make() for make in PAIRS[name])
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def tokens_of(module: nn.Module, count: int = 17) -> Tensor:
    width = next(p.shape[-1] for n, p in module.named_parameters() if p.ndim == 2)
    return torch.randn(4, count, width, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and of each weight by name."""
    x = x.clone().requires_grad_()
    y = module(x)
    wanted = dict(sorted(module.named_parameters()))
    return [y, *torch.autograd.grad(y.sin().mean(), [x, *wanted.values()])]


@EVERY
@pytest.mark.parametrize("count", [17, 150])
def test_a_block_is_timms(name: str, count: int):
    """On both sides of the number of tokens at which attention changes its kernel."""
    ours, theirs = pair_of(name)
    x = tokens_of(ours, count)
    for one, two in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)


@EVERY
def test_a_block_begins_as_timms(name: str):
    """Names, shapes, order and random draws: an old checkpoint loads, and a seed means the same."""
    states = []
    for make in PAIRS[name]:
        torch.manual_seed(0)
        states.append(make().named_parameters())
    for (ours, one), (theirs, two) in zip(*states, strict=True):
        assert ours == theirs and torch.equal(one, two)


@pytest.mark.parametrize(("side", "width"), [(1, 16), (3, 16), (8, 32), (14, 384)])
def test_positions_are_timms(side: int, width: int):
    expected = timm.layers.build_sincos2d_pos_embed([side, side], width, interleave_sin_cos=False)
    torch.testing.assert_close(positions(side, width), expected, atol=0, rtol=0)


def test_both_ways_of_attending_agree():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 16, requires_grad=True) for n in (5, 9, 9))
    explicit = attend(q, k, v)
    fused = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(explicit, fused, atol=1e-6, rtol=1e-5)
    ones = [torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (explicit, fused)]
    for one, two in zip(*ones, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, False),
        ({"count": 129}, True),
        ({"grad": False}, True),
        ({"dtype": torch.bfloat16}, True),
        ({"device": "meta"}, True),
    ],
)
def test_attention_is_fused_but_where_few_tokens_are_trained_on_a_cpu(
    options: dict, fused: bool, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a: (calls.append(a), kernel(*a))[1]
    )
    grad = options.pop("grad", True)
    shape = (1, 2, options.pop("count", 128), 4)
    attend(*(torch.zeros(shape, requires_grad=grad, **options) for _ in range(3)))
    assert bool(calls) == fused


@EVERY
def test_blocks_are_recomputed_bit_for_bit(name: str):
    block, _ = pair_of(name)
    x = tokens_of(block)
    kept = gradients(block, x)
    block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(block, x), strict=True))


@EVERY
def test_blocks_take_autocast(name: str):
    block, theirs = pair_of(name)
    x = tokens_of(block)
    with torch.autocast("cpu", torch.bfloat16):
        one, two = block(x), theirs(x)
    torch.testing.assert_close(one.float(), two.float(), atol=0.05, rtol=0.05)


def test_blocks_compile():
    """Without a break of the graph, in training and outside of it."""
    block, _ = pair_of("scaled")
    x = tokens_of(block)
    expected = gradients(block, x)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    found = gradients(compiled, x)
    torch.testing.assert_close(found[0], expected[0])
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))


ALONE = """
import sys
from phenoscale.config import Crops, Objective, Optim, Trial
from phenoscale.models import panel
from phenoscale.models.build import build_encoder, build_model
names = ("DNA", "ER")
for objective, backbone in [("mae", "nano/8"), ("ca_mae", "nano/8"), ("wsl", "nano/8"),
                            ("munet", "MU-net-nano")]:
    trial = Trial(objective=Objective(name=objective), backbone=backbone, crops=Crops(size_px=16),
                  optim=Optim(lr=1e-3))
    build_model(trial, channels=names, num_classes=3)
    build_encoder(trial, channels=names)
assert "timm" not in sys.modules
"""


def test_transformers_and_unets_need_no_timm():
    """Its import takes 2.5 s, in every worker."""
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
