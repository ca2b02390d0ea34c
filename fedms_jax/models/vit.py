"""The built-in vision transformer (ViT, arXiv 2010.11929)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedms_jax.base import Backbone, Tree
from fedms_jax.models import linear, transformer
from fedms_jax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class VitConfig:
  """A ViT for uint8 images [image, image, channels].

  pooling: 'cls' (class token) or 'mean'. center, spread: pixels become
  (x / 255 - center) / spread.
  """

  transformer: TransformerConfig
  image: int
  channels: int
  patch: int
  classes: int
  pooling: str = 'cls'
  center: float = 0.5
  spread: float = 0.5


def patches(images, side: int):
  """Cuts images [B, H, W, C] into flat patches [B, T, side * side * C].

  A reshape and not a convolution: convolutions inside `lax.scan` or under
  `vmap` run 4 to 14 times slower on XLA:CPU.
  """
  b, h, w, c = images.shape
  x = images.reshape(b, h // side, side, w // side, side, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, side * side * c)


def backbone(config: VitConfig) -> Backbone:
  """The ViT as a `Backbone`; `ValueError` if patches do not tile the image."""
  c, t = config, config.transformer
  if c.image % c.patch:
    raise ValueError(
      f'--model.patch={c.patch} does not divide the image side {c.image}; '
      'allowed: a divisor. Change --model.patch or --data.image_size.'
    )
  if t.width % t.heads:
    raise ValueError(
      f'--model.heads={t.heads} does not divide --model.width={t.width}; '
      'allowed: a divisor. Change one of them.'
    )
  tokens = (c.image // c.patch) ** 2
  values = c.patch**2 * c.channels

  def init(key) -> Tree:
    k = jax.random.split(key, 4)
    stem = {
      'kernel': jax.random.normal(k[0], (values, t.width)) * values**-0.5,
      'bias': jnp.zeros(t.width),
      'position': 0.02 * jax.random.normal(k[1], (tokens + 1, t.width)),
      'cls': 0.02 * jax.random.normal(k[2], (t.width,)),
    }
    final = {'scale': jnp.ones(t.width), 'bias': jnp.zeros(t.width)}
    blocks = transformer.init_blocks(t, k[3])
    return {'stem': stem, 'blocks': blocks, 'final': final}

  def embed(params, images):
    stem = jax.tree.map(lambda p: p.astype(t.dtype), params['stem'])
    pixels = (images.astype(t.dtype) / 255 - c.center) / c.spread
    x = patches(pixels, c.patch) @ stem['kernel'] + stem['bias']
    cls = jnp.broadcast_to(stem['cls'], (x.shape[0], 1, t.width))
    return jnp.concatenate([cls, x], axis=1) + stem['position']

  def features(params, x, mask):
    del mask
    norm = transformer.Norm('layer', t.norm_eps, 'float32')
    x = x[:, 0] if c.pooling == 'cls' else jnp.mean(x[:, 1:], axis=1)
    return norm.apply({'params': params['final']}, x)

  return Backbone(
    blocks=t.blocks,
    width=t.width,
    lora_scale=t.lora_scale,
    init=init,
    embed=embed,
    mask=lambda images: None,
    run=lambda spans, x, mask: transformer.run(t, spans, x, mask),
    features=features,
    init_head=lambda key: linear.init(key, t.width, c.classes),
    logits=lambda params, head, x: linear.apply(head, x),
    cost=transformer.cost(
      t,
      tokens + 1,
      stem=2.0 * tokens * values * t.width,
      head=2.0 * t.width * c.classes,
    ),
  )
