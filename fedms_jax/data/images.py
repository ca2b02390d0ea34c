"""Images: from files to one uint8 array."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import io
import itertools
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.data import files

GRAY = ('1', 'L', 'LA')  # Pillow's modes of one channel
GROUP = 32  # images that a thread decodes at a time
# Pillow has more, some of which start other programs (EPS: Ghostscript). MPO,
# photos of some cameras, begins as JPEG does.
FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'WEBP', 'TIFF')
MOST_PIXELS = 80_000_000  # of one image; its file may be far smaller

Encoded = tuple[str, dict[str, Any]]  # where it is from; its bytes or path


class Prepare(NamedTuple):
  """What a model wants done to an image before it is numbers.

  height, width: resize to these, the aspect ratio is not kept; 0: as it is.
  shortest: or resize so that the shorter side has this length. resample:
  Pillow's number of the filter (0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic).
  crop: then cut (height, width) from the middle, None: nothing. color: always
  make three channels.
  """

  height: int = 0
  width: int = 0
  shortest: int = 0
  resample: int = 2
  crop: tuple[int, int] | None = None
  color: bool = False

  def __call__(self, image: Any) -> Any:
    """The prepared `PIL.Image`."""
    image = image.convert('RGB') if self.color else image
    size = self._size(*image.size)
    if size != image.size:
      image = image.resize(size, self.resample)
    return image if self.crop is None else _center(image, *self.crop)

  def changes(self, width: int, height: int) -> bool:
    """Whether anything is done to an image of this size."""
    whole = self.crop is None and self._size(width, height) == (width, height)
    return self.color or not whole

  def _size(self, width: int, height: int) -> tuple[int, int]:
    if self.shortest:
      short, long = sorted((width, height))
      long = int(self.shortest * long / short)
      return (self.shortest, long) if width <= height else (long, self.shortest)
    return (self.width or width, self.height or height)


# What becomes of the pixels after cropping, which the models do themselves.
_PIXELS = {'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True}


def square(size: int) -> Prepare:
  """Resizes to `size` x `size` as well as is cheap; 0 leaves images alone."""
  return Prepare(height=size, width=size)


def for_checkpoint(preprocessor: Mapping[str, Any]) -> Prepare:
  """What an image model asks for, in the words of preprocessor_config.json;
  scaling and normalization are the model's own, so that images stay uint8.

  preprocessor: with nothing left out, see `models.preprocessors`.
  """
  p = preprocessor
  size = p['size'] if p['do_resize'] else {}
  crop = p['crop_size'] if p['do_center_crop'] else None
  for key, usual in _PIXELS.items():
    value = p[key]
    if abs(value - usual) > 1e-6:
      raise ValueError(
        f'preprocessor_config.json has {key}={value}; allowed: {usual}. Pixels '
        'become (x / 255 - mean) / std.'
      )
  return Prepare(
    height=size.get('height', 0),
    width=size.get('width', 0),
    shortest=size.get('shortest_edge', 0),
    resample=p['resample'],
    crop=crop and (crop['height'], crop['width']),
    color=True,
  )


def _center(image: Any, height: int, width: int) -> Any:
  """The middle of an image; what lies beyond its edge is black."""
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return image.crop((left, top, left + width, top + height))


def decode(
  encoded: Iterable[Encoded],
  count: int,
  prepare: Prepare,
  like: np.ndarray | None = None,
  places: Iterable[int] | None = None,
) -> np.ndarray:
  """Decodes and prepares images to uint8 [M, H, W, 3], or [M, H, W, 1] if all
  are grayscale. Where an image is transparent, it is shown on white, unless
  `prepare` is a checkpoint's, whose reference leaves alpha out.

  encoded: `count` pairs of where an image is from (for errors) and a dict
  with its 'bytes', or else its 'path'. Prepared, they must be of one size.
  like: uint8 [0, H, W, 3 or 1], the shape of all images where these are some
  of them. places: of the images in the result; None: in their order.
  """
  out = None
  if like is not None:
    out = _blank(count, like.shape[1:])
  places = range(count) if places is None else places
  pixels_of_all = _decoded(encoded, prepare)
  for place, (where, pixels) in zip(places, pixels_of_all, strict=True):
    if out is None:
      out = _blank(count, pixels.shape)
    if pixels.shape[:2] != out.shape[1:3]:
      raise ValueError(
        f'images differ in size: {where} is {pixels.shape[0]} x '
        f'{pixels.shape[1]}, those before it are {out.shape[1]} x '
        f'{out.shape[2]}. Resize them: `image_size`.'
      )
    if pixels.shape[2] > out.shape[3]:
      out = np.repeat(out, 3, axis=3)  # so far gray, now in color
    out[place] = pixels
  return np.zeros((0, 0, 0, 1), np.uint8) if out is None else out


def _blank(count: int, shape: tuple[int, ...]) -> np.ndarray:
  return np.zeros((count, *shape), np.uint8)


def _decoded(
  encoded: Iterable[Encoded], prepare: Prepare
) -> Iterator[tuple[str, np.ndarray]]:
  """Where each image is from, and its pixels, in order; threads decode some
  groups ahead."""

  def group(items):
    return [(where, _pixels(where, item, prepare)) for where, item in items]

  items, under_way = iter(encoded), collections.deque()
  workers = os.cpu_count() or 1
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    while some := list(itertools.islice(items, GROUP)):
      under_way.append(pool.submit(group, some))
      if len(under_way) > 2 * workers:
        yield from under_way.popleft().result()
    while under_way:
      yield from under_way.popleft().result()


def has_color(where: str, item: dict[str, Any]) -> bool:
  """Whether an image becomes three channels, which its header tells."""
  try:
    with _opened(item) as image:
      return image.mode not in GRAY
  except Exception as error:  # decoders raise all sorts
    raise _unreadable(where, error) from error


def resize(images: np.ndarray, prepare: Prepare) -> np.ndarray:
  """uint8 [M, H, W, C] images, prepared."""
  from PIL import Image

  if not prepare.changes(*images.shape[2:0:-1]):
    return images
  out = []
  for pixels in images:
    gray = pixels.shape[-1] == 1
    image = prepare(Image.fromarray(pixels.squeeze(-1) if gray else pixels))
    out.append(np.asarray(image).reshape(image.height, image.width, -1))
  return np.stack(out)


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


@functools.cache
def _pillow():
  """`PIL.Image`, silent where we refuse: images of too many pixels."""
  from PIL import Image

  warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
  return Image


def _opened(item: dict[str, Any]):
  Image = _pillow()
  data = item['bytes']
  if data is None:
    files.check_openable(pathlib.Path(item['path']))
  source = item['path'] if data is None else io.BytesIO(data)
  image = Image.open(source, formats=FORMATS)
  if image.width * image.height > MOST_PIXELS:
    image.close()
    raise ValueError(
      f'it has {image.width} x {image.height} pixels; allowed: '
      f'{MOST_PIXELS:,} in all'
    )
  return image


def _on_white(image: Any) -> Any:
  """The image as it looks on white, where parts of it are transparent."""
  if not image.has_transparency_data:
    return image
  white = _pillow().new('RGBA', image.size, 'white')
  return _pillow().alpha_composite(white, image.convert('RGBA')).convert('RGB')


def _pixels(where, item, prepare):
  from PIL import ImageOps

  try:
    with _opened(item) as image:
      if prepare.height and prepare == square(prepare.height):
        # JPEG can be decoded at 1/2, 1/4 or 1/8, which is far quicker; twice
        # the side is kept for the resize to filter. A checkpoint's pixels
        # are to be its reference's: those are decoded whole.
        image.draft(None, (2 * prepare.width, 2 * prepare.height))
      if image.mode[0] in 'IF':
        raise ValueError(f'its pixels are of mode {image.mode}, not 8 bit')
      gray = image.mode in GRAY
      image = ImageOps.exif_transpose(image)
      if not prepare.color:  # a checkpoint's reference leaves alpha out
        image = _on_white(image)
      image = image.convert('L' if gray else 'RGB')
      pixels = np.asarray(prepare(image))
  except Exception as error:  # decoders raise all sorts
    raise _unreadable(where, error) from error
  return pixels.reshape(*pixels.shape[:2], -1)


def _unreadable(where: str, error: Exception) -> ValueError:
  said = str(error).strip().rstrip('.') or type(error).__name__
  if type(error).__name__ == 'UnidentifiedImageError':
    said = f'it is none of {", ".join(FORMATS)}'
  return ValueError(f'{where} is no readable image: {said}.')
