"""FedOTP: the plan that carries patches to prompts, and what is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from fedms_jax.algorithms import fedotp, soft_prompts
from fedms_jax.core import columns
from tests import world
from tests.algorithms import clip_world, cohort
from tests.algorithms.clip_world import LENGTH

# They compile for a minute.
pytestmark = pytest.mark.slow


def choice(mass=0.7, entropy=0.05, rounds=100):
  return fedotp.Choice(mass, entropy, rounds)


def drawn(*shape, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


COST = np.random.default_rng(1).uniform(0, 2, (3, 6, 2)).astype(np.float32)


def by_program(cost, mass):
  """The least cost by linear programming."""
  rows, places = cost.shape
  by_row = np.kron(np.eye(rows), np.ones(places))
  by_column = np.kron(np.ones(rows), np.eye(places))
  found = scipy.optimize.linprog(
    cost.ravel(), by_row, np.full(rows, 1 / rows), by_column,
    np.full(places, mass / places),
  )  # fmt: skip
  return found.fun


@pytest.mark.parametrize('mass', [0.5, 0.9])
def test_a_sharp_plan_costs_what_linear_programming_finds(mass):
  plan = fedotp.transport(COST, choice(mass, 0.01, 2000))
  for mine, cost in zip(np.asarray(plan), COST, strict=True):
    np.testing.assert_allclose(
      np.sum(mine * cost), by_program(cost, mass), rtol=0.02
    )


@pytest.mark.parametrize('entropy', [0.02, 0.1, 1.0])
def test_columns_carry_the_mass_and_no_row_more_than_its_share(entropy):
  plan = np.asarray(fedotp.transport(COST, choice(0.7, entropy, 3000)))
  np.testing.assert_allclose(plan.sum(axis=-2), 0.35, rtol=1e-4)
  assert plan.min() >= 0
  assert plan.sum(axis=-1).max() <= 1 / 6 + 2e-3
  if entropy == 0.02:
    assert (plan.sum(axis=-1) < 1e-3).any()  # patches that fit none


def test_of_one_patch_the_logit_is_the_mean_over_prompts():
  classes, patches = drawn(2, 4, 8), drawn(5, 1, 8, seed=1)
  found = fedotp.matched(classes, patches, choice(mass=1.0))
  mean = np.einsum('bmp,ecp->bc', patches, classes) / 2
  np.testing.assert_allclose(found, mean, atol=1e-5)


def test_the_plan_is_given_when_prompts_are_trained():
  classes, patches = drawn(2, 4, 8), drawn(3, 6, 8, seed=1)
  setting = choice()
  cost = 1 - np.einsum('bmp,ecp->bcme', patches, classes)
  plan = fedotp.transport(cost, setting)

  def total(classes):
    return jnp.sum(fedotp.matched(classes, patches, setting))

  def given(classes):
    return jnp.einsum('bcme,bmp,ecp->', plan, patches, classes)

  slope = jax.jit(jax.grad(total))(classes)
  np.testing.assert_allclose(slope, jax.grad(given)(classes), atol=1e-5)


@functools.cache
def method(**kwargs):
  algorithm = fedotp.fedotp(
    clip_world.setting(), clip_world.model().prompted, LENGTH, choice(**kwargs)
  )
  roles = clip_world.begin(algorithm)
  keys = iter(jax.random.split(jax.random.key(7), 9))

  def moved(x):
    return x + 0.3 * jax.random.normal(next(keys), x.shape)

  return algorithm, jax.tree.map(
    lambda x: x,
    roles._replace(
      shared=jax.tree.map(moved, roles.shared),
      personal=jax.tree.map(moved, roles.personal),
    ),
  )


def completed(rows):
  algorithm, roles = method()
  batch = columns.take(world.table(), jnp.asarray(rows))
  return columns.complete(algorithm, roles, batch, world.DENSE)


def test_the_feature_of_the_first_token_would_be_that_of_the_image():
  """Patches are projected as the image's own feature is."""
  backbone = clip_world.model().backbone
  base, images = clip_world.start().frozen['base'], world.columns()['inputs']
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
  patches = clip_world.model().prompted.patches(base, x)
  assert patches.shape == (2, 4, 8)
  first = backbone.features(base, x[:, 2:3], None)
  first /= np.linalg.norm(first, axis=-1, keepdims=True)
  np.testing.assert_allclose(patches[:, 1], first, atol=1e-5)
  found = completed(range(4))['patches']
  sides = images.shape[1] // 4
  assert found.shape == (4, sides**2, 8)


def test_users_get_both_prompts_and_each_alone_is_its_own_match():
  algorithm, roles = method()
  batch = completed(range(8))
  found = jax.jit(lambda r, b: algorithm.predict(r, b, world.DENSE).logits)(
    roles, batch
  )
  prompted, text = clip_world.model().prompted, roles.frozen['base']['text']
  classes = [
    prompted.features(text, parts['prompt'])
    for parts in (roles.shared, roles.personal)
  ]
  for name, some in (
    ('global', classes[:1]), ('local', classes[1:]), ('mixture', classes),
  ):  # fmt: skip
    cosines = np.einsum('bmp,ecp->bcme', batch['patches'], np.stack(some))
    plan = np.asarray(fedotp.transport(1 - cosines, choice()))
    expected = 5.0 * (plan * cosines).sum(axis=(-2, -1))
    np.testing.assert_allclose(found[name], expected, atol=1e-4)
  assert np.abs(found['mixture'] - found['global']).max() > 1e-3


def test_both_prompts_train_and_the_shared_one_alone_is_sent():
  algorithm, roles = method()
  rows = world.cohort_rows()
  after = cohort.one_round(algorithm, roles, rows, world.DENSE)
  assert np.abs(after.roles.shared['prompt'] - roles.shared['prompt']).max() > 0
  own = np.asarray(after.personal['prompt'])
  assert (
    np.abs(own - np.asarray(roles.personal['prompt'])[None])
    .max(axis=(1, 2))
    .min()
    > 1e-4
  )
  assert set(after.totals.update) == {'prompt'}
  form = soft_prompts.of_classes(
    clip_world.setting(), clip_world.model().prompted, LENGTH
  )
  usual = form.passes
  assert algorithm.passes.frozen == usual.frozen
  assert algorithm.backbone.cost.head > clip_world.model().backbone.cost.head
