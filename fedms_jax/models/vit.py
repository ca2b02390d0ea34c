"""The vision transformer (ViT, arXiv 2010.11929): built-in and loaded.

DeiT (arXiv 2012.12877) adds a distillation token beside the class token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Backbone, Tree
from fedms_jax.models import family, transformer
from fedms_jax.models.family import Model, Name, Options
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class VitConfig:
  """A ViT for uint8 images [image, image, channels].

  pooling: 'cls' (class token) or 'mean'. center, spread: pixels become
  (x / 255 - center) / spread, one value for all channels or one for each.
  distilled: whether there is a distillation token. storage: of the parameters.
  masked: inputs are {'image', 'hidden' [B, N]}; of hidden patches a mask token
  is seen in place of their pixels, and the head gives the values of each patch
  [B, N, P] (SimMIM, arXiv 2111.09886).
  """

  transformer: TransformerConfig
  image: int
  channels: int
  patch: int
  classes: int
  pooling: str = 'cls'
  center: float | tuple[float, ...] = 0.5
  spread: float | tuple[float, ...] = 0.5
  distilled: bool = False
  storage: str = 'float32'
  masked: bool = False


def patches(images, side: int):
  """Cuts images [B, H, W, C] into flat patches [B, T, side * side * C].

  A reshape and not a convolution: convolutions inside `lax.scan` or under
  `vmap` run 4 to 14 times slower on XLA:CPU.
  """
  b, h, w, c = images.shape
  x = images.reshape(b, h // side, side, w // side, side, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, side * side * c)


def cells(config: Settings, usual: int) -> tuple[int, int]:
  """(side of a patch, how many there are) of a config.json. usual: the side
  where it gives none."""
  image = config.side('image_size', 224)
  patch = config.side('patch_size', usual)
  if image % patch:
    raise ValueError(
      f'config.json has image_size={image} and patch_size={patch}; allowed: a '
      'patch_size that divides it. Mend config.json.'
    )
  return patch, (image // patch) ** 2


def embed_patches(kernel, images, center, spread):
  """Patch embeddings [B, T, D] of uint8 images [B, H, W, C], by a kernel
  [P, P, C, D], in the type of the kernel."""
  center, spread = jnp.asarray(center), jnp.asarray(spread)
  pixels = images.astype(kernel.dtype) / 255
  center, spread = (
    lead(x.astype(kernel.dtype), pixels) for x in (center, spread)
  )
  pixels = (pixels - center) / spread
  flat = kernel.reshape(-1, kernel.shape[-1])
  return patches(pixels, kernel.shape[0]) @ flat


def backbone(config: VitConfig) -> Backbone:
  """The ViT as a `Backbone`; `ValueError` if patches do not tile the image."""
  c, t = config, config.transformer
  if c.image % c.patch:
    raise ValueError(
      f'`VitConfig.patch`={c.patch} does not divide the image side {c.image}; '
      'allowed: a divisor. Change `VitConfig.patch` or `VitConfig.image`.'
    )
  if t.width % t.heads:
    raise ValueError(
      f'`TransformerConfig.heads`={t.heads} does not divide '
      f'`TransformerConfig.width`={t.width}; allowed: a divisor. Change one of '
      'them.'
    )
  cells = (c.image // c.patch) ** 2
  values = c.patch**2 * c.channels
  special = ['cls', 'distillation'] if c.distilled else ['cls']
  tokens = cells + len(special)

  def stem(keys) -> Tree:
    kernel = jax.random.normal(keys[0], (values, t.width)) * values**-0.5
    out = {
      'kernel': kernel.reshape(c.patch, c.patch, c.channels, t.width),
      'bias': jnp.zeros(t.width),
      'position': family.table(keys[1], 1, tokens, t.width),
    }
    for number, name in enumerate(special):
      key = jax.random.fold_in(keys[2], number) if number else keys[2]
      out[name] = family.table(key, 1, 1, t.width)
    if c.masked:
      out['mask'] = family.table(jax.random.fold_in(keys[2], 2), t.width)
    return out

  def embed(params, inputs):
    images = inputs['image'] if c.masked else inputs
    stem = jax.tree.map(lambda p: p.astype(t.dtype), params['stem'])
    x = embed_patches(stem['kernel'], images, c.center, c.spread)
    x = x + lead(stem['bias'], x)
    if c.masked:
      hidden = inputs['hidden'][..., None]
      x = jnp.where(hidden, lead(stem['mask'], x), x)
    shape = (x.shape[0], 1, t.width)
    first = [jnp.broadcast_to(stem[name], shape) for name in special]
    return jnp.concatenate([*first, x], axis=1) + stem['position']

  def features(params, x, mask):
    del mask
    first = len(special)
    if c.masked:
      return transformer.normalize(t, params['final'], x[:, first:], 'float32')
    x = x[:, 0] if c.pooling == 'cls' else jnp.mean(x[:, first:], axis=1)
    return transformer.normalize(t, params['final'], x, 'float32')

  head = family.linear_head(t.width, c.classes)
  if c.masked:
    head = family.linear_head(t.width, values)
    head = head._replace(flops=cells * head.flops)
  return family.backbone(
    t,
    storage=c.storage,
    stem=stem,
    final=lambda key: family.norm(t),
    embed=embed,
    features=features,
    head=head,
    tokens=tokens,
    stem_flops=2.0 * cells * values * t.width,
    reads=1 if c.pooling == 'cls' and not c.masked else None,
  )


def names(root: str) -> dict[str, Name | str]:
  """The names in files of ViT (`vit`) and DeiT (`deit`)."""
  stem, block = f'{root}.embeddings', f'{root}.encoder.layer.{{}}'
  patch = f'{stem}.patch_embeddings.projection'
  return {
    'stem/kernel': Name(f'{patch}.weight', (2, 3, 1, 0)),
    'stem/bias': Name(f'{patch}.bias'),
    'stem/position': Name(f'{stem}.position_embeddings'),
    'stem/cls': Name(f'{stem}.cls_token'),
    'stem/distillation': Name(f'{stem}.distillation_token'),
    'blocks/norm1': f'{block}.layernorm_before',
    'blocks/attn/q': f'{block}.attention.attention.query',
    'blocks/attn/k': f'{block}.attention.attention.key',
    'blocks/attn/v': f'{block}.attention.attention.value',
    'blocks/attn/o': f'{block}.attention.output.dense',
    'blocks/norm2': f'{block}.layernorm_after',
    'blocks/mlp/up': f'{block}.intermediate.dense',
    'blocks/mlp/down': f'{block}.output.dense',
    'final': f'{root}.layernorm',
    'head': 'classifier',
  }


PIXELS = {
  'vit': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  'deit': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


_CLASSES = {'vit': 'ViT', 'deit': 'DeiT'}


def model(config: Settings, options: Options) -> Model:
  """A ViT or DeiT of config.json.

  Of DeiT the class token alone is read, as its plain classifier does; the
  pair of heads for the distillation token is left.
  """
  family.choose('`Options.head`', options.head, ('classification',))
  root = config.text('model_type', 'vit')
  t = family.shape(
    options,
    activation=config.choice('hidden_act', 'gelu', family.ACTIVATIONS),
    blocks=config.blocks('num_hidden_layers', 12),
    width=config.integer('hidden_size', 768),
    heads=config.integer('num_attention_heads', 12),
    mlp_width=config.integer('intermediate_size', 3072),
    norm_eps=config.number('layer_norm_eps', 1e-12),
    qkv_bias=config.flag('qkv_bias', True),
  )
  config.flag('tie_word_embeddings', True)  # there are none
  channels = config.integer('num_channels', 3)
  usual = PIXELS[root]
  center, spread = family.pixels(options, channels, *usual)
  shape = VitConfig(
    t,
    image=config.side('image_size', 224),
    channels=channels,
    patch=config.side('patch_size', 16),
    classes=options.classes,
    pooling=family.pooling(options, ('cls', 'mean'), 'cls'),
    center=center,
    spread=spread,
    distilled=root == 'deit',
    storage=options.storage,
  )
  heads = r'((cls_|distillation_)?classifier|decoder)\..*'
  own = f'{_CLASSES[root]}ForImageClassification'
  return Model(
    backbone(shape),
    names(root),
    prefix=f'{root}.',
    ignored=(rf'({root}\.)?pooler\..*', rf'({root}\.)?.*mask_token', heads),
    reference=own if shape.pooling == 'cls' else '',
    heads=(heads,),
    unread=config.unread(),
  )
