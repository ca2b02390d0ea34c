"""Images: from files to one uint8 array."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np


def decode(
  encoded: Iterable[tuple[str, dict[str, Any]]], count: int, size: int
) -> np.ndarray:
  """Decodes and resizes images to uint8 [M, H, W, 3], or [M, H, W, 1] if all
  are grayscale.

  encoded: `count` pairs of where an image is from (for errors) and a dict
  with its 'bytes', or else its 'path'. size: the side to resize to (squares,
  the aspect ratio is not kept); 0 leaves them, and they must be of one size.
  """
  out = np.zeros((0, 0, 0, 1), np.uint8)
  for i, (where, item) in enumerate(encoded):
    pixels = _pixels(where, item, size)
    if not i:
      out = np.zeros((count, *pixels.shape), np.uint8)
    if pixels.shape[:2] != out.shape[1:3]:
      raise ValueError(
        f'images differ in size: {where} is {pixels.shape[0]} x '
        f'{pixels.shape[1]}, those before it are {out.shape[1]} x '
        f'{out.shape[2]}. Resize them: --data.image_size.'
      )
    if pixels.shape[2] > out.shape[3]:
      out = np.repeat(out, 3, axis=3)  # so far gray, now in color
    out[i] = pixels
  return out


def resize(images: np.ndarray, size: int) -> np.ndarray:
  """uint8 [M, H, W, C] images resized to `size` x `size` (0: as they are)."""
  if not size or images.shape[1:3] == (size, size):
    return images
  from PIL import Image

  out = np.zeros((len(images), size, size, images.shape[3]), np.uint8)
  for i, pixels in enumerate(images):
    image = Image.fromarray(pixels.squeeze(-1) if out.shape[3] == 1 else pixels)
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    out[i] = np.asarray(resized).reshape(out.shape[1:])
  return out


def from_arrays(values: np.ndarray, where: str) -> np.ndarray:
  """uint8 [M, H, W, C] from numbers [M, H, W] or [M, H, W, 1 or 3].

  Raises `ValueError` if they are not whole numbers from 0 to 255.
  """
  if values.ndim == 3:
    values = values[..., None]
  if values.ndim != 4 or values.shape[-1] not in (1, 3):
    raise ValueError(
      f'{where} has values of shape {values.shape[1:]}; allowed: images H x W, '
      'H x W x 1 or H x W x 3, all of one size.'
    )
  if not np.issubdtype(values.dtype, np.integer) or not (
    0 <= values.min(initial=0) <= values.max(initial=0) <= 255
  ):
    raise ValueError(
      f'{where} has {values.dtype} values from {values.min()} to '
      f'{values.max()}; allowed: whole numbers from 0 to 255.'
    )
  return values.astype(np.uint8)


def _pixels(where, item, size):
  from PIL import Image, ImageOps

  try:
    data = item['bytes']
    with Image.open(
      item['path'] if data is None else io.BytesIO(data)
    ) as image:
      if size:
        # JPEG can be decoded at 1/2, 1/4 or 1/8, which is far quicker; twice
        # the side is kept for the resize to filter.
        image.draft(None, (2 * size, 2 * size))
      if image.mode[0] in 'IF':
        raise ValueError(f'its pixels are of mode {image.mode}, not 8 bit')
      gray = image.mode in ('1', 'L', 'LA')
      image = ImageOps.exif_transpose(image).convert('L' if gray else 'RGB')
      if size and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
      pixels = np.asarray(image)
  except Exception as error:  # decoders raise all sorts
    raise ValueError(f'{where} is no readable image: {error}.') from error
  return pixels.reshape(*pixels.shape[:2], -1)
