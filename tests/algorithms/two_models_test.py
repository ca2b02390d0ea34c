"""Ditto, APFL and FedDPA: what each model learns, and what users get."""

import functools

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import personal, two_models
from fedms_jax.core import activation, columns
from fedms_jax.core.types import Roles
from fedms_jax.models import pretrained
from tests import world

RATE = 0.5  # of world.SGD


def noisy(tree, seed, scale=0.2):
  keys = iter(jax.random.split(jax.random.key(seed), 99))
  return jax.tree.map(
    lambda x: x + scale * jax.random.normal(next(keys), x.shape), tree
  )


@functools.cache
def method(make, *args):
  """(algorithm, roles): w and v of learned and different values."""
  algorithm = make(world.setting(), *args)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  w = noisy(roles.shared, 1)
  return algorithm, roles._replace(
    shared=w, personal=roles.personal | noisy(roles.shared, 2)
  )


def predict(algorithm, roles, rows):
  batch = columns.take(world.table(), jnp.asarray(rows))
  found = columns.complete(algorithm, roles, batch, world.DENSE)
  return jax.jit(
    lambda r, b: algorithm.predict(r, b, world.DENSE)
  )(roles, found)  # fmt: skip


def between(roles, weight, w, v, images):
  """The oracle: logits of the model whose merged weights lie in between."""
  model, base = world.backbone(), roles.frozen['base']
  flat = traverse.flatten_dict(base['blocks'], sep='/')
  for own, part in ((weight, v), (1 - weight, w)):
    for name, update in lora.products(part['blocks']).items():
      kernel = flat[f'{name}/kernel']
      flat[f'{name}/kernel'] = kernel + own * world.LORA.scale * update
  blocks = traverse.unflatten_dict(flat, sep='/')
  x = model.embed(base, images)
  spans = activation.prefix(blocks, None, model.blocks)
  features = model.features(base, model.run(spans, x, None), None)
  head = jax.tree.map(
    lambda a, b: weight * a + (1 - weight) * b, v['head'], w['head']
  )
  return model.logits(base, head, features)


def expert(role):
  return {key: role[key] for key in ('blocks', 'head')}


@pytest.mark.parametrize(
  ('make', 'args'),
  [
    (two_models.ditto, (0.3,)),
    (two_models.apfl, (0.5, 0.1)),
    (two_models.feddpa, (0.5,)),
  ],
)
def test_the_shared_model_is_that_of_fedavg(make, args):
  algorithm, roles = method(make, *args)
  together, start = world.first_stage()
  rows = world.cohort_rows()
  shared, _, _ = world.train(algorithm, roles, rows)
  plain = world.train(together, start._replace(shared=roles.shared), rows)[0]
  world.close(shared, plain, atol=3e-6)
  other = roles._replace(personal=noisy(roles.personal, 5))
  again, _, _ = world.train(algorithm, other, rows)
  world.same(shared, again)  # whatever the own model is


def test_ditto_without_a_pull_is_local_training_of_v():
  algorithm, roles = method(two_models.ditto, 0.0)
  alone = personal.local_only(world.setting())
  rows = world.cohort_rows()
  _, own, _ = world.train(algorithm, roles, rows)
  only = Roles(roles.frozen, {}, roles.personal)
  world.close(own, world.train(alone, only, rows)[1])


def test_ditto_pulls_v_to_what_the_server_sent():
  """A step of SGD moves v by -rate (grad + pull (v - w))."""
  rows, pull = world.cohort_rows(clients=1, steps=1), 0.3
  (free, roles), (pulled, _) = (
    method(two_models.ditto, x) for x in (0.0, pull)
  )
  (_, a, _), (_, b, _) = (
    world.train(m, roles, rows, world.TOP) for m in (free, pulled)
  )
  moved = jax.tree.map(lambda x, y: (y - x)[0], a, b)
  expected = jax.tree.map(
    lambda v, w: -RATE * pull * (v - w), roles.personal, roles.shared
  )
  world.close(moved['head'], expected['head'])
  for x, y in zip(
    jax.tree.leaves(moved['blocks']), jax.tree.leaves(expected['blocks']),
    strict=True,
  ):  # fmt: skip
    np.testing.assert_allclose(x[2], y[2], atol=2e-5)
    assert not x[:2].any()  # the blocks that do not train


def test_apfl_learns_v_and_alpha_through_the_mix_and_keeps_v_apart():
  """A step of SGD, by an oracle that merges the LoRA into the weights."""
  rate, alpha = 0.2, 0.3
  algorithm, roles = method(two_models.apfl, alpha, rate)
  rows = world.cohort_rows(clients=1, steps=1)
  data = world.columns()
  images, labels = data['inputs'][rows[0, 0]], data['labels'][rows[0, 0]]

  def loss(v, alpha):
    logits = between(roles, alpha, roles.shared, v, images)
    return world.TASK.loss(logits, {'labels': labels, 'mask': labels >= 0})[
      0
    ].mean()

  v = expert(roles.personal)
  slope, by_alpha = jax.jit(jax.grad(loss, argnums=(0, 1)))(v, alpha)
  _, own, _ = world.train(algorithm, roles, rows)
  own = jax.tree.map(lambda x: x[0], own)
  world.close(expert(own), jax.tree.map(lambda x, g: x - RATE * g, v, slope))
  np.testing.assert_allclose(own['alpha'], alpha - rate * by_alpha, atol=1e-5)
  assert abs(by_alpha) > 1e-3


