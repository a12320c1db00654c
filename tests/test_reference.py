"""Reference encoders: fed as stated, known by their weights, and scored as any line of a study."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from phenoscale.bill import ScreenSize, bill
from phenoscale.config import Crops, Objective, Reference, Study, Trial
from phenoscale.export import load_encoder
from phenoscale.export_trial import export_encoder
from phenoscale.fit import fit_here
from phenoscale.gpus import gpu_bytes
from phenoscale.models.timm_encoder import TimmEncoder, rescale, views_of
from phenoscale.reference import load_model, reference_encoder, reference_trial
from phenoscale.reports.figures import make_figures
from phenoscale.results import read_row
from phenoscale.run import run_trial
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import StudyFiles
from tests.fabricated import make_baseline, make_row
from tests.tiny import CHANNELS, of

NAMES = ("DNA", "ER", "RNA", "AGP", "Mito")
CROPS = Crops(size_px=32, passes=2, global_batch_size=32, held_out=("batch2/plate2",))
BLANK = dataclasses.replace(CROPS, passes=0)
MAE = dataclasses.replace(of("mae"), crops=dataclasses.replace(CROPS, passes=1))


def silent(update: dict[str, object]) -> None:
    """A trial that nobody listens to."""


def crops_of(channels: int, count: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8))


def weights_file(path: Path, name: str = "test_resnet", seed: int = 3, **options) -> Path:
    """A file of weights that no seed of `load_model` used here gives."""
    torch.manual_seed(seed)
    state = timm.create_model(name, **options).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        state = {f"module.{key}": x for key, x in state.items()}
        torch.save({"state_dict": state, "epoch": 4}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_file(tmp_path_factory.mktemp("weights") / "resnet.safetensors")


@pytest.fixture(scope="module")
def files(tiny_screen: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return StudyFiles(
        study_dir=tmp_path_factory.mktemp("references"),
        index=tiny_screen / "index.parquet",
        relationships=(str(tiny_screen / "relationships.csv"),),
    )


@pytest.fixture(scope="module")
def exported(files: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained encoder of the tiny screen; its row lies in `files`."""
    fit = fit_here(lambda cutter, first, last: cutter.stream(first, last))
    run_trial(MAE, study(MAE), files, fit=fit, tell=silent)
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    export_encoder(files.trial_dir(MAE), folder)
    return folder


def study(*trials: Trial, **options) -> Study:
    return Study(name="s", question="?", trials=trials, bootstrap_rounds=40, **options)


def run(trial: Trial, files: StudyFiles, **options):
    return run_trial(
        trial, study(trial, **options), files, fit=lambda *_: pytest.fail("it trained"), tell=silent
    )


def test_views_are_in_the_order_of_names_and_filled_by_repeating():
    assert views_of(("b", "a"), "one_by_one") == [("a",) * 3, ("b",) * 3]
    assert views_of("edcba", "three_by_three") == [("a", "b", "c"), ("d", "e", "d")]
    assert views_of("dcba", "three_by_three") == [("a", "b", "c"), ("d", "d", "d")]
    assert views_of("cab", "three_by_three") == [("a", "b", "c")]


def test_crops_are_rescaled_between_percentiles_whatever_gain_and_offset():
    crops = crops_of(2, side=64) // 4
    found = rescale(crops).numpy()
    pixels = crops.flatten(2).numpy()
    low = np.quantile(pixels, 0.001, axis=2, method="lower")[..., None, None]
    high = np.quantile(pixels, 0.999, axis=2, method="higher")[..., None, None]
    np.testing.assert_allclose(
        found, np.clip((crops.numpy() - low) / (high - low), 0, 1), rtol=1e-6
    )
    torch.testing.assert_close(rescale(3 * crops + 20), torch.from_numpy(found))
    spotted = crops.clone()
    spotted[0, 0, 5, 5] = 255
    assert np.abs(rescale(spotted).numpy() - found).max() == pytest.approx(1, abs=1)
    assert np.median(rescale(spotted)[0, 0]) == pytest.approx(np.median(found[0, 0]), abs=0.02)
    assert rescale(torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)).abs().max() == 0


