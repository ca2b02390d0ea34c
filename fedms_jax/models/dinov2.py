"""DINOv2 (arXiv 2304.07193), also with registers (arXiv 2309.16588)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Tree
from fedms_jax.models import family, transformer, vit
from fedms_jax.models.family import Model, Name, Options
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig

POOLINGS = ('cls_mean', 'cls', 'mean')
REGISTERS = 'dinov2_with_registers'
_CLASSES = {'dinov2': 'Dinov2', REGISTERS: 'Dinov2WithRegisters'}


class _Images(NamedTuple):
  """How images become tokens. cells, known: patches along a side, now and as
  trained. registers: how many; None: a model without. center, spread: of the
  pixels, by channel."""

  patch: int
  channels: int
  cells: int
  known: int
  registers: int | None
  center: Any
  spread: Any


def model(config: Settings, options: Options) -> Model:
  """A DINOv2 of config.json.

  The feature of a classification is the class token beside the mean of the
  patches, float32 [B, 2 D], as the reference classifies, or one of them.
  Images may have another size than that of config.json: the positions are
  then interpolated, as the makers' own processor (518 to 224) needs it.
  """
  family.choose('`Options.head`', options.head, ('classification',))
  config.refuse(use_swiglu_ffn=False)
  # How it is trained and starts, and what else it may be used for.
  config.skip(
    'drop_path_rate', 'layerscale_value', 'use_mask_token', 'out_features',
    'out_indices', 'stage_names', 'apply_layernorm', 'reshape_hidden_states',
  )  # fmt: skip
  root = config.text('model_type', 'dinov2')
  t, images = _shape(config, options), _images(config, options, root)
  pooling = family.pooling(options, POOLINGS, 'cls_mean')
  feature = t.width * len(pooling.split('_'))
  special = 1 + (images.registers or 0)
  values = images.patch**2 * images.channels
  own = f'{_CLASSES[root]}ForImageClassification'
  return Model(
    family.backbone(
      t,
      storage=options.storage,
      stem=functools.partial(_stem, t, images),
      final=lambda key: family.norm(t),
      embed=functools.partial(_embed, t, images),
      features=functools.partial(_features, t, pooling, special),
      head=family.linear_head(feature, options.classes),
      tokens=special + images.cells**2,
      stem_flops=2.0 * images.cells**2 * values * t.width,
      width=feature,
      reads=1 if pooling == 'cls' else None,
    ),
    names(root),
    prefix=f'{root}.',
    ignored=(rf'({root}\.)?embeddings.mask_token', r'classifier\..*'),
    reference=own if pooling == 'cls_mean' else '',
    heads=(r'classifier\..*',),
    unread=config.unread(),
  )


def _shape(config: Settings, options: Options):
  width = config.integer('hidden_size', 768)
  return family.shape(
    options,
    activation=config.choice('hidden_act', 'gelu', family.ACTIVATIONS),
    blocks=config.blocks('num_hidden_layers', 12),
    width=width,
    heads=config.integer('num_attention_heads', 12),
    mlp_width=int(width * config.number('mlp_ratio', 4)),
    norm_eps=config.number('layer_norm_eps', 1e-6),
    qkv_bias=config.flag('qkv_bias', True),
    layer_scale=True,
  )


def _images(config: Settings, options: Options, root: str) -> _Images:
  channels = config.integer('num_channels', 3)
  center, spread = family.pixels(options, channels, *vit.PIXELS['deit'])
  newer = root == REGISTERS
  registers = config.integer('num_register_tokens', 4, low=0) if newer else None
  patch = config.side('patch_size', 16 if newer else 14)
  trained = config.side('image_size', 224)
  image = options.image_side or trained
  for side in (trained, image):
    if side % patch:
      raise ValueError(
        f'images of {side} x {side} are not cut evenly by patch_size={patch} '
        'of config.json; allowed: multiples of it. Mend image_size, or what '
        'the preprocessor makes.'
      )
  return _Images(
    patch, channels, image // patch, trained // patch, registers, center, spread
  )


def _stem(t: TransformerConfig, images: _Images, keys) -> Tree:
  patch, width = images.patch, t.width
  out = {
    'kernel': family.table(keys[0], patch, patch, images.channels, width),
    'bias': jnp.zeros(width),
    'position': family.table(keys[1], 1, images.known**2 + 1, width),
    'cls': family.table(keys[2], 1, 1, width),
  }
  if images.registers is not None:
    key = jax.random.fold_in(keys[2], 1)
    out['registers'] = family.table(key, 1, images.registers, width)
  return out


def _embed(t: TransformerConfig, images: _Images, params, inputs):
  newer = images.registers is not None
  stem = jax.tree.map(lambda p: p.astype(t.dtype), params['stem'])
  x = vit.embed_patches(stem['kernel'], inputs, images.center, images.spread)
  x = x + lead(stem['bias'], x)
  position = params['stem']['position'][0]
  grid = position[1:].reshape(images.known, images.known, t.width)
  grid = resized(grid, images.cells, smooth=newer).reshape(-1, t.width)
  x = x + grid.astype(t.dtype)[None]
  first = [stem['cls'] + position[None, :1].astype(t.dtype)]
  first += [stem['registers']] if newer else []
  first = [jnp.broadcast_to(f, (len(x), *f.shape[1:])) for f in first]
  return jnp.concatenate([*first, x], axis=1)


def _features(
  t: TransformerConfig, pooling: str, special: int, params, x, mask
):
  """special: how many tokens, at the start, are no patches."""
  del mask
  x = transformer.normalize(t, params['final'], x, 'float32')
  read = {
    'cls': lambda: x[:, 0],
    'mean': lambda: jnp.mean(x[:, special:], axis=1),
  }
  return jnp.concatenate([read[name]() for name in pooling.split('_')], axis=-1)


def resized(grid, side: int, smooth: bool):
  """Positions [n, n, D] interpolated to [side, side, D] by cubics, float32.

  smooth: as with registers, with antialiasing; the first DINOv2 has none, and
  PyTorch's other cubic.
  """
  grid = grid.astype(jnp.float32)
  known = grid.shape[0]
  if side == known:
    return grid
  if smooth:
    return jax.image.resize(grid, (side, side, grid.shape[-1]), 'cubic')
  weights = jnp.asarray(_cubic(known, side))
  return jnp.einsum('in,jm,nmd->ijd', weights, weights, grid)


def _cubic(known: int, side: int) -> np.ndarray:
  """What each of `side` places is of `known` ones, float32 [side, known]: cubic
  convolution with a = -0.75 (Keys, 1981), its edges repeated."""
  a = -0.75
  place = (np.arange(side) + 0.5) * known / side - 0.5
  left = np.floor(place)
  out = np.zeros((side, known), np.float32)
  for step in (-1, 0, 1, 2):
    d = np.abs(place - left - step)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    column = np.clip(left + step, 0, known - 1).astype(int)
    np.add.at(out, (np.arange(side), column), np.where(d <= 1, near, far))
  return out


def names(root: str) -> dict[str, Name | str]:
  """The names in files."""
  block = f'{root}.encoder.layer.{{}}'
  return vit.names(root) | {
    'stem/registers': Name(f'{root}.embeddings.register_tokens'),
    'blocks/norm1': f'{block}.norm1',
    'blocks/norm2': f'{block}.norm2',
    'blocks/layer_scale1': Name(f'{block}.layer_scale1.lambda1'),
    'blocks/layer_scale2': Name(f'{block}.layer_scale2.lambda1'),
    'blocks/mlp/up': f'{block}.mlp.fc1',
    'blocks/mlp/down': f'{block}.mlp.fc2',
  }
