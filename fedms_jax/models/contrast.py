"""The contrast of two towers, one of images and one of texts (CLIP, arXiv
2103.00020), as one backbone of which one tower or both adapt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core.costs import BackboneCost, BlockCost
from fedms_jax.core.types import Backbone, Span, Tree
from fedms_jax.models import costs, family, storages, transformer
from fedms_jax.models.family import Model, Name, Options
from fedms_jax.models.transformer import TransformerConfig

CHOICES = ('image', 'text', 'both')


class Tower(NamedTuple):
  """One tower; its functions see its own part of the parameters.

  stem: three keys -> params. final: key -> params. embed: (stem, inputs) ->
  [B, T, D]. mask: inputs -> bool [B, T] or None. feature: (final, x, mask) ->
  the embedding, float32 [B, P]. names: as in `Model`. reads: how many tokens,
  the first ones, the feature reads; None: all.
  """

  transformer: TransformerConfig
  tokens: int
  stem_flops: float
  stem: Callable[[Any], Tree]
  final: Callable[[Any], Tree]
  embed: Callable[[Tree, Any], Any]
  mask: Callable[[Any], Any]
  feature: Callable[[Tree, Any, Any], Any]
  names: dict[str, Name]
  reads: int | None = None


def unit(x):
  """Features [..., P] of length 1."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Similarity(NamedTuple):
  """Logits of embeddings u and v of length 1: exp(logit_scale) u v, and
  logit_bias where there is one.

  scale, bias: what fresh ones are; without a bias, the scale is no vector of
  one, as it is in the files with both.
  """

  scale: float = 100.0
  bias: float | None = None

  def init(self) -> Tree:
    """Fresh parameters, for `final`."""
    scale = jnp.log(jnp.float32(self.scale))
    if self.bias is None:
      return {'logit_scale': scale}
    return {
      'logit_scale': scale[None],
      'logit_bias': jnp.full(1, self.bias, jnp.float32),
    }

  def logits(self, final: Tree, one, other):
    """[B, C] of [B, P] and [C, P], both of length 1."""
    y = jnp.exp(final['logit_scale']) * one @ other.T
    return y if self.bias is None else y + final['logit_bias']


COSINE = Similarity()  # of CLIP
SCALE_NAMES = {
  f'final/{name}': Name(name) for name in ('logit_scale', 'logit_bias')
}


