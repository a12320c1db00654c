"""The weakly supervised classifier: which tokens it reads, what its loss is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from phenoscale.models.build import build_model
from phenoscale.models.classifier import Classifier
from phenoscale.models.vit import patchify, standardize
from tests.tiny import CHANNELS, CLASSES, TINY_WSL, tiny_batch


@pytest.fixture
def model() -> Classifier:
    model = build_model(TINY_WSL, channels=CHANNELS, num_classes=CLASSES)
    assert isinstance(model, Classifier)
    return model


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    drawn = tiny_batch(TINY_WSL, 0)
    noise = torch.zeros(8, 0)
    return torch.from_numpy(drawn["crops"]), torch.from_numpy(drawn["labels"]), noise


def test_the_loss_is_cross_entropy_of_the_mean_patch_token(model: Classifier, batch):
    crops, labels, noise = batch
    with torch.no_grad():
        tokens = model.encoder(patchify(standardize(crops), 8)).double().numpy()
        loss = float(model(crops, labels, noise))
    weight, bias = (x.detach().double().numpy() for x in (model.head.weight, model.head.bias))
    logits = tokens[:, 1:].mean(axis=1) @ weight.T + bias
    chosen = logits[np.arange(8), labels.numpy()]
    assert loss == pytest.approx(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen), rel=1e-5)


def test_it_starts_at_chance(model: Classifier, batch):
    assert float(model(*batch).detach()) == pytest.approx(math.log(CLASSES), abs=0.1)


def test_labels_matter_and_noise_does_not(model: Classifier, batch):
    crops, labels, noise = batch
    loss = model(crops, labels, noise)
    assert torch.equal(loss, model(crops, labels, noise + 1))
    assert not torch.equal(loss, model(crops, (labels + 1) % CLASSES, noise))


def test_every_parameter_learns(model: Classifier, batch):
    model(*batch).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []
