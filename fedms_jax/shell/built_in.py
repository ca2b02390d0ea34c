"""The built-in vision transformer, in the shape of the data."""

from __future__ import annotations

from fedms_jax.core.types import Backbone, Federation
from fedms_jax.models import family, transformer, vit
from fedms_jax.shell.config import ModelConfig


def backbone(m: ModelConfig, data: Federation) -> Backbone:
  """The model of --model.name=vit; see `shape`."""
  return vit.backbone(shape(m, data))


def shape(m: ModelConfig, data: Federation) -> vit.VitConfig:
  """Its shape.

  Raises:
    ValueError: the inputs are no square images.
  """
  pictures = data.table.columns['inputs']
  if pictures.ndim != 4:
    raise ValueError(
      '--model.name=vit reads images, and these inputs are none. Name another '
      'model, or another --data.input_column.'
    )
  _, height, width, channels = pictures.shape
  if height != width:
    raise ValueError(
      f'images are {height} x {width}; allowed: square ones. Set '
      '--data.image_size.'
    )
  blocks = transformer.TransformerConfig(
    blocks=m.blocks,
    width=m.width,
    heads=m.heads,
    mlp_width=m.mlp_width,
    dtype=m.dtype,
    remat=m.remat,
    unroll=m.unroll,
  )
  return vit.VitConfig(
    blocks,
    image=height,
    channels=channels,
    patch=m.patch,
    classes=len(data.table.output_names),
    pooling=family.choose('--model.pooling', m.pooling, ('cls', 'mean')),
    masked=m.head == 'masked_patches',
  )