@pytest.mark.parametrize(('alpha', 'name'), [(1.0, 'local'), (0.0, 'global')])
def test_apfl_at_a_bound_is_one_model(alpha, name):
  algorithm, roles = method(two_models.apfl, 0.5, 0.1)
  own = roles.personal | {'alpha': jnp.float32(alpha)}
  found = predict(algorithm, roles._replace(personal=own), range(8))
  world.close(found.logits['mixture'], found.logits[name], atol=1e-5)
  gap = found.logits['global'] - found.logits['local']
  assert np.abs(gap).max() > 0.01
  np.testing.assert_array_equal(found.stats['own_weight'], alpha)


def test_alpha_stays_within_its_bounds():
  optimizer = two_models._within_bounds(1.0)
  for gradient, expected in ((-9.0, 1.0), (9.0, 0.0), (0.2, 0.1)):
    update, _ = optimizer.update(
      jnp.float32(gradient), optimizer.init(0.3), jnp.float32(0.3)
    )
    assert float(0.3 + update) == pytest.approx(expected, abs=1e-6)


def directions(roles, rows):
  """Normalized features of the base, [n, D]."""
  x = pretrained.encode(
    world.backbone(), roles.frozen['base'], world.columns()['inputs'][rows]
  )
  return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_profile_is_the_mean_direction_of_the_clients_rows():
  algorithm, roles = method(two_models.feddpa, 0.5)
  roles = roles._replace(frozen=fresh(roles))
  rows = world.cohort_rows()
  _, own, _ = world.train(algorithm, roles, rows)
  for mine, profile in zip(rows, own['profile'], strict=True):
    mean = directions(roles, mine[mine >= 0]).mean(axis=0)
    np.testing.assert_allclose(profile, mean, atol=1e-5)


def fresh(roles):
  """The frozen tree, with a start that is the base model."""
  blocks = jax.tree_util.tree_map_with_path(
    lambda path, x: x * (path[-1].key != 'b'), roles.frozen['start']['blocks']
  )
  return roles.frozen | {'start': roles.frozen['start'] | {'blocks': blocks}}


def test_feddpa_weighs_each_input_by_its_likeness():
  """The mixture lies between both models by scale * mean cosine, for more
  examples than are held at a time."""
  scale, rows, mine = 0.8, np.arange(40), np.arange(50, 60)
  algorithm, roles = method(two_models.feddpa, scale)
  profile = jnp.asarray(directions(roles, mine).mean(axis=0))
  roles = roles._replace(personal=roles.personal | {'profile': profile})
  found = predict(algorithm, roles, rows)
  cosines = directions(roles, rows) @ directions(roles, mine).T
  weight = scale * np.maximum(cosines.mean(axis=1), 0)
  np.testing.assert_allclose(found.stats['own_weight'], weight, atol=1e-5)
  assert weight.std() > 1e-3
  w, v = roles.shared, expert(roles.personal)
  images = world.columns()['inputs'][rows]

  def one(weight, image):
    return between(roles, weight, w, v, image[None])[0]

  oracle = jax.jit(jax.vmap(one))(jnp.asarray(weight), images)
  world.close(found.logits['mixture'], oracle, atol=1e-4)


@pytest.mark.parametrize(('weight', 'name'), [(1.0, 'local'), (0.0, 'global')])
def test_feddpa_at_a_bound_is_one_model(weight, name):
  algorithm, roles = method(two_models.feddpa, 1.0)
  profile = jnp.asarray(weight * directions(roles, np.array([7]))[0])
  roles = roles._replace(personal=roles.personal | {'profile': profile})
  found = predict(algorithm, roles, [7] * 4)
  np.testing.assert_allclose(found.stats['own_weight'], weight, atol=1e-6)
  world.close(found.logits['mixture'], found.logits[name], atol=1e-4)
  gap = found.logits['global'] - found.logits['local']
  assert np.abs(gap).max() > 0.01


def test_feddpa_trains_v_halfway_to_what_the_server_sent():
  algorithm, roles = method(two_models.feddpa, 0.5)
  rows = world.cohort_rows(clients=1, steps=1)
  data = world.columns()
  images, labels = data['inputs'][rows[0, 0]], data['labels'][rows[0, 0]]

  def loss(v):
    logits = between(roles, 0.5, roles.shared, v, images)
    batch = {'labels': labels, 'mask': labels >= 0}
    return world.TASK.loss(logits, batch)[0].mean()

  v = expert(roles.personal)
  slope = jax.jit(jax.grad(loss))(v)
  _, own, _ = world.train(algorithm, roles, rows)
  own = expert(jax.tree.map(lambda x: x[0], own))
  world.close(own, jax.tree.map(lambda x, g: x - RATE * g, v, slope))
