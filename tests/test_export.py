"""Exported encoders: the same embeddings without the study, and nothing else under their name."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from phenoscale import backbones
from phenoscale.checkpoint import Checkpoints
from phenoscale.cli import app
from phenoscale.config import Trial
from phenoscale.embed import adapt_to_plate, embed_sites
from phenoscale.export import load_encoder
from phenoscale.export_graph import GRAPH_FILE, ONNX_FILE, to_timm
from phenoscale.export_trial import export_encoder
from phenoscale.models.build import AnyEncoder, build_encoder, build_model
from phenoscale.models.densenet import ADAPTING_CROPS
from phenoscale.models.vit import standardize
from phenoscale.screens.index import ScreenIndex
from tests.fabricated import make_row
from tests.tiny import CHANNELS, CLASSES, TINY, TINY_WSL, of, record_of

KINDS = {
    "vision_transformer": TINY,
    "classifier": TINY_WSL,
    "channel_agnostic_transformer": of("ca_mae"),
    "unet": of("munet", "MU-net-nano"),
    "densenet": of("wsl", "DenseNet-nano"),
}
ROOT = Path(__file__).parents[1]


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Result) -> str:
    """The one line that a user sees who asked for something impossible."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def write_facts(folder: Path, trial: Trial, channels: tuple[str, ...] = CHANNELS) -> None:
    """What `fit.write_trial` leaves in a trial's folder."""
    folder.mkdir(parents=True)
    facts = {"channels": channels, "num_classes": CLASSES, "index_fingerprint": "f" * 64}
    (folder / "trial.json").write_text(json.dumps(trial.as_dict()))
    (folder / "model.json").write_text(json.dumps(facts))


