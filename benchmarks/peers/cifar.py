"""The CIFAR-10 workload of pfl-research, on random images; numpy alone.

1,000 clients with 50 images each; 50 clients a round, who take 5 steps of SGD
on 10 images. The model has 167,562 parameters: two convolutions of 3 x 3
without padding, to 32 and 64 channels, each with ReLU and 2 x 2 max-pooling;
2,304 features to 64 with ReLU, to 10 classes.
"""

from __future__ import annotations

import numpy as np

CLIENTS, EACH, COHORT, BATCH = 1000, 50, 50, 10
CHANNELS, HIDDEN, CLASSES, FEATURES = (32, 64), 64, 10, 2304
LEARNING_RATE = 0.01


def images() -> np.ndarray:
  """uint8 [CLIENTS * EACH, 32, 32, 3], client after client."""
  shape = (CLIENTS * EACH, 32, 32, 3)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def labels() -> np.ndarray:
  """int64 [CLIENTS * EACH]."""
  return np.random.default_rng(1).integers(0, CLASSES, CLIENTS * EACH)


def rows(client: int) -> slice:
  return slice(client * EACH, (client + 1) * EACH)


def scaled(pixels: np.ndarray) -> np.ndarray:
  """Floats around 0."""
  return (pixels.astype(np.float32) / 255 - 0.5) / 0.25
