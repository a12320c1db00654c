"""What a masked autoencoder is asked for: pixels of masked patches, and spectra of whole images.

Shapes: B crops, C channels, H W pixels, M masked patches, P values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the masked patches: the mean over patches of the mean over pixels.

    Args:
        predicted: (B, M, P).
        target: (B, M, P).

    Returns:
        () float32.
    """
    return (predicted.float() - target).square().mean()


def normalized(patches: Tensor) -> Tensor:
    """Patches (..., P) of zero mean and unit variance each (He et al. 2022, section 4.1).

    The variance is that of a sample, with 1e-6 added, as in the public code of both MAE and the
    papers.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def restored(predicted: Tensor, patches: Tensor) -> Tensor:
    """Predictions of `normalized(patches)`, (..., P), brought back to the patches' own scale."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return predicted * (variance + 1e-6).sqrt() + mean


def fourier_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference between the magnitudes of the 2-D Fourier transforms of images.

    Kraus et al. 2023: the "+" models. The transform is not normalized, as in their code: the loss
    grows with the side of the crop.

    Args:
        predicted: (B, C, H, W) float32.
        target: (B, C, H, W) float32.

    Returns:
        () float32, mean over frequencies, channels and crops.
    """
    spectrum, wanted = torch.fft.fft2(predicted.float()), torch.fft.fft2(target.float())
    return (spectrum.abs() - wanted.abs()).abs().mean()


def total_loss(mse: Tensor, fourier: Tensor, fourier_weight: float) -> Tensor:
    """(1 - a) MSE + a Fourier, a = `fourier_weight` (Kraus et al. 2023)."""
    return (1 - fourier_weight) * mse + fourier_weight * fourier
