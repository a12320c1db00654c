"""What other software takes: an encoder as a fixed graph, or as a model of timm.

Shapes: B crops, C channels, s side of a crop, D width of an embedding.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from phenoscale.export import kind_of, read_one
from phenoscale.models.blocks import NORM_EPS, LayerScale, ParallelBlock
from phenoscale.models.build import AnyEncoder
from phenoscale.models.densenet import DenseNetEncoder
from phenoscale.models.vit import Encoder

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

GRAPH_FILE, ONNX_FILE = "encoder.pt2", "encoder.onnx"
_LARGEST_DIFFERENCE = 1e-3  # between a graph and its encoder; what was found stands in the config


def to_timm(encoder: AnyEncoder) -> VisionTransformer:
    """The same weights as a model of timm, on the same device, for what is built on timm's class.

    Give it standardized crops (`models.vit.standardize`, the encoder's first layer, which timm's
    has not), float32 (B, C, s, s): `forward_features` gives all tokens, the model itself the
    read-out patch_mean, (B, D).

    Raises:
        ValueError: if timm's class is another architecture than the encoder's.
    """
    if type(encoder) is not Encoder:
        raise ValueError(
            f"timm's VisionTransformer cannot hold a {kind_of(encoder)}: it is the plain "
            "transformer alone, of the objectives wsl and mae. Use `load_encoder` for others."
        )
    from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

    block, count = encoder.blocks[0], len(encoder.channels)
    assert isinstance(block, ParallelBlock)
    with torch.random.fork_rng(devices=[]):
        model = VisionTransformer(
            img_size=round(encoder.num_patches**0.5) * encoder.patch_px,
            patch_size=encoder.patch_px,
            in_chans=count,
            num_classes=0,
            global_pool="avg",
            fc_norm=False,  # tokens are normed before they are averaged
            embed_dim=encoder.width,
            depth=len(encoder.blocks),
            num_heads=block.heads,
            mlp_ratio=block.parts[0] / encoder.width,
            qkv_bias=False,
            qk_norm=True,
            init_values=1.0 if isinstance(block.ls, LayerScale) else None,
            no_embed_class=True,
            norm_layer=functools.partial(nn.LayerNorm, eps=NORM_EPS),
            block_fn=ParallelScalingBlock,
        )
    state = encoder.state_dict()
    weight = state.pop("projection.weight")
    state["patch_embed.proj.weight"] = weight.unflatten(1, (count, *[encoder.patch_px] * 2))
    state["patch_embed.proj.bias"] = state.pop("projection.bias")
    state["cls_token"] = state.pop("class_token").reshape(1, 1, -1)
    state["pos_embed"] = encoder.positions.unsqueeze(0)
    model.load_state_dict(state)
    return model.eval().to(encoder.class_token.device)


class _Graph(nn.Module):
    """Crops in, one read-out out."""

    def __init__(self, encoder: AnyEncoder, readout: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.readout = readout

    def forward(self, crops: Tensor) -> Tensor:
        """(B, C, s, s) uint8, channels in the encoder's order, to (B, D) float32."""
        return read_one(self.encoder, crops, self.encoder.channels, self.readout)


def write_graphs(
    folder: Path, encoder: AnyEncoder, readout: str, blank: Tensor, files: Sequence[str]
) -> dict[str, float]:
    """Writes graphs, reads each back and compares it with the encoder: file to largest difference.

    Raises:
        ValueError: if the encoder has no fixed graph, or a package is missing.
        RuntimeError: if a graph does not do what its encoder does.
    """
    if isinstance(encoder, DenseNetEncoder):
        raise ValueError(
            "A DenseNet has no fixed graph: it normalizes by statistics of each plate. Export it "
            "without graphs, and embed with `load_encoder` or `phenoscale embed`."
        )
    assert {*files} <= {GRAPH_FILE, ONNX_FILE}, files
    packages = ("onnx", "onnxscript", "onnxruntime") if ONNX_FILE in files else ()
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"ONNX needs the packages {', '.join(missing)}, which are not installed. Run pip "
            "install 'phenoscale[onnx]', or leave ONNX out."
        )
    seeded = torch.Generator().manual_seed(0)
    graph = _Graph(encoder, readout).eval()
    crops = torch.randint(0, 256, (3, *blank.shape[1:]), dtype=torch.uint8, generator=seeded)
    crops[0, 0] = 7  # a constant channel
    program = torch.export.export(
        graph,
        (crops,),
        dynamic_shapes={"crops": {0: torch.export.Dim("batch", min=1)}},
        strict=True,  # else the encoder's len(crops) would fix the batch
    )
    found = {}
    for file in files:
        run = (_pt2 if file == GRAPH_FILE else _onnx)(program, folder / file)
        found[file] = max(
            float((run(part) - graph(part)).abs().max()) for part in (crops, crops[:1], blank)
        )
        if not found[file] <= _LARGEST_DIFFERENCE:
            raise RuntimeError(f"{file} differs from its encoder by {found[file]}.")
    return found


def _pt2(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    """Writes torch's own format; returns what reads it."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _onnx(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    """Writes ONNX; returns what onnxruntime makes of it."""
    made = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["crops"], output_names=["embedding"]
    )
    assert made is not None
    made.save(path)
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda crops: torch.from_numpy(session.run(None, {"crops": crops.numpy()})[0])