def make_trial(folder: Path, trial: Trial, channels: tuple[str, ...] = CHANNELS) -> AnyEncoder:
    """A trial's folder after three updates; its encoder, which is no longer that of the seed."""
    write_facts(folder, trial, channels)
    model = build_model(trial, channels=channels, num_classes=CLASSES)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for x in model.parameters():
            x += 0.05 * torch.randn(x.shape, generator=noise)
    (folder / "checkpoints" / "step_00000004-killed").mkdir(parents=True)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(model, torch.optim.AdamW(model.parameters()), record_of(3))
    return model.encoder.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[AnyEncoder, Path]]:
    """By kind, the encoder of a trial and the folder that it was exported to; read it only."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, tuple[AnyEncoder, Path]] = {}

    def get(kind: str) -> tuple[AnyEncoder, Path]:
        if kind not in made:
            encoder = make_trial(folder / f"{kind}-trial", KINDS[kind])
            export_encoder(folder / f"{kind}-trial", folder / kind)
            made[kind] = encoder, folder / kind
        return made[kind]

    return get


def test_checkpoints_may_lie_elsewhere(tmp_path: Path):
    """As with `StudyFiles.checkpoints`: a folder, or a URL, of all trials of a study."""
    encoder = make_trial(tmp_path / "trials" / "one", TINY)
    (tmp_path / "kept").mkdir()
    (tmp_path / "trials" / "one" / "checkpoints").rename(tmp_path / "kept" / "one")
    options = ["--checkpoints", str(tmp_path / "kept")]
    words = [str(tmp_path / "trials" / "one"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, ["export", *words]).exit_code == 2
    assert CliRunner().invoke(app, ["export", *words, *options]).exit_code == 0
    loaded = load_encoder(tmp_path / "out")
    assert torch.equal(loaded.encoder.class_token, encoder.class_token)


@pytest.fixture
def copy(exported, tmp_path: Path) -> Path:
    """An exported transformer that a test may spoil."""
    return shutil.copytree(exported("vision_transformer")[1], tmp_path / "copy")


def crops_of(count: int = 5, channels: int = len(CHANNELS), size_px: int = 16) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, channels, size_px, size_px), dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_encoder_embeds_as_the_trained_one(exported, kind: str):
    encoder, folder = exported(kind)
    loaded, crops = load_encoder(folder), crops_of()
    if kind == "densenet":
        encoder.adapt(torch.from_numpy(crops), CHANNELS)
    with torch.no_grad():
        expected = encoder.read(torch.from_numpy(crops), CHANNELS, every_block=True)
    for readout, wanted in expected.items():
        got = loaded.embed(crops, channels=CHANNELS, readout=readout)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted.numpy())
    assert loaded.facts.kind == ("vision_transformer" if kind == "classifier" else kind)
    assert loaded.facts.width == expected["patch_mean"].shape[1]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "not all can be read alike"
    plain = loaded.embed(torch.from_numpy(crops), channels=list(CHANNELS))
    np.testing.assert_array_equal(plain, expected["patch_mean"].numpy())
    untrained = build_encoder(KINDS[kind], channels=CHANNELS).state_dict()
    trained = loaded.encoder.state_dict()
    assert all(not torch.equal(untrained[name], trained[name]) for name in trained)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_go_by_name(exported, kind: str):
    loaded, crops = load_encoder(exported(kind)[1]), crops_of()
    forth = loaded.embed(crops, channels=CHANNELS)
    back = loaded.embed(crops[:, ::-1], channels=CHANNELS[::-1])
    np.testing.assert_allclose(forth, back, atol=1e-6)
    if kind == "channel_agnostic_transformer":
        one = loaded.embed(crops[:, 1:], channels=["a stain of its own"])
        with torch.no_grad():
            read = exported(kind)[0].read(torch.from_numpy(crops[:, 1:]), ["Actin"])
        np.testing.assert_array_equal(one, read["patch_mean"].numpy())
    else:
        with pytest.raises(ValueError, match="takes exactly DNA, Actin, in any order"):
            loaded.embed(crops, channels=["DNA", "ER"])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing(exported, kind: str):
    """DenseNets included, whose statistics come from the whole call."""
    loaded, crops = load_encoder(exported(kind)[1]), crops_of(ADAPTING_CROPS + 37)
    whole = loaded.embed(crops, channels=CHANNELS, batch_size=1000)
    parts = loaded.embed(crops, channels=CHANNELS, batch_size=13)
    np.testing.assert_allclose(parts, whole, atol=2e-6)


def test_statistics_of_a_plate_are_those_of_a_study(exported):
    """As `embed.adapt_to_plate` takes them from sites that are one tile large."""
    encoder, folder = exported("densenet")
    crops = crops_of(100)
    adapt_to_plate(encoder, crops, 16, CHANNELS)
    expected = embed_sites(encoder, crops, 16, CHANNELS)
    got = load_encoder(folder).embed(crops, channels=CHANNELS, readout="patch_sd")
    np.testing.assert_allclose(got, expected["patch_sd"], atol=2e-6)


def test_blocks_by_number(exported):
    loaded, crops = load_encoder(exported("vision_transformer")[1]), crops_of()
    first = loaded.embed(crops, channels=CHANNELS, block=1)
    np.testing.assert_array_equal(first, loaded.embed(crops, channels=CHANNELS, readout="block_1"))
    assert not np.allclose(first, loaded.embed(crops, channels=CHANNELS, block=2))
    with pytest.raises(ValueError, match="no read-out 'block_3'; it has .*block_1, block_2"):
        loaded.embed(crops, channels=CHANNELS, block=3)
    with pytest.raises(ValueError, match="give one of them"):
        loaded.embed(crops, channels=CHANNELS, block=1, readout="patch_mean")
    unet = load_encoder(exported("unet")[1])
    with pytest.raises(ValueError, match="unet has no read-out 'class_token'; it has patch_mean"):
        unet.embed(crops, channels=CHANNELS, readout="class_token")


@pytest.mark.parametrize(
    ("crops", "given"),
    [
        (crops_of().astype(np.uint16), "uint16 of shape (5, 2, 16, 16)"),
        (torch.zeros(5, 2, 16, 16), "float32 of shape (5, 2, 16, 16)"),
        (crops_of(size_px=24), "uint8 of shape (5, 2, 24, 24)"),
        (crops_of()[0], "uint8 of shape (2, 16, 16)"),
        (crops_of()[:0], "uint8 of shape (0, 2, 16, 16)"),
        ([[1]], "list of shape ()"),
    ],
    ids=["16 bits", "float", "side", "one crop", "none", "list"],
)
def test_other_crops_are_refused(exported, crops, given: str):
    loaded = load_encoder(exported("vision_transformer")[1])
    with pytest.raises(ValueError) as caught:
        loaded.embed(crops, channels=CHANNELS)
    assert given in str(caught.value) and "(crops, channels, 16, 16)" in str(caught.value)


def test_an_array_may_be_read_only_and_the_global_generator_stays(exported):
    crops = crops_of()
    crops.setflags(write=False)
    state = torch.random.get_rng_state()
    load_encoder(exported("vision_transformer")[1]).embed(crops, channels=CHANNELS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_other_weights_are_refused(copy: Path):
    weights = bytearray((copy / "encoder.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "encoder.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        load_encoder(copy)
    (copy / "encoder.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing"):
        load_encoder(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2; this phenoscale reads version 1"),
        ({"channels": ["DNA"]}, "not those of a vision_transformer nano/8 of 1 channels and 16"),
        ({"kind": "channel_agnostic_transformer"}, "not those of a channel_agnostic_transformer"),
        ({"kind": "unet"}, "not those of a unet"),
        ({"size_px": "16"}, "size_px are missing, wrong"),
        ({"more": 1}, "more are missing, wrong or unknown"),
        ({"backbone": "nono/8"}, "no backbone 'nono/8'"),
    ],
)
def test_another_config_is_refused(copy: Path, changes: dict, message: str):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_encoder(copy)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_what_is_no_config_is_refused(copy: Path, text: str | None):
    (copy / "config.json").unlink() if text is None else (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is no exported encoder"):
        load_encoder(copy)


def test_a_changed_row_of_the_table_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch):
    row = backbones.vision_transformer("nano/8")
    decoder = dataclasses.replace(row.decoder, depth=7)
    monkeypatch.setitem(backbones.BACKBONES, "nano/8", dataclasses.replace(row, decoder=decoder))
    load_encoder(copy)  # an encoder has no decoder
    monkeypatch.setitem(backbones.BACKBONES, "nano/8", dataclasses.replace(row, heads=4))
    with pytest.raises(ValueError, match="'heads': 2.*'heads': 4.*the version that wrote it"):
        load_encoder(copy)


ALONE = """
import sys
absent = dict.fromkeys(["ray", "mlflow", "pyarrow", "pandas", "scipy", "sklearn", "typer"])
sys.modules.update(absent)  # an import of these fails
import numpy as np, torch
folder, crops = sys.argv[1], np.load(sys.argv[2])
ours = ["phenoscale", "timm", "safetensors"]
sys.modules.update(dict.fromkeys(ours))
one = torch.export.load(folder + "/encoder.pt2").module()(torch.from_numpy(crops)).numpy()
for name in ours:
    del sys.modules[name]
