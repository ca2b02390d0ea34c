"""What rows and messages show: halves of rows, log odds, inversion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core import tree
from fedms_jax.simulation import inversion, membership
from tests import world


def test_a_run_has_half_of_the_rows_of_each_client():
  train = world.federation().train
  kept = membership.half(train, 0, 0)
  for k in range(train.num_clients):
    assert kept[train.offsets[k] : train.offsets[k + 1]].sum() == 3
  np.testing.assert_array_equal(kept, membership.half(train, 0, 0))
  many = np.stack([membership.half(train, 0, run) for run in range(100)])
  np.testing.assert_array_equal(many.mean(0), 0.5)
  together = (many[::2, :1] == many[::2]).mean(0)[1:]  # with the first row
  assert np.abs(together[6:] - 0.5).max() < 4 * np.sqrt(0.25 / 50)
  stage = membership.halved(world.stages(1)[0], kept)
  assert stage.view is not None
  seen = stage.view(world.federation()).train
  np.testing.assert_array_equal(seen.rows, train.rows[kept])
  assert (seen.sizes() == 3).all()
  with pytest.raises(ValueError, match='other rows than those of the run'):
    membership.halved(stage, kept)


def test_log_odds_are_those_of_the_true_label():
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(5, 4))
  labels = rng.integers(0, 4, 5)
  mask = np.array([1, 1, 0, 1, 1], bool)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  own = p[np.arange(5), labels]
  want = np.log(own) - np.log(1 - own)
  batch = {'labels': jnp.asarray(labels), 'mask': jnp.asarray(mask)}

  def sums(logits):
    found = membership.LOG_ODDS.sums(jnp.asarray(logits, jnp.float32), batch)
    return np.asarray(found)

  np.testing.assert_allclose(sums(logits), [want[mask].sum(), 4], rtol=1e-4)
  assert np.isfinite(sums(1e4 * logits)).all()  # where p is 0 or 1


@pytest.mark.slow
def test_rows_are_asked_of_the_models_of_their_owners():
  """Two clients of one row each, against the two asked in the other order, and
  as a batch of the evaluation has them."""
  simulation, state, _ = world.reference()
  train = world.federation().train
  rows, owners = train.rows[[0, 7, 20]], np.array([0, 1, 3])
  found = membership.log_odds(simulation, state, rows, owners)
  assert set(found) >= {'global', 'local', 'mixture', 'pretrained'}
  turned = membership.log_odds(simulation, state, rows[::-1], owners[::-1])
  strange = membership.log_odds(simulation, state, rows, owners[::-1])
  for name, values in found.items():
    np.testing.assert_allclose(values, turned[name][::-1], rtol=1e-4)
    assert np.isfinite(values).all()
  assert not np.allclose(found['local'], strange['local'], rtol=1e-3)
  np.testing.assert_allclose(found['global'], strange['global'], rtol=1e-4)


sent = jax.jit(inversion.sent, static_argnums=(0, 1))


@functools.cache
def client():
  """(algorithm, roles, image, label, message) of a client of one row."""
  algorithm, roles = world.first_stage()
  image = jnp.asarray(world.columns()['inputs'][3], jnp.float32)
  label = jnp.int32(world.columns()['labels'][3])
  key = jax.random.key(0)
  message = sent(algorithm, world.DENSE, roles, image, label, key)
  return algorithm, roles, image, label, message


def test_what_is_sent_is_what_a_round_adds():
  """Of a cohort of one client with one step on one row."""
  algorithm, roles, _, _, message = client()
  rows = np.array([[[3]]], np.int32)
  shared, _, _ = world.train(algorithm, roles, rows)
  moved = tree.subtract(shared, roles.shared)
  world.close(message, moved, atol=2e-6)


@pytest.mark.slow
def test_the_search_goes_where_the_message_points():
  algorithm, roles, image, label, message = client()
  begin = jnp.full(image.shape, 100.0)

  def off(x):
    mine = sent(algorithm, world.DENSE, roles, x, label, jax.random.key(0))
    both = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)])
            for t in (mine, message))  # fmt: skip
    a, b = both
    return 1 - a @ b / np.sqrt((a @ a) * (b @ b))

  found, near = inversion.invert(
    algorithm, world.DENSE, inversion.Search(120, 0.05, 0.0), roles, message,
    begin, label, jax.random.key(0),
  )  # fmt: skip
  far = off(begin)
  assert off(image) < 1e-5 < 1e-4 < far  # or there was nothing to find
  assert float(near) < 0.2 * far
  np.testing.assert_allclose(float(near), off(found), atol=1e-5)
  assert found.min() >= 0 and found.max() <= 255


def test_a_head_shows_the_label():
  bias = jnp.array([-0.1, -0.2, 0.5, -0.2])
  assert inversion.revealed({'head': {'bias': bias}}) == 2
  assert inversion.revealed({'blocks': {}}) is None


def test_psnr_of_an_error_of_a_tenth_is_20():
  image = jnp.zeros((4, 4, 1))
  assert inversion.psnr(image + 25.5, image) == pytest.approx(20.0)
