"""Other ways to train the same masked autoencoder, in the eager loop that one writes first.

Shapes: B crops, C channels, H W pixels, p patch side, N patches, K kept patches, D width, E decoder
width, P = C p^2 values of a patch. In a mask 1 means removed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks.step_camae_loop import ChannelLoopMAE
from benchmarks.step_cases import Batch, Case
from phenoscale.backbones import VisionTransformer, vision_transformer
from phenoscale.config import Optim
from phenoscale.optim import build_optimizer


def standardized(crops: Tensor) -> Tensor:
    """(B, C, H, W) uint8 to float32 of zero mean and unit variance of each crop and channel."""
    x = crops.float()
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


class ReferenceMAE(nn.Module):
    """The masked autoencoder of He et al. 2022 as its public implementation goes about it.

    Written from the paper: all patches are embedded by a convolution and the kept ones gathered;
    the decoder's tokens are put back in order with mask tokens between them; all are predicted.
    """

    position: Tensor
    decoder_position: Tensor

    def __init__(
        self, shape: VisionTransformer, *, channels: int, size_px: int, mask_ratio: float
    ) -> None:
        """Builds it in the shape of a backbone and its decoder, for square crops."""
        super().__init__()
        width, decoder = shape.width, shape.decoder
        self.patch_px, side = shape.patch_px, size_px // shape.patch_px
        self.num_kept = round(side**2 * (1 - mask_ratio))
        self.patch_embed = nn.Conv2d(channels, width, shape.patch_px, stride=shape.patch_px)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = _blocks(width, shape.depth, shape.heads, shape.mlp_width / width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.decoder_blocks = _blocks(decoder.width, decoder.depth, decoder.heads, 4.0)
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.predict = nn.Linear(decoder.width, channels * shape.patch_px**2)
        for name, size in (("position", width), ("decoder_position", decoder.width)):
            table = build_sincos2d_pos_embed([side, side], dim=size, interleave_sin_cos=False)
            table = torch.cat([torch.zeros(1, size), table])  # the class token has no place
            self.register_buffer(name, table.unsqueeze(0), persistent=False)
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token, std=0.02)

    def forward(self, crops: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            crops: (B, C, H, W) uint8.
            noise: (B, N) float32: patches with the smallest values are kept; drawn if not given.

        Returns:
            () float32: the mean over masked patches of the mean over their pixels.
        """
        images = standardized(crops)
        predicted, mask = self.reconstruct(images, noise)
        error = (predicted - self.patchify(images)).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, P) predictions of all patches of (B, C, H, W), and the mask, (B, N)."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position[:, 1:]
        if noise is None:
            noise = torch.rand(x.shape[:2], device=x.device)
        shuffled = noise.argsort(dim=1)
        restored = shuffled.argsort(dim=1)
        kept = shuffled[:, : self.num_kept, None].expand(-1, -1, x.shape[2])
        mask = torch.ones_like(noise)
        mask[:, : self.num_kept] = 0
        mask = mask.gather(1, restored)

        class_token = (self.class_token + self.position[:, :1]).expand(len(x), -1, -1)
        x = self.norm(self.blocks(torch.cat([class_token, x.gather(1, kept)], dim=1)))

        x = self.decoder_embed(x)
        lacking = self.mask_token.repeat(len(x), noise.shape[1] - self.num_kept, 1)
        tokens = torch.cat([x[:, 1:], lacking], dim=1)
        tokens = tokens.gather(1, restored[:, :, None].expand(-1, -1, tokens.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_position
        x = self.predict(self.decoder_norm(self.decoder_blocks(x)))
        return x[:, 1:], mask

    def patchify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, P), patches row by row, values by channel, row, column."""
        b, c, h, w = images.shape
        p = self.patch_px
        x = images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(b, -1, c * p * p)


def _blocks(width: int, depth: int, heads: int, mlp_ratio: float) -> nn.Sequential:
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    return nn.Sequential(
        *(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm)  # type: ignore[arg-type]  # as timm's own models do
            for _ in range(depth)
        )
    )


class HuggingFaceMAE(nn.Module):
    """`ViTMAEForPreTraining` of transformers, with random weights."""

    def __init__(self, case: Case, attention: str) -> None:
        """Builds it in the case's shape; `attention` is transformers' name of an implementation."""
        super().__init__()
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        shape = vision_transformer(case.backbone)
        config = ViTMAEConfig(
            image_size=case.size_px,
            patch_size=shape.patch_px,
            num_channels=case.channels,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=shape.mlp_width,
            decoder_hidden_size=shape.decoder.width,
            decoder_num_hidden_layers=shape.decoder.depth,
            decoder_num_attention_heads=shape.decoder.heads,
            decoder_intermediate_size=4 * shape.decoder.width,
            mask_ratio=case.mask_ratio,
            attn_implementation=attention,
        )
        self.model = ViTMAEForPreTraining(config)

    def forward(self, crops: Tensor) -> Tensor:
        """The loss of (B, C, H, W) uint8 crops, ()."""
        return self.model(pixel_values=standardized(crops)).loss


class ChannelLoop(nn.Module):
    """CA-MAE channel by channel, on random masks."""

    def __init__(self, case: Case) -> None:
        """Builds it in the case's shape."""
        super().__init__()
        trial = case.trial("fp32")
        self.model = ChannelLoopMAE(
            vision_transformer(case.backbone),
            trial.objective,
            channels=case.channel_names,
            size_px=case.size_px,
        )

    def forward(self, crops: Tensor) -> Tensor:
        """The loss of (B, C, H, W) uint8 crops, ()."""
        labels = torch.zeros(len(crops), dtype=torch.int64, device=crops.device)
        draws = torch.rand(len(crops), self.model.draws, device=crops.device)
        return self.model(crops, labels, draws)


def reference(case: Case) -> nn.Module:
    """The reference in a case's shape."""
    return ReferenceMAE(
        vision_transformer(case.backbone),
        channels=case.channels,
        size_px=case.size_px,
        mask_ratio=case.mask_ratio,
    )


def has_transformers() -> bool:
    """Whether Hugging Face's transformers are installed."""
    return importlib.util.find_spec("transformers") is not None


def train_plain(
    model: nn.Module, batches: Iterable[Batch], optim: Optim, device: torch.device
) -> None:
    """The plain eager loop: fused AdamW, autocast, clipped gradients, and no look at the loss.

    Args:
        model: called with (B, C, H, W) uint8 crops it gives the loss.
        batches: whose crops are trained on; on a GPU best of pinned memory.
        optim: rate, decay, precision and largest norm of the gradient.
        device: where to train.
    """
    model.to(device).train()
    optimizer = build_optimizer(model, optim)
    for batch in batches:
        crops = torch.from_numpy(batch["crops"]).to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=optim.precision == "bf16"):
            loss = model(crops)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