from phenoscale.export import load_encoder
two = load_encoder(folder).embed(crops, channels=["DNA", "Actin"])
assert not [name for name in absent if sys.modules[name]]
np.save(sys.argv[3], [one, two])
"""


def test_torch_suffices_for_graphs_and_with_timm_and_safetensors_for_all(tmp_path: Path):
    make_trial(tmp_path / "trial", TINY)
    export_encoder(tmp_path / "trial", tmp_path / "out", graphs=[GRAPH_FILE])
    np.save(tmp_path / "crops.npy", crops_of())
    files = [tmp_path / name for name in ("out", "crops.npy", "got.npy")]
    command = [sys.executable, "-c", ALONE, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    expected = load_encoder(tmp_path / "out").embed(crops_of(), channels=CHANNELS)
    of_graph, of_encoder = np.load(tmp_path / "got.npy")
    np.testing.assert_allclose(of_graph, expected, atol=1e-6)
    np.testing.assert_array_equal(of_encoder, expected)


@pytest.mark.parametrize(
    ("kind", "readout"),
    [("channel_agnostic_transformer", "block_1"), ("unet", "patch_mean")],
)
def test_a_graph_gives_the_same_for_any_number_of_crops(kind: str, readout: str, tmp_path: Path):
    make_trial(tmp_path / "trial", KINDS[kind])
    facts = export_encoder(
        tmp_path / "trial", tmp_path / "out", readout=readout, graphs=[GRAPH_FILE]
    )
    assert facts.graphs.keys() == {GRAPH_FILE} and facts.graphs[GRAPH_FILE] < 1e-6
    loaded = load_encoder(tmp_path / "out")
    assert loaded.facts.graphs == facts.graphs and loaded.facts.readout == readout
    expected = loaded.embed(crops_of(), channels=CHANNELS)
    graph = torch.export.load(tmp_path / "out" / GRAPH_FILE).module()
    for count in (1, 2, 5):
        got = graph(torch.from_numpy(crops_of()[:count]))
        np.testing.assert_allclose(got.numpy(), expected[:count], atol=1e-6)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs phenoscale[onnx]",
)
@pytest.mark.parametrize("kind", ["vision_transformer", "channel_agnostic_transformer", "unet"])
def test_onnx(kind: str, tmp_path: Path):
    import onnxruntime

    make_trial(tmp_path / "trial", KINDS[kind])
    facts = export_encoder(tmp_path / "trial", tmp_path / "out", graphs=[GRAPH_FILE, ONNX_FILE])
    assert max(facts.graphs.values()) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out" / ONNX_FILE)
    (got,) = session.run(["embedding"], {"crops": crops_of()})
    expected = load_encoder(tmp_path / "out").embed(crops_of(), channels=CHANNELS)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_onnx_asks_for_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_trial(tmp_path / "trial", TINY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx, onnxscript, onnxruntime.*phenoscale\[onnx\]"):
        export_encoder(tmp_path / "trial", tmp_path / "out", graphs=[ONNX_FILE])
    assert [path.name for path in tmp_path.iterdir()] == ["trial"]


def test_a_densenet_has_no_graph_and_nothing_is_left(tmp_path: Path):
    make_trial(tmp_path / "trial", KINDS["densenet"])
    line = refused(invoke("export", tmp_path / "trial", "--out", tmp_path / "out", "--graph"))
    assert "no fixed graph" in line and "statistics of each plate" in line
    assert [path.name for path in tmp_path.iterdir()] == ["trial"]


@pytest.mark.parametrize("name", ["nano/8", "S/16"])  # S/16 has a LayerScale
def test_timm_gives_the_same(name: str):
    trial = dataclasses.replace(
        TINY, backbone=name, crops=dataclasses.replace(TINY.crops, size_px=32)
    )
    encoder = build_encoder(trial, channels=CHANNELS).eval()
    crops = torch.from_numpy(crops_of(size_px=32))
    with torch.no_grad():
        for x in encoder.parameters():
            x += 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
        model, read = to_timm(encoder), encoder.read(crops, CHANNELS)
        tokens = model.forward_features(standardize(crops))
        torch.testing.assert_close(tokens[:, 0], read["class_token"], atol=1e-5, rtol=1e-5)
        mean = model(standardize(crops))
        torch.testing.assert_close(mean, read["patch_mean"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["channel_agnostic_transformer", "unet", "densenet"])
def test_timm_holds_no_other_kind(exported, kind: str):
    with pytest.raises(ValueError, match=f"cannot hold a {kind}"):
        to_timm(load_encoder(exported(kind)[1]).encoder)


def test_untrained_baselines_are_exported_and_others_are_not(tmp_path: Path):
    crops = dataclasses.replace(TINY.crops, passes=0)
    for name in ("untrained", "untrained_ca", "intensity"):
        objective = dataclasses.replace(TINY.objective, name=name)
        backbone = "none" if name == "intensity" else "nano/8"
        trial = dataclasses.replace(TINY, objective=objective, crops=crops, backbone=backbone)
        write_facts(tmp_path / name, trial)
        done = invoke("export", tmp_path / name, "--out", tmp_path / f"{name}-out")
        if name == "intensity":
            assert "the baseline intensity, without an encoder" in refused(done)
            continue
        loaded = load_encoder(tmp_path / f"{name}-out")
        expected = build_encoder(trial, channels=CHANNELS).eval()
        with torch.no_grad():
            read = expected.read(torch.from_numpy(crops_of()), CHANNELS)["patch_mean"]
        np.testing.assert_array_equal(loaded.embed(crops_of(), channels=CHANNELS), read.numpy())
        card = (tmp_path / f"{name}-out" / "README.md").read_text()
        assert "none: the weights are those that seed 0 begins with" in card


def test_what_cannot_be_exported_is_one_clear_line(exported, tmp_path: Path):
    assert "is no trial's folder" in refused(invoke("export", tmp_path, "--out", tmp_path / "out"))
    write_facts(tmp_path / "trial", TINY)
    line = refused(invoke("export", tmp_path / "trial", "--out", tmp_path / "out"))
    assert "holds no whole checkpoint" in line
    trial = exported("unet")[1].with_name("unet-trial")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    line = refused(invoke("export", trial, "--out", tmp_path / "full"))
    assert "no empty folder" in line
    line = refused(invoke("export", trial, "--out", tmp_path / "out", "--readout", "per_channel"))
    assert "unet has no read-out 'per_channel'; it has patch_mean, patch_sd" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "trial"]
    (tmp_path / "empty").mkdir()
    done = invoke("export", trial, "--out", tmp_path / "empty")
    assert done.exit_code == 0 and "MU-net-nano, patch_mean, 64 values" in done.stdout


def test_the_card_says_what_is_known(tmp_path: Path):
    make_trial(tmp_path / "trial", TINY)
    export_encoder(tmp_path / "trial", tmp_path / "unscored")
    card = (tmp_path / "unscored" / "README.md").read_text()
    assert "Not scored" in card and "| crops seen | 24, in 3 updates |" in card
    assert "encoder.embed(crops, channels=['DNA', 'Actin'])" in card and "f" * 64 in card
    assert "Not for clinical use" in card and "licence" in card and "statistics of" not in card
    make_row(readout="class_token").write(tmp_path / "trial")
    facts = export_encoder(tmp_path / "trial", tmp_path / "scored")
    assert facts.readout == "class_token"
    card = (tmp_path / "scored" / "README.md").read_text()
    assert "**0.457** [0.356, 0.555]" in card and "| patch_sd | 0.483 |" in card
    assert "| sites | 3,000, 1 of the training wells |" in card


@pytest.fixture(scope="module")
def trained(tiny_screen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported by the command after `phenoscale train` on the tiny screen."""
    folder = tmp_path_factory.mktemp("trained")
    small = ("--backbone", "nano/8", "--crop-px", 16, "--passes", 1, "--mask-ratio", 0.5)
    assert invoke("train", tiny_screen / "index.parquet", "--out", folder, *small).exit_code == 0
    (trial,) = folder.glob("trials/*")
    done = invoke("export", trial, "--out", folder / "encoder")
    assert done.exit_code == 0, done.output
    return folder / "encoder"


def embeddings(folder: Path, name: str) -> np.ndarray:
    (part,) = folder.glob("part-*.parquet")
    column = pq.read_table(part)[name].combine_chunks()
    assert column.type == pa.list_(pa.float32(), column.type.list_size)
    return column.flatten().to_numpy().reshape(len(column), -1)


def test_a_screen_is_embedded(tiny_screen: Path, trained: Path, tmp_path: Path):
    out, path = tmp_path / "new" / "sites", tiny_screen / "index.parquet"
    done = invoke("embed", trained, path, "--out", out, "--every-block")
    assert done.exit_code == 0, done.output
    index = ScreenIndex.open(path)
    first, second = done.stdout.splitlines()
    assert first == f"{out}: 288 rows, one per site, of 288 sites in 1 shards" and not done.stderr
    assert re.fullmatch(
        r"1 shards written, 0 found whole; [\d.]+ s, [\d.]+ sites/s; the encoder waited for images "
        r"\d+% of its time",
        second,
    )
    from phenoscale.screens.site_reader import SiteReader

    loaded = load_encoder(trained)
    crops = Trial.from_dict(loaded.facts.trial).crops
    images = SiteReader(index_path=str(path), crops=crops).read(5, 7)["images"]
    expected = embed_sites(loaded.encoder, images, 16, index.channels, every_block=True)
    assert list(expected) == ["patch_mean", "class_token", "patch_sd", "block_1", "block_2"]
    for name, vectors in expected.items():
        np.testing.assert_allclose(embeddings(out, name)[5:7], vectors, atol=1e-6)
    assert {file.name for file in out.iterdir()} == {"embedding.json", "part-00000.parquet"}
    again = invoke("embed", trained, path, "--out", out, "--every-block")
    assert again.stdout.endswith("all shards were found whole, none was written\n")
    some = ("--readout", "block_1", "--readout", "patch_sd", "--level", "well")
    assert "level is 'site' there" in refused(invoke("embed", trained, path, "--out", out, *some))
    done = invoke("embed", trained, path, "--out", tmp_path / "wells", *some, "--precision", "bf16")
    assert done.stdout.startswith(f"{tmp_path / 'wells'}: 144 rows, one per well, of 288 sites")
    np.testing.assert_allclose(
        embeddings(tmp_path / "wells", "block_1").mean(axis=0),
        embeddings(out, "block_1").mean(axis=0),
        atol=0.05,
    )


