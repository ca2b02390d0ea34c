"""Tasks: what is learned and how it is scored, one number per example.

Numbers over several tokens are means over an example's tokens with the count
of tokens as weight, so that sums of examples are sums of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import token_logits
from fedms_jax.core.token_logits import TokenLogits
from fedms_jax.core.types import Batch, Task


def classification() -> Task:
  """Cross-entropy and accuracy of logits [B, C] against labels [B]."""

  def check(logits, batch: Batch):
    chex.assert_shape(batch['labels'], logits.shape[:1])
    chex.assert_rank(logits, 2)

  def loss(logits, batch: Batch):
    check(logits, batch)
    return _cross_entropy(logits, batch['labels']), _rows(batch)

  def score(logits, batch: Batch):
    check(logits, batch)
    return _hits(logits, batch['labels']), _rows(batch)

  return Task('accuracy', loss, score)


def regression() -> Task:
  """Numbers: logits [B, C] against 'values' [B, C], in units of their spread
  over the training rows.

  The loss is the mean over C of squared errors. Of that the score is 1 less:
  the share of the variance of the training rows that the model explains, 0 for
  who always says their mean. So it is a mean over rows, as every score is; the
  metric r2, in place of the variance of all, takes that of the rows scored.
  """

  def loss(logits, batch: Batch):
    chex.assert_equal_shape([logits, batch['values']])
    errors = logits.astype(jnp.float32) - batch['values']
    return jnp.mean(jnp.square(errors), axis=-1), _rows(batch)

  def score(logits, batch: Batch):
    values, weights = loss(logits, batch)
    return 1.0 - values, weights

  return Task('variance explained', loss, score, kind='values')


def multi_label() -> Task:
  """Any number of tags: logits [B, C] against 'tags' [B, C], 0 or 1.

  The loss is the mean over C of binary cross-entropies; the score is the
  Jaccard index of the tags over even odds and the right ones, 1 where there
  are none of both.
  """

  def check(logits, batch: Batch):
    chex.assert_equal_shape([logits, batch['tags']])
    chex.assert_rank(logits, 2)

  def loss(logits, batch: Batch):
    check(logits, batch)
    each = optax.sigmoid_binary_cross_entropy(
      logits.astype(jnp.float32), batch['tags'].astype(jnp.float32)
    )
    return jnp.mean(each, axis=-1), _rows(batch)

  def score(logits, batch: Batch):
    check(logits, batch)
    said, right = logits > 0, batch['tags'] > 0
    both = jnp.sum(said & right, axis=-1).astype(jnp.float32)
    either = jnp.sum(said | right, axis=-1).astype(jnp.float32)
    index = jnp.where(either > 0, both / jnp.maximum(either, 1.0), 1.0)
    return index, _rows(batch)

  return Task('Jaccard index', loss, score, kind='tags')


def ordinal() -> Task:
  """Levels in an order: logits [B, C - 1], the log odds that a row is above
  each level but the last, against labels [B].

  One binary question per step between levels (Frank and Hall, ECML 2001), all
  trained together (Niu et al., CVPR 2016): the loss is the mean of their
  cross-entropies. The level that is said is the number of questions with yes
  over even odds; the score is its accuracy.
  """

  def check(logits, batch: Batch):
    chex.assert_rank(logits, 2)
    chex.assert_shape(batch['labels'], logits.shape[:1])

  def loss(logits, batch: Batch):
    check(logits, batch)
    steps = jnp.arange(logits.shape[-1])
    above = batch['labels'][:, None] > steps[None, :]
    each = optax.sigmoid_binary_cross_entropy(
      logits.astype(jnp.float32), above.astype(jnp.float32)
    )
    return jnp.mean(each, axis=-1), _rows(batch)

  def score(logits, batch: Batch):
    check(logits, batch)
    right = level(logits) == batch['labels']
    return right.astype(jnp.float32), _rows(batch)

  return Task('accuracy', loss, score, kind='levels')


def level(logits):
  """The level [B] that ordinal logits [B, C - 1] say."""
  return jnp.sum(logits > 0, axis=-1)


def causal_lm() -> Task:
  """Next tokens: logits [B, T, V] at t against the token at t + 1.

  The tokens are 'targets' [B, T] where the data has them (a completion after
  its prompt), else 'inputs'; negative ones are not learned.
  """

  def targets(batch: Batch):
    return batch.get('targets', batch['inputs'])[:, 1:]

  def last(batch: Batch):
    return jnp.pad(targets(batch), ((0, 0), (0, 1)), constant_values=-1)

  return _tokens(lambda x, batch: (x[:, :-1], targets(batch)), last)


def masked_lm() -> Task:
  """Masked tokens: logits [B, T, V] against 'targets' [B, T], of which the
  negative ones are not learned (BERT, arXiv 1810.04805)."""

  def targets(batch: Batch):
    return batch['targets']

  return _tokens(lambda x, batch: (x, targets(batch)), targets)


def contrast() -> Task:
  """Image-text contrast (CLIP, arXiv 2103.00020): logits [B, B] of images
  against the texts of the same batch, of which the diagonal belongs together.

  The loss is the mean of both directions, the score the accuracy of finding
  an image's text.
  """

  def both(logits, batch: Batch):
    real = batch['mask']
    chex.assert_shape(logits, (len(real), len(real)))
    floor = jnp.finfo(jnp.float32).min / 2
    by_image = jnp.where(real[None, :], logits.astype(jnp.float32), floor)
    by_text = jnp.where(real[None, :], logits.astype(jnp.float32).T, floor)
    return by_image, by_text, jnp.arange(len(real))

  def loss(logits, batch: Batch):
    by_image, by_text, own = both(logits, batch)
    total = _cross_entropy(by_image, own) + _cross_entropy(by_text, own)
    return total / 2, _rows(batch)

  def score(logits, batch: Batch):
    by_image, _, own = both(logits, batch)
    return _hits(by_image, own), _rows(batch)

  return Task(
    'retrieval accuracy', loss, score, within_batch=True, kind='pairs'
  )


def pairwise_contrast() -> Task:
  """Image-text contrast by a sigmoid for each pair (SigLIP, arXiv 2303.15343):
  logits [B, B] of images against the texts of the same batch, of which the
  diagonal belongs together. Scored as `contrast`."""

  def loss(logits, batch: Batch):
    real = batch['mask']
    chex.assert_shape(logits, (len(real), len(real)))
    sign = 2.0 * jnp.eye(len(real)) - 1.0
    each = jax.nn.softplus(-sign * logits.astype(jnp.float32))
    return jnp.sum(jnp.where(real[None, :], each, 0.0), axis=1), _rows(batch)

  return contrast()._replace(loss=loss)


def weighted_mean(values, weights):
  """Mean of values [B] with weights [B]; 0 if nothing weighs."""
  chex.assert_equal_shape([values, weights])
  values = jnp.where(weights > 0, values, 0.0)
  return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _tokens(pairs, aligned) -> Task:
  """A task of tokens.

  pairs: logits, batch -> (logits, targets), as many as are learned. aligned:
  batch -> targets [B, T], of logits [B, T, V] in the same place.
  """

  def per_example(values, targets, batch: Batch):
    counted = (targets >= 0) & batch['mask'][:, None]
    values = jnp.sum(jnp.where(counted, values, 0.0), -1)
    weights = jnp.sum(counted, axis=-1).astype(jnp.float32)
    return values / jnp.maximum(weights, 1.0), weights

  def together(several: Sequence[TokenLogits], batch: Batch):
    targets = aligned(batch)
    chex.assert_shape(targets, several[0].shape[:2])
    total, found = token_logits.measured(
      (_cross_entropy, _hits), several, targets
    )
    pairs = [
      tuple(per_example(values, targets, batch) for values in measures)
      for measures in found
    ]
    return per_example(total, targets, batch), pairs

  def loss(logits, batch: Batch):
    if isinstance(logits, TokenLogits):
      return together([logits], batch)[0]
    return by_array(_cross_entropy, logits, batch)

  def score(logits, batch: Batch):
    if isinstance(logits, TokenLogits):
      return together([logits], batch)[1][0][1]
    return by_array(_hits, logits, batch)

  def by_array(measure, logits, batch: Batch):
    logits, targets = pairs(logits, batch)
    chex.assert_rank(logits, 3)
    chex.assert_shape(targets, logits.shape[:2])
    return per_example(measure(logits, targets), targets, batch)

  return Task(
    'token accuracy',
    loss,
    score,
    perplexity=True,
    kind='tokens',
    together=together,
  )


def _cross_entropy(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), jnp.maximum(labels, 0)
  )


def _hits(logits, labels):
  return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def _rows(batch: Batch) -> jax.Array:
  """One per real row."""
  return batch['mask'].astype(jnp.float32)
