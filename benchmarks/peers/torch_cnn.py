"""The CNN of `cifar.py` in PyTorch."""

from __future__ import annotations

import cifar
import torch
from torch import nn


def model() -> nn.Sequential:
  """For images [B, 3, 32, 32]."""
  one, two = cifar.CHANNELS
  out = nn.Sequential(
    nn.Conv2d(3, one, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(one, two, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(cifar.FEATURES, cifar.HIDDEN),
    nn.ReLU(),
    nn.Linear(cifar.HIDDEN, cifar.CLASSES),
  )
  assert sum(p.numel() for p in out.parameters()) == 167562
  return out


def images() -> torch.Tensor:
  """Floats [M, 3, 32, 32]."""
  pixels = cifar.scaled(cifar.images()).transpose(0, 3, 1, 2)
  return torch.from_numpy(pixels.copy())