def test_channels_of_a_screen_are_chosen_by_name(tiny_screen: Path, tmp_path: Path):
    path = tiny_screen / "index.parquet"
    names = ScreenIndex.open(path).channels
    pair = (names[4], names[1])
    for name, trial in (("plain", TINY), ("agnostic", of("ca_mae"))):
        make_trial(tmp_path / f"{name}-trial", trial, pair)
        export_encoder(tmp_path / f"{name}-trial", tmp_path / name)
    own, again, some = tmp_path / "own", tmp_path / "again", tmp_path / "some"
    assert invoke("embed", tmp_path / "plain", path, "--out", own).exit_code == 0
    asked = [word for name in pair[::-1] for word in ("--channels", name)]
    assert invoke("embed", tmp_path / "plain", path, "--out", again, *asked).exit_code == 0
    np.testing.assert_allclose(
        embeddings(own, "patch_mean"), embeddings(again, "patch_mean"), atol=1e-6
    )
    done = invoke(
        "embed", tmp_path / "agnostic", path, "--out", some, *asked, "--channels", names[0]
    )
    assert done.exit_code == 0, done.output
    assert embeddings(some, "per_channel").shape[1] == 3 * 32
    none = ("--out", tmp_path / "none")
    line = refused(invoke("embed", tmp_path / "plain", path, *none, "--channels", names[0]))
    assert "takes exactly" in line
    make_trial(tmp_path / "other-trial", TINY, ("DNA", "a stain of its own"))
    export_encoder(tmp_path / "other-trial", tmp_path / "other")
    line = refused(invoke("embed", tmp_path / "other", path, *none))
    assert "no channel" in line and "a stain of its own" in line
    assert not (tmp_path / "none").exists()


