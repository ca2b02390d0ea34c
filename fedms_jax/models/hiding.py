"""Tasks of finding what was hidden: masked tokens, masked patches of images.

What is hidden is drawn anew each time that a row is trained on. In evaluation
it follows from the row alone: a score does not depend on which rows are looked
at together, and is the same each time.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.types import Batch, Task
from fedms_jax.models import tasks, vit

HIDDEN, REPLACED = 0.8, 0.1  # shares of the chosen tokens; the rest stays
_FACTOR = 2654435761  # of a hash (Knuth, The Art of Computer Programming 6.4)


class Tokens(NamedTuple):
  """How tokens are hidden: behind the id `mask`, or some of all `vocabulary`
  ids; each that may be with the chance `fraction`."""

  mask: int
  vocabulary: int
  fraction: float = 0.15


class Patches(NamedTuple):
  """How patches are hidden, and what is to be found.

  side: of a patch, in pixels. fraction: of the patches of an image; of N
  int(N (1 - fraction)) are seen. target: 'pixels', absolute differences of
  pixels in [-1, 1] (SimMIM, arXiv 2111.09886); 'normalized', squared ones of
  pixels less their patch's mean, over its deviation (MAE, arXiv 2111.06377).
  """

  side: int
  fraction: float = 0.6
  target: str = 'pixels'


def masked_lm(how: Tokens) -> Task:
  """Masked tokens (BERT, arXiv 1810.04805), drawn anew for each step.

  Of the tokens that 'targets' [B, T] allow, each is chosen with the chance
  `fraction`; of the chosen 8 in 10 become the mask, 1 in 10 a uniform id, and
  1 stays. All chosen ones are learned, and nothing else.
  """
  plain = tasks.masked_lm()
  assert plain.together is not None
  together = plain.together

  def hide(batch: Batch, key) -> Batch:
    if 'hidden' in batch:
      return batch
    keys = _row_keys(batch['inputs'], key)
    inputs, targets, hidden = jax.vmap(
      lambda k, x, y: _hidden_tokens(how, k, x, y)
    )(keys, batch['inputs'], batch['targets'])
    return batch | {'inputs': inputs, 'targets': targets, 'hidden': hidden}

  return plain._replace(
    loss=lambda logits, batch: plain.loss(logits, hide(batch, None)),
    score=lambda logits, batch: plain.score(logits, hide(batch, None)),
    hide=hide,
    together=lambda several, batch: together(several, hide(batch, None)),
  )


def _hidden_tokens(how: Tokens, key, tokens, allowed):
  """(inputs, targets, chosen), each [T], of one row."""
  which, fates, others = jax.random.split(key, 3)
  shape = tokens.shape
  chosen = (jax.random.uniform(which, shape) < how.fraction) & (allowed >= 0)
  fate = jax.random.uniform(fates, shape)
  other = jax.random.randint(others, shape, 0, how.vocabulary)
  inputs = jnp.where(chosen & (fate < HIDDEN), how.mask, tokens)
  replaced = chosen & (fate >= HIDDEN) & (fate < HIDDEN + REPLACED)
  inputs = jnp.where(replaced, other, inputs).astype(tokens.dtype)
  return inputs, jnp.where(chosen, allowed, -1), chosen


def masked_patches(how: Patches) -> Task:
  """Hidden patches of images [B, H, W, C], by predictions [B, N, P] of the P
  values of each of N patches.

  The loss is a mean over the values of hidden patches; nothing else is looked
  at. The score is the share of the variance of an image's hidden values that
  is explained: 1 is all, 0 what their own mean explains.
  """

  def hide(batch: Batch, key) -> Batch:
    if 'hidden' in batch:
      return batch
    images = batch['inputs']
    count = (images.shape[1] // how.side) * (images.shape[2] // how.side)
    seen = int(count * (1 - how.fraction))
    keys = _row_keys(images, key)
    noise = jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    return batch | {'hidden': rank >= seen}

  def found(logits, batch: Batch):
    """(predictions, targets) [B, N, P], how much each patch counts [B, N]."""
    batch = hide(batch, None)
    targets = _targets(how, batch['inputs'])
    chex.assert_equal_shape([logits, targets])
    counted = batch['hidden'] & batch['mask'][:, None]
    return logits.astype(jnp.float32), targets, counted.astype(jnp.float32)

  def loss(logits, batch: Batch):
    predicted, targets, counted = found(logits, batch)
    error = predicted - targets
    each = jnp.abs(error) if how.target == 'pixels' else jnp.square(error)
    total = jnp.sum(jnp.mean(each, axis=-1) * counted, axis=1)
    weights = jnp.sum(counted, axis=1)
    return total / jnp.maximum(weights, 1.0), weights

  def score(logits, batch: Batch):
    predicted, targets, counted = found(logits, batch)
    weights = jnp.sum(counted, axis=1)
    here = counted[..., None]
    values = jnp.maximum(weights * targets.shape[-1], 1.0)
    mean = jnp.sum(targets * here, axis=(1, 2)) / values
    spread = jnp.square(targets - mean[:, None, None]) * here
    error = jnp.square(predicted - targets) * here
    total = jnp.maximum(jnp.sum(spread, axis=(1, 2)), 1e-6)
    return 1.0 - jnp.sum(error, axis=(1, 2)) / total, weights

  return Task('explained variance', loss, score, kind='patches', hide=hide)


def _targets(how: Patches, images):
  """What is to be found, float32 [B, N, P]."""
  pixels = vit.patches(images, how.side).astype(jnp.float32) / 127.5 - 1.0
  if how.target == 'pixels':
    return pixels
  mean = jnp.mean(pixels, axis=-1, keepdims=True)
  variance = jnp.var(pixels, axis=-1, keepdims=True, ddof=1)
  return (pixels - mean) / jnp.sqrt(variance + 1e-6)


def _row_keys(rows, key):
  """A key for each of B rows: by the key and its place, or by what it holds."""
  if key is not None:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(
      jnp.arange(rows.shape[0])
    )
  flat = rows.reshape(rows.shape[0], -1).astype(jnp.uint32)
  factors = [pow(_FACTOR, i + 1, 1 << 32) for i in range(flat.shape[1])]
  words = jnp.asarray(np.array(factors, np.uint32))
  words = jnp.sum(flat * words[None, :], axis=1, dtype=jnp.uint32)
  return jax.vmap(lambda w: jax.random.fold_in(jax.random.key(0), w))(words)
