"""What GPT-2 and the families in the layout of LLaMA share: a causal language
model on token embeddings."""

from __future__ import annotations

from collections.abc import Callable

from fedms_jax.core.types import Backbone, Tree
from fedms_jax.models import family, sequences, transformer
from fedms_jax.models.family import Options
from fedms_jax.models.transformer import TransformerConfig

HEADS = ('classification', 'causal_lm')
HEAD_TENSORS = (r'score\..*',)  # of classifiers in files


def reference(kind: str, lm: str, options: Options) -> str:
  """The class of transformers, see `Model`."""
  if options.head == 'causal_lm':
    return f'{kind}{lm}'
  return f'{kind}ForSequenceClassification'


def backbone(
  t: TransformerConfig,
  options: Options,
  *,
  stem: Callable,
  embed: Callable,
  vocabulary: int,
  tokens: int,
  tied: bool,
  cap: float = 0.0,
) -> Backbone:
  """Next-token logits [B, T, V] by a frozen readout, or a linear head (without
  bias, as in the reference) over the last token of a sequence.

  Sequences are padded on the right with negative tokens, which the causal
  attention never sees. cap: see `family.readout`.
  """
  lm = family.choose('`Options.head`', options.head, HEADS) == 'causal_lm'
  family.choose('`Options.pooling`', options.pooling, ('last',))

  def final(key) -> Tree:
    out = {'norm': family.norm(t)}
    if lm and not tied:
      out['readout'] = family.table(key, vocabulary, t.width)
    return out

  def features(params, x, mask):
    norm = params['final']['norm']
    if lm:
      return transformer.normalize(t, norm, x)
    return transformer.normalize(t, norm, sequences.last(x, mask), 'float32')

  if lm:
    head = family.readout(t, tokens, vocabulary, cap)
  else:
    head = family.linear_head(t.width, options.classes, bias=False)
  return family.backbone(
    t,
    storage=options.storage,
    stem=stem,
    final=final,
    embed=embed,
    features=features,
    head=head,
    tokens=tokens,
    mask=lambda inputs: inputs >= 0,
    masked=False,
  )
