"""Tasks: what counts, what does not, and how sums of tokens add up."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.models import tasks

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 7)).astype(np.float32)
TOKENS = np.array(
  [[1, 2, 3, 4, 5], [6, 0, 2, -1, -1], [3, 3, -1, -1, -1]], np.int32
)
MASK = np.array([True, True, False])


def nll(logits, label):
  return float(np.log(np.exp(logits).sum()) - logits[label])


def batch(**columns):
  return {'mask': jnp.asarray(MASK), 'inputs': jnp.asarray(TOKENS)} | columns


def test_next_tokens_are_those_of_the_text_itself():
  values, weights = tasks.causal_lm().loss(LOGITS, batch())
  expected = [
    np.mean([nll(LOGITS[0, t], TOKENS[0, t + 1]) for t in range(4)]),
    np.mean([nll(LOGITS[1, t], TOKENS[1, t + 1]) for t in range(2)]),
  ]
  np.testing.assert_allclose(values[:2], expected, rtol=1e-5)
  assert weights.tolist() == [4, 2, 0]  # a padded row weighs nothing


def test_a_prompt_is_read_but_not_learned():
  targets = np.where(np.arange(5) < 3, -1, TOKENS)
  values, weights = tasks.causal_lm().loss(LOGITS, batch(targets=targets))
  expected = np.mean([nll(LOGITS[0, t], TOKENS[0, t + 1]) for t in (2, 3)])
  np.testing.assert_allclose(values[0], expected, rtol=1e-5)
  assert weights.tolist() == [2, 0, 0]


def test_masked_tokens_are_learned_in_their_own_place():
  targets = np.full((3, 5), -1, np.int32)
  targets[0, 2], targets[1, 0] = 4, 6
  task = tasks.masked_lm()
  values, weights = task.loss(LOGITS, batch(targets=targets))
  np.testing.assert_allclose(
    values[:2], [nll(LOGITS[0, 2], 4), nll(LOGITS[1, 0], 6)], rtol=1e-5
  )
  hits = LOGITS.copy()
  hits[0, 2, 4] = 99
  assert task.score(hits, batch(targets=targets))[0][0] == 1
  assert weights.tolist() == [1, 1, 0]


@pytest.mark.parametrize('task', [tasks.causal_lm(), tasks.masked_lm()])
def test_what_is_not_learned_does_not_matter(task):
  targets = np.where(np.arange(5) == 3, TOKENS, -1)
  known = batch(targets=targets)
  poisoned = LOGITS.copy()
  read = (2, 3)  # the place before the target, or the target's own
  poisoned[:, [t for t in range(5) if t not in read]] = 1e6
  poisoned[2] = -1e6
  for measure in (task.loss, task.score):
    clean, dirty = measure(LOGITS, known), measure(poisoned, known)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])


def test_the_mean_of_examples_is_the_mean_of_tokens():
  """So that perplexity does not depend on how texts are batched."""
  task = tasks.causal_lm()
  everyone = batch(mask=jnp.ones(3, bool))
  whole = tasks.weighted_mean(*task.loss(LOGITS, everyone))
  terms = [
    nll(LOGITS[b, t], TOKENS[b, t + 1])
    for b in range(3)
    for t in range(4)
    if TOKENS[b, t + 1] >= 0
  ]
  np.testing.assert_allclose(whole, np.mean(terms), rtol=1e-5)


def test_nothing_to_learn_gives_zero_not_nan():
  nothing = batch(targets=np.full((3, 5), -1))
  for task in (tasks.causal_lm(), tasks.masked_lm()):
    assert tasks.weighted_mean(*task.loss(LOGITS, nothing)) == 0


def test_contrast_finds_pairs_both_ways_and_ignores_padding():
  task = tasks.contrast()
  logits = RNG.normal(size=(3, 3)).astype(np.float32)
  values, weights = task.loss(logits, batch())
  expected = [
    (nll(logits[i, :2], i) + nll(logits[:2, i], i)) / 2 for i in range(2)
  ]
  np.testing.assert_allclose(values[:2], expected, rtol=1e-5)
  assert weights.tolist() == [1, 1, 0]
  poisoned = logits.copy()
  poisoned[2], poisoned[:, 2] = 1e6, 1e6
  np.testing.assert_array_equal(task.loss(poisoned, batch())[0][:2], values[:2])
  score, _ = task.score(np.eye(3), batch())
  assert score[:2].tolist() == [1, 1]


def test_a_pairwise_contrast_asks_of_each_pair_whether_it_is_one():
  task = tasks.pairwise_contrast()
  assert task.within_batch
  logits = RNG.normal(size=(3, 3)).astype(np.float32)
  values, weights = task.loss(logits, batch())
  expected = [
    sum(
      np.log1p(np.exp(-logits[i, j] if i == j else logits[i, j]))
      for j in range(2)
    )
    for i in range(2)
  ]
  np.testing.assert_allclose(values[:2], expected, rtol=1e-5)
  assert weights.tolist() == [1, 1, 0]
  poisoned = logits.copy()
  poisoned[2], poisoned[:, 2] = 1e6, 1e6
  np.testing.assert_array_equal(task.loss(poisoned, batch())[0][:2], values[:2])


def test_labels_that_belong_to_other_logits_are_refused():
  """Those of one row would be broadcast, and nobody would see it."""
  one = {'labels': jnp.zeros(1, int), 'mask': jnp.ones(3, bool)}
  task = tasks.classification()
  for measure in (task.loss, task.score):
    with pytest.raises(AssertionError):
      measure(LOGITS[:, 0], one)
  for task in (tasks.causal_lm(), tasks.masked_lm()):
    with pytest.raises(AssertionError):
      task.loss(LOGITS, batch(targets=TOKENS[:1]))
  with pytest.raises(AssertionError):
    tasks.contrast().loss(LOGITS[0], batch())
  with pytest.raises(AssertionError):
    tasks.weighted_mean(jnp.zeros(3), jnp.ones((3, 1)))


def test_numbers_are_scored_by_the_variance_that_is_explained():
  task, values = tasks.regression(), np.array([[1.0, -1.0], [0.5, 2.0], [9, 9]])
  known = batch(values=jnp.asarray(values, jnp.float32))
  logits = np.array([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]], np.float32)
  loss, weights = task.loss(logits, known)
  assert loss[:2].tolist() == [0.5, 0.0] and weights.tolist() == [1, 1, 0]
  score, _ = task.score(logits, known)
  assert score[:2].tolist() == [0.5, 1.0]
  with pytest.raises(AssertionError):
    task.loss(logits[:, :1], known)


def test_tags_are_scored_by_what_is_common():
  task = tasks.multi_label()
  tags = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], np.uint8)
  logits = np.array([[3, -1, 2], [-1, -1, -1], [0, 0, 0]], np.float32)
  known = batch(tags=jnp.asarray(tags))
  score, weights = task.score(logits, known)
  np.testing.assert_allclose(score[:2], [1 / 3, 1.0])
  assert weights.tolist() == [1, 1, 0]
  loss, _ = task.loss(logits, known)
  signed = np.where(tags > 0, -logits, logits)
  np.testing.assert_allclose(loss, np.log1p(np.exp(signed)).mean(1), rtol=1e-6)


def test_levels_are_steps_that_a_row_is_above():
  task, labels = tasks.ordinal(), np.array([2, 0, 1])
  logits = np.array([[2, 1, -3], [1, -1, -2], [0, 0, 0]], np.float32)
  known = batch(labels=jnp.asarray(labels))
  score, weights = task.score(logits, known)
  assert score[:2].tolist() == [1, 0] and weights.tolist() == [1, 1, 0]
  above = labels[:, None] > np.arange(3)
  signed = np.where(above, -logits, logits)
  loss, _ = task.loss(logits, known)
  np.testing.assert_allclose(loss, np.log1p(np.exp(signed)).mean(1), rtol=1e-6)
  with pytest.raises(AssertionError):
    task.loss(logits, batch(labels=jnp.zeros(1, int)))
