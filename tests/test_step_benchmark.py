"""The step benchmark: the reference against the paper and ours, sizes of peers, a tiny run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import step, step_peers
from benchmarks.step_cases import CASES, Case, EnoughError, StepCost, Window
from benchmarks.step_figures import figures_of
from phenoscale.backbones import vision_transformer
from phenoscale.config import Objective
from phenoscale.flops import model_parameters, training_flops
from phenoscale.models.mae import MaskedAutoencoder

TINY = Case(name="tiny", backbone="nano/8", size_px=16, batch=4, channels=2, mask_ratio=0.5)
TINY_CA = dataclasses.replace(TINY, name="tiny-ca", objective="ca_mae")
CPU = torch.device("cpu")
RUN = """
import sys
for absent in ("ray", "pyarrow", "pandas", "mlflow", "transformers"):
    sys.modules[absent] = None
from benchmarks import step
from benchmarks.step_cases import Case
step.CASES["tiny"] = Case(
    name="tiny", backbone="nano/8", size_px=16, batch=4, channels=2, mask_ratio=0.5
)
step.matmul_peak = lambda device, precision: 1e12
step.main()
"""


def test_the_reference_has_the_loss_of_the_paper():
    model = step_peers.reference(TINY).eval()
    crops = TINY.images()[0]
    noise = np.random.default_rng(1).random((TINY.batch, 4)).astype(np.float32)
    x = crops.astype(np.float64)
    x = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
    with torch.no_grad():
        predicted, mask = model.reconstruct(torch.from_numpy(x).float(), torch.from_numpy(noise))
        loss = model(torch.from_numpy(crops), torch.from_numpy(noise))
    errors = []
    for b in range(TINY.batch):
        masked = set(np.argsort(noise[b])[2:].tolist())
        assert set(mask[b].nonzero().flatten().tolist()) == masked
        for patch in masked:
            row, column = divmod(patch, 2)
            target = x[b, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            errors.append(np.mean((predicted[b, patch].numpy() - target.ravel()) ** 2))
    assert len(errors) == 2 * TINY.batch
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_reference_sees_no_masked_pixel():
    model = step_peers.reference(TINY).eval()
    images = torch.randn(1, 2, 16, 16)
    noise = torch.tensor([[0.1, 0.9, 0.8, 0.2]])  # keeps the upper left and the lower right
    other = images.clone()
    other[:, :, :8, 8:] += 1
    kept = images.clone()
    kept[:, :, 8:, 8:] += 1
    with torch.no_grad():
        first, same, different = (model.reconstruct(x, noise)[0] for x in (images, other, kept))
    assert torch.equal(first, same)
    assert not torch.allclose(first, different)


def test_the_reference_has_our_loss_where_the_encoders_have_no_blocks():
    # The blocks of the encoders differ (ours are parallel ones), all else takes the same weights.
    shape = dataclasses.replace(vision_transformer("nano/8"), depth=0)
    objective = Objective(name="mae", mask_ratio=0.75)
    ours = MaskedAutoencoder(shape, objective, channels=["a", "b"], size_px=32)
    theirs = step_peers.ReferenceMAE(shape, channels=2, size_px=32, mask_ratio=0.75)
    projection, embed = ours.encoder.projection, theirs.patch_embed
    with torch.no_grad():
        embed.weight.copy_(projection.weight.view_as(embed.weight))
        embed.bias.copy_(projection.bias)
        theirs.class_token.copy_(ours.encoder.class_token.view(1, 1, -1))
        theirs.mask_token.copy_(ours.mask_token.view(1, 1, -1))
    for mine, other in (
        (ours.encoder.norm, theirs.norm),
        (ours.to_decoder, theirs.decoder_embed),
        (ours.decoder, theirs.decoder_blocks),
        (ours.norm, theirs.decoder_norm),
        (ours.to_pixels, theirs.predict),
    ):
        other.load_state_dict(mine.state_dict())
    crops = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (3, 2, 32, 32), np.uint8))
    draws = torch.rand(3, ours.draws)
    labels = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        torch.testing.assert_close(ours(crops, labels, draws), theirs(crops, draws))


@pytest.mark.parametrize("name", CASES)
def test_peers_have_our_size(name: str):
    case = CASES[name]
    ours = model_parameters(case.trial("fp32"), case.channels, 1)
    for peer in peers_of(case):
        theirs = sum(p.numel() for p in peer.parameters() if p.requires_grad)
        assert theirs == pytest.approx(ours, rel=0.02), type(peer)


def peers_of(case: Case) -> list[nn.Module]:
    """The peers of a case that this machine has, without memory for their weights."""
    with torch.device("meta"):
        if case.objective == "ca_mae":
            return [step_peers.ChannelLoop(case)]
        peers = [step_peers.reference(case)]
        if step_peers.has_transformers():
            peers.append(step_peers.HuggingFaceMAE(case, "sdpa"))
    return peers


@pytest.mark.parametrize("case", [TINY, TINY_CA], ids=lambda case: case.name)
def test_every_eager_contender_trains(case: Case):
    found = step.contenders(case.objective, ["fp32", "bf16"], threads=1, eager=True)
    costs = step.compete(case, found, 1, CPU)
    assert set(costs) == {c.name for c in found} and found[0].ours
    for runs in costs.values():
        assert [run.crops for run in runs] == [case.batch * case.steps]
        assert runs[0].wall_s > 0 and runs[0].peak_gib is None


def test_the_window_times_the_steps_after_the_warm_up():
    window, model = Window(TINY, TINY.images(), CPU), nn.Identity()
    window.watch(model)
    calls = 0
    with pytest.raises(EnoughError):
        for batch in list(window.batches(0, window.num_steps)):  # however far ahead they are
            time.sleep(0.05 if calls < TINY.warmup else 0.01)
            model(batch["crops"])
            calls += 1
    assert calls == TINY.warmup + TINY.steps
    assert window.cost().crops == TINY.batch * TINY.steps
    assert 0.01 * TINY.steps <= window.cost().wall_s < 0.05 * TINY.steps


def test_the_fastest_of_alternatives_and_the_batch_that_fits_are_chosen():
    def takes(wall_s: float, fits: int = 8):
        def run(case: Case, window: Window, device: torch.device) -> None:
            if case.batch > fits:
                raise torch.OutOfMemoryError
            model = nn.Identity()
            window.watch(model)
            for batch in window.batches(0, 100):
                time.sleep(wall_s)
                model(batch["crops"])

        return run

    found = [
        step.Contender("phenoscale, fp32", "fp32", takes(0.0, fits=4)),
        step.Contender("slow, fp32", "fp32", takes(0.01), one_of="peer"),
        step.Contender("fast, fp32", "fp32", takes(0.0, fits=2), one_of="peer"),
    ]
    case, kept = step.chosen(TINY, found, CPU)
    assert case.batch == 2
    assert [c.name for c in kept] == ["phenoscale, fp32", "fast, fp32"]


def test_ratios_are_of_rounds_and_goals_go_to_the_fastest_of_ours():
    seconds = {
        "phenoscale, fp32": (9.0, 9.0, 9.0),
        "phenoscale compiled, bf16": (1.0, 2.0, 4.0),
        "reference MAE, fp32": (5.0, 4.0, 12.0),
        "reference MAE, bf16": (2.0, 3.0, 4.0),
    }
    costs = {name: [StepCost(10, s, 2 * s) for s in runs] for name, runs in seconds.items()}
    goals = {"reference MAE, fp32": 2.5, "best peer": 1.5, "peak": 35.0}
    flops = training_flops(TINY.trial("fp32"), TINY.channels, 1, 1)
    peaks = {"fp32": 10 * flops, "bf16": 20 * flops}
    found = {f["name"].removeprefix("tiny | "): f for f in figures_of(TINY, costs, peaks, goals)}
    best = "phenoscale compiled, bf16"
    assert found[f"{best} | rate"]["value"] == 5
    assert found[f"{best} | wall"]["value"] == 200
    assert found[f"{best} | CPU"]["value"] == 400
    assert found[f"{best} | utilization"]["value"] == pytest.approx(25)
    ratios = {
        f"{best} / reference MAE, fp32": (3.0, 2.5, True),
        f"{best} / reference MAE, fp32, lowest": (2.0, None, None),
        f"{best} / reference MAE, fp32, highest": (5.0, None, None),
        f"{best} / reference MAE, bf16": (1.5, None, None),
        f"{best} / best peer (reference MAE, bf16)": (1.5, 1.5, True),
        f"{best} | utilization": (pytest.approx(25), 35.0, False),
    }
    for name, expected in ratios.items():
        assert (found[name]["value"], found[name]["goal"], found[name]["holds"]) == expected
    assert found["phenoscale, fp32 | utilization"]["goal"] is None


def test_it_runs_without_ray_arrow_and_peers(tmp_path: Path):
    path = tmp_path / "step.json"
    options = ["--case", "tiny", "--rounds", "1", "--eager", "--device", "cpu", "--threads", "1"]
    command = [sys.executable, "-c", RUN, *options, "--precision", "fp32", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    names = [f["name"] for f in found["figures"]]
    for name in ("phenoscale, fp32 | rate", "reference MAE, fp32 | utilization"):
        assert f"tiny | {name}" in names
    assert "tiny | phenoscale, fp32 / reference MAE, fp32" in names
    assert "transformers ViTMAE: not installed" in found["notes"]
    assert any("1 threads; torch" in note for note in found["notes"])
    assert "tiny: 2 channels, 4 crops per step" in done.stdout