@pytest.mark.parametrize("feed", ["one_by_one", "three_by_three"])
def test_embeddings_are_those_of_timm_on_each_view(weights: Path, feed: str):
    crops = crops_of(5)
    model = load_model("timm:test_resnet", channels=NAMES, weights=weights, feed=feed)
    found = model.encoder.read(crops, NAMES)["pooled"]
    torch.manual_seed(3)
    plain = timm.create_model("test_resnet", num_classes=0).eval()
    plain.load_state_dict({k: x for k, x in load_file(weights).items() if not k.startswith("fc.")})
    normalized = (rescale(crops) - 0.5) / 0.5  # of all three colours, in this model's data config
    with torch.inference_mode():
        wanted = [
            plain(normalized[:, [NAMES.index(name) for name in view]])
            for view in views_of(NAMES, feed)
        ]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))
    order = [4, 2, 0, 1, 3]
    names = [NAMES[i] for i in order]
    torch.testing.assert_close(model.encoder.read(crops[:, order], names)["pooled"], found)
    assert (model.facts.feed, model.facts.width) == (feed, found.shape[1])
    assert not any(p.requires_grad for p in model.encoder.parameters())
    with pytest.raises(ValueError, match="takes exactly"):
        model.encoder.read(crops[:, :4], NAMES[:4])


def test_colours_are_averaged_in_mean_and_deviation():
    encoder = load_model("timm:resnet18", channels=CHANNELS, weights="random").encoder
    assert isinstance(encoder, TimmEncoder)
    assert float(encoder.mean) == pytest.approx(np.mean([0.485, 0.456, 0.406]))
    assert float(encoder.sd) == pytest.approx(np.mean([0.229, 0.224, 0.225]))


def test_the_digest_is_of_the_weights_not_of_their_file(weights: Path, tmp_path: Path):
    """A checkpoint with module prefix, epoch and classifier holds the same weights."""
    checkpoint = weights_file(tmp_path / "other name.pth")
    bare = weights_file(tmp_path / "bare.safetensors", num_classes=0)
    other = weights_file(tmp_path / "other.safetensors", seed=4)
    load = {"spec": "timm:test_resnet", "channels": CHANNELS}
    models = [load_model(**load, weights=path) for path in (weights, checkpoint)]
    assert models[0].facts == models[1].facts and len(models[0].facts.digest) == 64
    crops = crops_of(2)
    one, two = (m.encoder.read(crops, CHANNELS)["pooled"] for m in models)
    assert torch.equal(one, two)
    digests = [load_model(**load, weights=path).facts.digest for path in (other, bare)]
    seeds = [load_model(**load, weights="random", seed=seed).facts.digest for seed in (0, 1, 0)]
    assert len({models[0].facts.digest, digests[0], *seeds[:2]}) == 4 and seeds[0] == seeds[2]
    trial = reference_trial("timm:test_resnet", CROPS, channels=CHANNELS, weights=weights)
    assert trial.reference and trial.reference.weights == models[0].facts.digest


def test_a_transformer_of_a_fixed_size_gets_resized_crops_or_another_size():
    crops = crops_of(2)
    load = {"spec": "timm:test_vit", "channels": CHANNELS, "weights": "random"}
    own, small = load_model(**load), load_model(**load, size_px=32)
    assert (own.facts.size_px, small.facts.size_px) == (160, 32)
    assert load_model("timm:test_resnet", channels=CHANNELS, weights="random").facts.size_px is None
    a, b = (model.encoder.read(crops, CHANNELS)["pooled"] for model in (own, small))
    assert a.shape == b.shape == (3, 128) and not torch.allclose(a, b)
    blocks = small.encoder.read(crops, CHANNELS, every_block=True)
    assert torch.equal(blocks["pooled"], b) and blocks["block_6"].shape == (3, 128)
    with pytest.raises(ValueError, match="cannot read crops of 40 px"):
        load_model(**load, size_px=40)