def model(
  towers: dict[str, Tower],
  options: Options,
  projected: int,
  similarity: Similarity = COSINE,
) -> Model:
  """The contrast of the towers `image` and `text`, see `Pair`."""
  choice = family.choose('`Options.tower`', options.tower, CHOICES)
  adapted = tuple(towers) if choice == 'both' else (choice,)
  pair = Pair(towers, adapted, projected, options, similarity)
  backbone = Backbone(
    blocks=pair.blocks,
    width=2 * projected,
    init=pair.init,
    embed=pair.embed,
    mask=lambda inputs: towers['text'].mask(inputs['text']),
    run=pair.run,
    features=pair.features,
    init_head=lambda key: {},
    logits=pair.logits,
    cost=pair.cost(),
    reads=towers['image'].reads if 'image' in adapted else None,
  )
  return Model(backbone, pair.names(), ignored=(r'.*position_ids',))


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """Both towers in the shape of one backbone.

  Inputs are {'image': uint8 [B, H, W, C], 'text': int32 [B, T]}; features
  [B, 2 P] are both embeddings side by side; logits [B, B] compare the image
  of a row with the text of a column.

  The blocks are those of the adapted tower; the other one lies in the stem,
  so that its embedding is part of the frozen prefix. With both adapted, a
  block holds one block of each (`image/attn/q`, `text/attn/q`), paired from
  the output down; what is left of the deeper tower lies in the stem, frozen.

  Activations are packed in one array [B, T, W]: the tokens of the image and
  then of the text, of a frozen tower one token with its embedding.
  """

  towers: dict[str, Tower]
  adapted: tuple[str, ...]
  projected: int
  options: Options
  similarity: Similarity

  @property
  def blocks(self) -> int:
    """L: blocks that all adapted towers have."""
    return min(self.towers[n].transformer.blocks for n in self.adapted)

  def below(self, name: str) -> int:
    """How many blocks of a tower lie in the stem."""
    blocks = self.towers[name].transformer.blocks
    return blocks - self.blocks if name in self.adapted else blocks

  def init(self, key) -> Tree:
    stems, stacks, finals = {}, {}, {}
    for number, (name, tower) in enumerate(self.towers.items()):
      *keys, last = jax.random.split(jax.random.fold_in(key, number), 4)
      stems[name] = tower.stem(keys)
      finals[name] = tower.final(jax.random.fold_in(last, 1))
      stack = transformer.init_blocks(tower.transformer, last)
      cut = self.below(name)
      if cut:
        stems[name]['blocks'] = jax.tree.map(lambda x, n=cut: x[:n], stack)
      if name in self.adapted:
        stacks[name] = jax.tree.map(lambda x, n=cut: x[n:], stack)
    if len(self.adapted) == 1:
      (stacks,) = stacks.values()
    finals |= self.similarity.init()
    return storages.stored(
      {'stem': stems, 'blocks': stacks, 'final': finals},
      self.options.storage,
      self.options.dtype,
    )

  def embed(self, params: Tree, inputs):
    out = {}
    for name, tower in self.towers.items():
      stem = params['stem'][name]
      x = tower.embed(stem, inputs[name])
      if 'blocks' in stem:
        lower = Span(0, self.below(name), (stem['blocks'], None))
        x = transformer.run(tower.transformer, [lower], x)
      if name not in self.adapted:
        final, mask = params['final'][name], tower.mask(inputs[name])
        x = tower.feature(final, x, mask)[:, None].astype(x.dtype)
      out[name] = x
    return self._pack(out)

  def run(self, spans, x, mask, adapter=None, reads=None):
    """See `Backbone`; with `reads`, tokens that no feature reads are zeros."""
    del mask  # texts are causal, or filled up
    arrays = self._unpack(x)
    for name in self.adapted:
      own = spans
      if len(self.adapted) > 1:
        own = [s._replace(params=_of_tower(s.params, name)) for s in spans]
      tower, x = self.towers[name], arrays[name]
      own_reads = None if reads is None else tower.reads
      y = transformer.run(tower.transformer, own, x, None, adapter, own_reads)
      rest = x.shape[1] - y.shape[1]
      arrays[name] = jnp.pad(y, ((0, 0), (0, rest), (0, 0)))
    return self._pack(arrays)

  def features(self, params: Tree, x, mask):
    arrays = self._unpack(x)
    out = [
      tower.feature(params['final'][name], arrays[name], mask)
      if name in self.adapted
      else arrays[name][:, 0].astype(jnp.float32)
      for name, tower in self.towers.items()
    ]
    return jnp.concatenate(out, axis=-1)

  def logits(self, params: Tree, head: Tree, x):
    image, text = (unit(y) for y in jnp.split(x, 2, axis=-1))
    return self.similarity.logits(params['final'], image, text)

  def cost(self) -> BackboneCost:
    """Frozen blocks count as stem; tokens are those of the longer tower."""
    stem, most, unroll, blocks, ends = 0.0, 0, 0, [], []
    for name, tower in self.towers.items():
      tokens = (name == 'text' and self.options.tokens) or tower.tokens
      c = costs.transformer(
        tower.transformer, tokens, tower.stem_flops, 0.0, reads=tower.reads
      )
      stem += c.stem + self.below(name) * c.block
      if name not in self.adapted:
        continue
      most, unroll = max(most, tokens), max(unroll, c.unroll)
      root = f'{name}/' if len(self.adapted) > 1 else ''
      spared = tuple((root + layer, size) for layer, size in c.spared)
      one = BlockCost(c.block, c.activation, spared, c.loose, c.work)
      blocks.append(one)
      ends.append(c.last or one)
    block = _together(blocks)
    return BackboneCost(
      stem, block.flops, 0.0, most, block.activation, block.spared,
      loose=block.loose, unroll=unroll, work=block.work,
      last=None if ends == blocks else _together(ends),
    )  # fmt: skip

  def names(self) -> dict[str, Name]:
    """The names of both towers at their paths here."""
    out = dict(SCALE_NAMES)
    for tower, part in self.towers.items():
      for path, name in part.names.items():
        top, rest = path.split('/', 1)
        if top != 'blocks':
          out[f'{top}/{tower}/{rest}'] = name
          continue
        out[f'stem/{tower}/blocks/{rest}'] = name
        if tower in self.adapted:
          joint = f'{tower}/' if len(self.adapted) > 1 else ''
          moved = name._replace(first=self.below(tower))
          out[f'blocks/{joint}{rest}'] = moved
    return out

  def _widths(self) -> dict[str, int]:
    return {
      name: tower.transformer.width if name in self.adapted else self.projected
      for name, tower in self.towers.items()
    }

  def _pack(self, arrays: dict[str, Any]):
    most = max(self._widths().values())
    widened = [
      jnp.pad(arrays[name], ((0, 0), (0, 0), (0, most - width)))
      for name, width in self._widths().items()
    ]
    return jnp.concatenate(widened, axis=1)

  def _unpack(self, x) -> dict[str, Any]:
    count = self.towers['image'].tokens if 'image' in self.adapted else 1
    pieces = {'image': x[:, :count], 'text': x[:, count:]}
    return {name: pieces[name][..., :w] for name, w in self._widths().items()}


def _of_tower(params, name: str):
  """(weights, LoRA or None) of one tower of a joint span."""
  weights, lora = params
  return weights[name], (lora or {}).get(name)


def _together(blocks: list[BlockCost]) -> BlockCost:
  """One block of each tower as one, computed one after the other."""
  flops, kept, spared, loose, work = zip(*blocks, strict=True)
  return BlockCost(
    sum(flops), sum(kept), tuple(x for own in spared for x in own), sum(loose),
    max(work),
  )  # fmt: skip
