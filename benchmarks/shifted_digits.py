"""Handwritten digits that every client sees in its own way: a feature shift.

    python -m benchmarks.shifted_digits [--clients=24] --out=FOLDER

Writes the digits of scikit-learn, dealt evenly to clients, of whom each turns
its images by a quarter more than the one before, and every other four inverts
them, too: eight ways to see a digit, alike in labels. For `fedms`:
--data.source=FOLDER --data.group_column=client --partition.name=natural.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fedms_jax.launch import command

_WHITE = 255


def seen(image: np.ndarray, client: int) -> np.ndarray:
  """An image [H, W], uint8, as a client sees it."""
  turned = np.rot90(image, client % 4)
  return _WHITE - turned if client // 4 % 2 else turned


def write(folder: pathlib.Path, clients: int) -> None:
  """The folder, with columns image, label and client."""
  features, digits = load_digits(return_X_y=True)
  pixels = np.reshape(features, (-1, 8, 8)) * (_WHITE / 16)
  images = np.rint(pixels).astype(np.uint8)
  owners = np.random.default_rng(0).permutation(len(images)) % clients
  pairs = zip(images, owners, strict=True)
  table = {
    'image': [Image.fromarray(seen(x, int(k))) for x, k in pairs],
    'label': [int(x) for x in digits],
    'client': [f'client {k}' for k in owners],
  }
  names = [str(x) for x in range(10)]
  columns = datasets.Features(
    {
      'image': datasets.Image(),
      'label': datasets.ClassLabel(names=names),
      'client': datasets.Value('string'),
    }
  )
  folder.mkdir(parents=True, exist_ok=True)
  made = datasets.Dataset.from_dict(table, features=columns)
  made.to_parquet(folder / 'train.parquet')


def main(argv: Sequence[str]) -> int:
  """Writes the folder; gives the exit code."""
  options = argparse.ArgumentParser(prog='benchmarks.shifted_digits')
  options.add_argument('--out', required=True, help='folder of the data')
  options.add_argument('--clients', type=int, default=24)
  own = options.parse_args(argv)
  write(pathlib.Path(own.out), own.clients)
  return 0


if __name__ == '__main__':
  sys.exit(command.run(main))