def test_what_cannot_be_loaded_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(spec: str = "timm:test_resnet", **options):
        return load_model(spec, channels=CHANNELS, **options)

    with pytest.raises(ValueError, match=r"no model 'resnet81'; near are .*resnet"):
        load("timm:resnet81", weights="random")
    with pytest.raises(ValueError, match="no reference 'resnet18': give timm:NAME"):
        load("resnet18")
    with pytest.raises(ValueError, match="feed is 'together'"):
        load(weights="random", feed="together")
    with pytest.raises(ValueError, match="There is no file"):
        load(weights=tmp_path / "none.pth")
    state = load_file(weights)
    for change, told in (
        ({k: x for k, x in state.items() if k != "conv1.0.weight"}, "1 missing .conv1.0.weight"),
        (state | {"more": torch.ones(2)}, "1 unknown .more"),
        (state | {"bn1.weight": torch.ones(7)}, "1 of another shape .bn1.weight"),
    ):
        save_file(change, tmp_path / "changed.safetensors")
        with pytest.raises(ValueError, match=told):
            load(weights=tmp_path / "changed.safetensors")
    for name in ("noise.safetensors", "noise.pth"):
        (tmp_path / name).write_bytes(b"no weights at all, but some bytes")
        with pytest.raises(ValueError, match="cannot be read as weights"):
            load(weights=tmp_path / name)
    torch.save(timm.create_model("test_resnet"), tmp_path / "code.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load(weights=tmp_path / "code.pth")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="cannot be had from the model hub.*Give a file"):
        load()


def test_an_exported_encoder_has_the_same_attributes(exported: Path, tiny_screen: Path):
    names = load_encoder(exported).facts.channels
    model, plain = load_model(str(exported), channels=names[::-1]), load_encoder(exported)
    crops = crops_of(len(names))
    torch.testing.assert_close(
        model.encoder.read(crops, names)[model.facts.readout].numpy(),
        plain.embed(crops, channels=names),
    )
    facts = model.facts
    assert (facts.name, facts.digest) == ("exported:mae nano/8", plain.facts.weights_sha256)
    assert (facts.size_px, facts.feed, facts.width) == (32, "together", 32)
    with pytest.raises(ValueError, match="feed, size_px given"):
        load_model(str(exported), channels=names, feed="one_by_one", size_px=32)
    with pytest.raises(ValueError, match="takes exactly the channels"):
        load_model(str(exported), channels=names[:3])
    with pytest.raises(ValueError, match="trained on crops of 32 px, the study has crops of 64"):
        reference_trial(str(exported), dataclasses.replace(CROPS, size_px=64), channels=names)


def test_an_exported_encoder_scores_as_in_its_own_study(exported: Path, files: StudyFiles):
    names = load_encoder(exported).facts.channels
    trial = reference_trial(str(exported), CROPS, channels=names)
    row, own = run(trial, files), read_row(files.trial_dir(MAE))
    assert (row.score, row.score_low, row.score_high) == (own.score, own.score_low, own.score_high)
    assert row.score_by_readout == own.score_by_readout
    assert row.num_parameters == own.num_parameters == trial.reference.parameters
    assert row.backbone == f"exported mae nano/8, weights {trial.reference.weights[:8]}"
    assert (row.objective, row.training_flops, row.train_loss) == ("reference", 0.0, None)


def test_a_timm_model_is_a_line_of_a_study(files: StudyFiles, tmp_path: Path):
    names = ScreenIndex.open(files.index).channels
    path = weights_file(tmp_path / "vit.safetensors", "test_vit")
    fed = {"feed": "three_by_three", "size_px": 32}
    random, loaded = (
        reference_trial("timm:test_vit", CROPS, channels=names, weights=which, **fed)
        for which in ("random", path)
    )
    one, two = run(random, files, every_block=True), run(loaded, files)
    assert one.backbone == "timm test_vit, random weights, three by three, at 32 px"
    digest = loaded.reference.weights[:8]
    assert two.backbone == f"timm test_vit, weights {digest}, three by three, at 32 px"
    assert (two.objective, two.readout, two.is_baseline) == ("reference", "pooled", True)
    assert (two.steps, two.training_flops, two.crops_seen, two.data_fraction) == (0, 0, 0, 0)
    assert two.num_parameters == loaded.reference.parameters
    assert two.num_parameters == sum(
        p.numel() for p in timm.create_model("test_vit", num_classes=0).parameters()
    )
    assert set(one.score_by_readout) == {"pooled"} | {f"block_{n}" for n in range(1, 7)}
    assert one.score != two.score and 0 <= two.score <= 1
    assert read_row(files.trial_dir(loaded)) == two


def test_other_weights_at_the_same_path_are_refused(tmp_path: Path):
    path = weights_file(tmp_path / "weights.pth")
    trial = reference_trial("timm:test_resnet", CROPS, channels=CHANNELS, weights=path)
    reference_encoder(trial, channels=CHANNELS)
    weights_file(path, seed=5)
    with pytest.raises(ValueError, match="was made with"):
        reference_encoder(trial, channels=CHANNELS)


def test_the_id_holds_weights_and_feed_and_no_path(weights: Path, tmp_path: Path):
    def trial(**options) -> Trial:
        given = {"weights": weights, **options}
        return reference_trial("timm:test_resnet", CROPS, channels=CHANNELS, **given)

    one = trial()
    moved = trial(weights=weights_file(tmp_path / "moved.pth"))
    assert one.id == moved.id and one.placement.weights != moved.placement.weights
    assert one.id.startswith("reference-timm_test_resnet-s0-")
    others = [trial(feed="three_by_three"), trial(size_px=64), trial(weights="random")]
    assert len({one.id, *(t.id for t in others)}) == 4
    assert str(weights.parent) not in one.id
    counted = dataclasses.replace(one.reference, parameters=1, crop_flops=1)
    assert dataclasses.replace(one, reference=counted).id == one.id
    assert Trial.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    assert others[0].shown_backbone.endswith(", three by three")
    assert others[1].shown_backbone.endswith(", at 64 px")


def test_a_reference_is_validated():
    good = Reference(weights="random", feed="one_by_one", parameters=1, crop_flops=1)
    trial = dataclasses.replace(
        of("intensity", "none"),
        objective=Objective(name="reference"),
        backbone="timm:x",
        reference=good,
    )
    for change, told in (
        ({"reference": None}, "says which weights"),
        ({"objective": Objective(name="untrained"), "backbone": "nano/8"}, "says which weights"),
        ({"backbone": "none"}, "the reference's name"),
        ({"crops": dataclasses.replace(BLANK, passes=1)}, "a baseline"),
    ):
        with pytest.raises(ValueError, match=told):
            dataclasses.replace(trial, **change)
    for change in ({"weights": "abc"}, {"weights": "Z" * 64}, {"feed": "four"}, {"input_px": 0}):
        with pytest.raises(ValueError, match="but must be"):
            dataclasses.replace(good, **change)


def test_the_bill_counts_embedding_and_no_training():
    """resnet18 at 224 px has 1.82 G multiply-adds (3.64 GFLOPs) and 11.18 M parameters."""
    crops = dataclasses.replace(CROPS, size_px=224)
    trial = reference_trial("timm:resnet18", crops, channels=CHANNELS, weights="random")
    size = ScreenSize(
        wells=4, sites_per_well=2.0, total_sites=10, channels=2, classes=3, site_px=448
    )
    (line,) = bill(study(trial), size)
    assert (line.steps, line.training_flops, line.parameters) == (0, 0, 11_176_512)
    assert line.embedding_flops == pytest.approx(10 * 4 * 2 * 3.64e9, rel=0.01)
    assert gpu_bytes(trial, 2, 3, crops=1, gpus=1, strategy="ddp") > 0


def test_figures_name_the_reference():
    name = "timm resnet18, weights 1a2b3c4d"
    baseline = dataclasses.replace(make_baseline("reference", 0.3), backbone=name)
    figures = make_figures([make_row(), baseline], {}, {})
    shapes = figures["compute"][0]["layout"]["shapes"]
    assert [(s["name"], s["y0"]) for s in shapes if s["name"]] == [(f"reference {name}", 0.3)]
