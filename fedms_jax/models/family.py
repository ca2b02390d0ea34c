"""What the families of loaded models have in common.

A family is a function `model(config.json, Options) -> Model`: it turns the
words of its config.json into a `TransformerConfig`, and says its stem, its
head and how the tensors of its files are named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Backbone, Task, Tree
from fedms_jax.models import costs, linear, storages, transformer
from fedms_jax.models.transformer import TransformerConfig

STORAGES = ('float32', 'bfloat16', 'int8')


@dataclasses.dataclass(frozen=True)
class Options:
  """What a user chooses of a loaded model; the rest says its config.json.

  head: classification, causal_lm, masked_lm, zero_shot or contrast. pooling:
  the feature of a sequence ('': the first that the family allows). tower: of
  CLIP, the one whose blocks adapt: image, text or both. tokens: T of the
  inputs, for the cost (0: the most that the model takes). dtype: compute
  type. storage: type of the frozen parameters; int8 stores the kernels of the
  blocks so, and the rest in the compute type. image_mean, image_std: pixels
  become (x / 255 - mean) / std, one value per channel ((): as the family's
  are). image_side: of the images, for families that interpolate their
  positions (0: as in config.json). padding: the token that fills up texts, for
  families that read it (-1: config.json's). keep_head: the classifier of the
  files is used, on the feature that it was trained on.
  """

  head: str = 'classification'
  classes: int = 0
  pooling: str = ''
  tower: str = 'image'
  tokens: int = 0
  dtype: str = 'float32'
  storage: str = 'float32'
  remat: bool = False
  unroll: int = 3
  image_mean: tuple[float, ...] = ()
  image_std: tuple[float, ...] = ()
  image_side: int = 0
  padding: int = -1
  keep_head: bool = False


class Part(NamedTuple):
  """`count` pieces from the `first` on, of `of` equal ones."""

  first: int = 0
  of: int = 1
  count: int = 1

  def along(self, size: int) -> slice:
    """Where it lies on an axis that is so long."""
    piece = size // self.of
    return slice(self.first * piece, (self.first + self.count) * piece)


class Name(NamedTuple):
  """Where a leaf lies in a family's files.

  tensor: its name there; `{}` stands for the number of the block. axes: the
  permutation of the file's axes that gives ours, () for none. part: which
  share of the tensor it is, along the axis that is our last one. first: number
  of the first block.
  """

  tensor: str
  axes: tuple[int, ...] = ()
  part: Part = Part()
  first: int = 0


class Prompted(NamedTuple):
  """A text tower whose texts begin with a soft prompt (CoOp, arXiv
  2109.01134).

  blocks: L of the tower. width: of a context vector. room: the most tokens of
  a text, marks of start and end included. features: (text, context [T,
  width]) -> class features of length 1, float32 [C, P], where `text` are the
  tower's parameters with 'tokens', int32 [C, n]: the names of the classes as
  the tower reads them, padded with negative ones; a third argument, a
  `Beside`, adds to the last blocks. flops: (shapes of text, T of the context)
  -> FLOPs of the class features, forward. patches: (parameters of the image
  tower, x [B, T, D] out of its last block) -> features of length 1 of each
  patch, float32 [B, M, P].
  """

  blocks: int
  width: int
  room: int
  features: Callable[..., Any]
  flops: Callable[[Tree, int], float]
  patches: Callable[[Tree, Any], Any]


class Words(NamedTuple):
  """What a text model can take: the most tokens, and how many ids."""

  positions: int
  vocabulary: int


class Model(NamedTuple):
  """A loadable model.

  names: our paths -> theirs. The path of a leaf ('stem/word') names its tensor,
  the path of a layer ('blocks/attn/q') names the layer, whose kernel
  (transposed), scale and bias are its weight, weight and bias. Text is short
  for a `Name`. prefix: what files of the bare model leave out of their tensors'
  names. ignored: patterns of tensors that files may have and this model does
  not use. prompted: makes the class features of zero_shot anew. reference: the
  class of transformers that computes the same logits, whose head therefore fits
  this feature; '' if there is none. featured: the one that gives the feature
  then. heads: patterns of tensors of heads that belong to the weights as they
  were. tied: tensors that files may repeat -> the tensor that they must equal.
  unread: keys of config.json that are not known. sigmoid: a contrast is learned
  pair by pair. task: if its head does not say it. network: its form, or None.
  """

  backbone: Backbone
  names: Mapping[str, Name | str]
  prefix: str = ''
  ignored: tuple[str, ...] = ()
  prompted: Prompted | None = None
  reference: str = ''
  featured: str = 'AutoModel'
  heads: tuple[str, ...] = ()
  tied: Mapping[str, str] = {}
  unread: tuple[str, ...] = ()
  sigmoid: bool = False
  task: Task | None = None
  network: Any = None


class Head(NamedTuple):
  """The last layer. init, logits, once: as in `Backbone`. flops: of one
  example. vocabulary: V of logits by token."""

  init: Callable[[Any], Tree]
  logits: Callable[[Tree, Tree, Any], Any]
  flops: float
  once: Callable[[Tree, Any], Tree] = lambda whole, x: whole
  vocabulary: int = 0


def choose(what: str, got: str, allowed: Collection[str]) -> str:
  """`got`, or the first that is allowed if it is empty."""
  if not got:
    return next(iter(allowed))
  if got not in allowed:
    raise ValueError(
      f'{what}={got!r} does not fit this model; allowed: '
      f'{", ".join(allowed)}. Choose one of them.'
    )
  return got


ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
  'silu': 'silu',
  'swish': 'silu',
  'relu': 'relu',
}


def shape(options: Options, *, activation: str, **fields) -> TransformerConfig:
  """A `TransformerConfig` from what config.json says and a user chooses."""
  choose('`Options.storage`', options.storage, STORAGES)
  t = TransformerConfig(
    activation=ACTIVATIONS[activation],
    dtype=options.dtype,
    remat=options.remat,
    unroll=options.unroll,
    **fields,
  )
  if not t.head_width and t.width % t.heads or t.heads % t.groups:
    raise ValueError(
      f'config.json asks for {t.heads} heads over a width of {t.width} and '
      f'{t.groups} key and value heads; allowed: divisors. Mend config.json.'
    )
  return t


def pooling(options: Options, allowed: Sequence[str], own: str) -> str:
  """The feature of a classification, by default the first that is allowed.

  own: the one that the classifiers of files are trained on.
  """
  if not options.keep_head:
    return choose('`Options.pooling`', options.pooling, allowed)
  if options.pooling not in ('', own):
    raise ValueError(
      f'`Options.keep_head` with `Options.pooling`={options.pooling}: the head '
      f'of this family is trained on {own!r}. Leave one of them out.'
    )
  return own


def length(options: Options, most: int) -> int:
  """T of the inputs; `ValueError` if the model has fewer positions."""
  if options.tokens > most:
    raise ValueError(
      f'inputs of {options.tokens} tokens are longer than the {most} positions '
      'of the model; shorten the texts.'
    )
  return options.tokens or most


def pixels(
  options: Options, channels: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """(mean, std) of pixels: as chosen, else as the family's are."""
  chosen = options.image_mean or tuple(mean), options.image_std or tuple(std)
  for name, values in zip(('image_mean', 'image_std'), chosen, strict=True):
    if len(values) != channels:
      raise ValueError(
        f'{name}={values} has {len(values)} values, but the model has '
        f'{channels} channels; allowed: one value per channel.'
      )
  return chosen


def table(key, *axes: int):
  """A fresh embedding table."""
  return 0.02 * jax.random.normal(key, axes)


def norm(t: TransformerConfig) -> Tree:
  """A fresh norm."""
  start = jnp.zeros if t.norm == 'rms_offset' else jnp.ones
  scale = {'scale': start(t.width)}
  return scale | {'bias': jnp.zeros(t.width)} if t.norm == 'layer' else scale


def linear_head(width: int, classes: int, bias: bool = True) -> Head:
  """A new linear layer over features [B, D], in float32."""
  return Head(
    init=lambda key: linear.init(key, width, classes, bias),
    logits=lambda params, head, x: linear.apply(head, x),
    flops=2.0 * width * classes,
  )


def readout(
  t: TransformerConfig, tokens: int, vocabulary: int, cap: float = 0.0
) -> Head:
  """Logits [B, T, V] by a frozen table [V, D]: `final/readout`, or the input
  embedding if they are tied; `final/bias` is added where there is one. cap:
  logits y become cap tanh(y / cap), 0: not."""

  def table(params):
    final = params['final']
    return final['readout'] if 'readout' in final else params['stem']['word']

  def once(whole, x):
    params, head = whole
    rows = linear.cast(table(params), x)
    return {'final': params['final'] | {'readout': rows}}, head

  def logits(params, head, x):
    final = params['final']
    y = linear.readout(x, table(params))
    if cap:
      y = cap * jnp.tanh(y / cap)
    if 'bias' not in final:
      return y
    return y + lead(final['bias'].astype(jnp.float32), y)

  flops = 2.0 * tokens * t.width * vocabulary
  return Head(lambda key: {}, logits, flops, once, vocabulary)


def backbone(
  t: TransformerConfig,
  *,
  storage: str,
  stem: Callable[[Any], Tree],
  final: Callable[[Any], Tree],
  embed: Callable[[Tree, Any], Any],
  features: Callable[[Tree, Any, Any], Any],
  head: Head,
  tokens: int,
  stem_flops: float = 0.0,
  mask: Callable[[Any], Any] = lambda inputs: None,
  masked: bool = True,
  width: int = 0,
  reads: int | None = None,
) -> Backbone:
  """A `Backbone` on the stacked blocks.

  stem: three keys -> params. final: key -> params. masked: whether the blocks
  need the mask; behind causal attention, padding on the right is never seen.
  width: of the features, if it is not D. reads: how many tokens, the first
  ones, the features read; None: all.
  """

  def init(key) -> Tree:
    *keys, blocks = jax.random.split(key, 4)
    params = {
      'stem': stem(keys),
      'blocks': transformer.init_blocks(t, blocks),
      'final': final(jax.random.fold_in(blocks, t.blocks)),
    }
    return storages.stored(params, storage, t.dtype)

  def run(spans, x, mask, adapter=None, reads=None):
    mask = mask if masked else None
    return transformer.run(t, spans, x, mask, adapter, reads)

  return Backbone(
    blocks=t.blocks,
    width=width or t.width,
    init=init,
    embed=embed,
    mask=mask,
    run=run,
    features=features,
    init_head=head.init,
    logits=head.logits,
    cost=costs.transformer(
      t, tokens, stem_flops, head.flops, head.vocabulary, reads
    ),
    once=head.once,
    reads=reads,
  )