def test_unreadable_sites_are_left_out_and_counted(
    tiny_screen: Path, trained: Path, tmp_path: Path
):
    copy, out = shutil.copytree(tiny_screen, tmp_path / "screen"), tmp_path / "sites"
    index = ScreenIndex.open(copy / "index.parquet")
    (copy / index.table["paths"][3].as_py()[0]).write_bytes(b"damaged")
    words = ("embed", trained, copy / "index.parquet", "--out", out)
    assert "Row 3 of the index" in refused(invoke(*words))
    assert [file.name for file in out.iterdir()] == ["embedding.json"]
    done = invoke(*words, "--tolerated-bad-sites", 0.01)
    assert done.exit_code == 0
    assert done.stderr == "1 of 288 sites (0.35%) could not be read and are left out\n"
    ids = index.table["site_id"].to_pylist()
    table = pq.read_table(out / "part-00000.parquet")
    assert table["site_id"].to_pylist() == ids[:3] + ids[4:]
    np.testing.assert_allclose(
        embeddings(out, "patch_mean")[3],
        embed_readable(trained, copy / "index.parquet", 4),
        atol=1e-6,
    )


def embed_readable(folder: Path, index: Path, row: int) -> np.ndarray:
    """patch_mean of one site, embedded alone."""
    from phenoscale.screens.site_reader import SiteReader

    loaded = load_encoder(folder)
    reader = SiteReader(index_path=str(index), crops=Trial.from_dict(loaded.facts.trial).crops)
    images = reader.read(row, row + 1)["images"]
    return embed_sites(loaded.encoder, images, 16, reader.channels)["patch_mean"][0]
