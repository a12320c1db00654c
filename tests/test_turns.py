"""The symmetries of the square, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phenoscale.turns import turned


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_crop_gets_its_own_symmetry(dtype: torch.dtype):
    crops = torch.randint(0, 255, (40, 3, 6, 6)).to(dtype)
    turns = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(40) % 8))
    out = turned(crops, turns)
    assert out.dtype == dtype and out.is_contiguous()
    for crop, turn, found in zip(crops.numpy(), turns.tolist(), out.numpy(), strict=True):
        expected = np.rot90(crop, turn % 4, axes=(1, 2))
        np.testing.assert_array_equal(found, expected[:, :, ::-1] if turn >= 4 else expected)


def test_the_eight_are_distinct_and_leave_their_input_alone():
    crop = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    crops = crop.repeat(8, 1, 1, 1)
    out = turned(crops, torch.arange(8))
    assert len({one.numpy().tobytes() for one in out}) == 8
    assert torch.equal(crops, crop.repeat(8, 1, 1, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_turns_alike():
    crops, turns = torch.randint(0, 255, (16, 2, 8, 8), dtype=torch.uint8), torch.arange(16) % 8
    assert torch.equal(turned(crops.cuda(), turns.cuda()).cpu(), turned(crops, turns))
