"""LoNAS: a LoRA that holds smaller ones, and which of them is taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import adapted, fedms, lonas
from fedms_jax.core import joined, tree
from fedms_jax.core.activation import at_rest
from fedms_jax.core.types import Plan
from tests import world
from tests.algorithms import cohort

# They compile for a minute.
pytestmark = pytest.mark.slow

RANKS = (1, 2)
SEARCH = lonas.Search(candidates=6, tolerance=0.02)
TARGETS = len(world.TARGETS)


@functools.cache
def method(elastic=RANKS):
  algorithm = lonas.super_stage(world.setting(), elastic)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return algorithm, world.trained(roles)


@functools.cache
def searching():
  algorithm = lonas.search_stage(world.setting(), RANKS, SEARCH)
  roles = jax.jit(algorithm.begin)(jax.random.key(3), method()[1])
  return algorithm, roles


def test_a_configuration_is_the_first_columns_of_each_target_and_block():
  blocks = method()[1].shared['blocks']
  ranks = np.array([[1, 2, 1], [2, 1, 2]], np.float32)
  stack = at_rest(blocks, world.BLOCKS)
  found = lora.products(lonas.narrowed(world.LORA, stack, ranks).full)
  for number, target in enumerate(world.TARGETS):
    a, b = lora.pairs(blocks)[target]
    for block in range(world.BLOCKS):
      r = int(ranks[number, block])
      np.testing.assert_allclose(
        found[target][block], a[block, :, :r] @ b[block, :r], atol=1e-6
      )


def loss(blocks, head, rows):
  """The mean loss of a LoRA on rows, by the plain first stage."""
  algorithm, roles = world.first_stage()
  batch = {k: v[rows] for k, v in world.columns().items()}
  batch |= {'mask': jnp.ones(len(rows), bool)}
  batch |= algorithm.columns(roles, batch, world.DENSE)
  roles = roles._replace(shared={'blocks': blocks, 'head': head})
  out = algorithm.predict(roles, batch, world.DENSE).logits['global']
  return jnp.mean(world.TASK.loss(out, batch)[0])


def test_a_step_follows_the_mean_of_the_sandwich(monkeypatch):
  """The largest, the smallest, and one that is drawn, here set."""
  drawn = np.array([[1, 2, 2], [2, 2, 1]], np.float32)
  monkeypatch.setattr(lonas, 'drawn', lambda *args: jnp.asarray(drawn))
  algorithm = lonas.super_stage(world.setting(), RANKS)
  roles = method()[1]
  rows = world.cohort_rows(clients=1, steps=1)
  found, *_ = world.train(algorithm, roles, rows)
  world.first_stage()  # made before it is traced

  def total(shared):
    stack = at_rest(shared['blocks'], world.BLOCKS)
    least = np.ones((TARGETS, world.BLOCKS), np.float32)
    each = [
      lonas.narrowed(world.LORA, stack, ranks).full
      for ranks in (2 * least, least, drawn)
    ]
    return sum(loss(x, shared['head'], rows[0, 0]) for x in each) / 3

  slope = jax.jit(jax.grad(total))(roles.shared)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, roles.shared, slope)
  world.close(found, expected)


def test_configurations_are_drawn_anew_and_from_the_set():
  shape = TARGETS, world.BLOCKS
  found = {
    tuple(np.asarray(lonas.drawn(jax.random.key(i), (1, 2, 4), shape)).ravel())
    for i in range(30)
  }
  assert len(found) > 25 and set(np.ravel(list(found))) == {1, 2, 4}


def test_of_one_rank_it_is_plain_averaging():
  algorithm, roles = method((2,))
  rows = world.cohort_rows()
  found, *_ = world.train(algorithm, roles, rows)
  plain = fedms.global_stage(world.setting())
  world.close(found, world.train(plain, roles, rows)[0])


def test_a_column_is_averaged_over_those_who_had_it(monkeypatch):
  even = jnp.full((TARGETS, world.BLOCKS), 2.0)  # whoever draws
  monkeypatch.setattr(lonas, 'drawn', lambda *args: even)
  algorithm = lonas.super_stage(
    world.setting(), RANKS, rank_of=lambda client: 1 + client % 2
  )
  roles, rows = method()[1], world.cohort_rows()
  plans = [world.DENSE._replace(variant=1 + k % 2) for k in range(3)]
  found = cohort.one_round(algorithm, roles, rows, plans)
  alone = [
    cohort.one_round(algorithm, roles, rows[k : k + 1], plans[k])
    for k in range(3)
  ]
  sizes = (rows >= 0).sum((1, 2))
  for target, (a, b) in lora.pairs(found.roles.shared['blocks']).items():
    each = [lora.pairs(x.roles.shared['blocks'])[target] for x in alone]
    # The first column is of all three, the second of client 1 alone.
    for new, olds, column in (
      (a, [x for x, _ in each], lambda x, r: x[..., r]),
      (b, [x for _, x in each], lambda x, r: x[:, r]),
    ):
      mean = (
        sum(s * column(x, 0) for s, x in zip(sizes, olds, strict=True))
        / sizes.sum()
      )
      np.testing.assert_allclose(column(new, 0), mean, atol=1e-5)
      np.testing.assert_allclose(column(new, 1), column(olds[1], 1), atol=1e-5)
  shapes = jax.eval_shape(lambda r: r, roles)
  one, two = (
    algorithm.traffic(shapes, Plan((True,) * 3, 0, rank), (True,) * 3, 3)
    for rank in RANKS
  )
  head = tree.nbytes(roles.shared['head'])
  assert two[0] - head == 2 * (one[0] - head) > 0 and one[0] == one[1]


def test_the_smallest_that_is_good_enough_is_taken():
  even = np.ones((TARGETS, world.BLOCKS))
  candidates = jnp.stack([2 * even, even, 1.5 * even, 1.2 * even])
  right = jnp.asarray([90.0, 80.0, 89.0, 85.0])

  def taken(tolerance):
    search = lonas.Search(4, tolerance)
    return int(
      lonas.smallest(world.setting(), candidates, right, 100.0, search)
    )

  assert [taken(x) for x in (0.0, 0.01, 0.05, 0.1)] == [0, 2, 3, 1]


def test_the_search_counts_what_candidates_get_right_and_takes_one():
  algorithm, roles = searching()
  rows = world.cohort_rows()
  after = cohort.one_round(algorithm, roles, rows, world.DENSE)
  memory = after.memory
  tried = np.asarray(memory['candidates'])
  assert (tried[0] == 2).all() and (tried[1] == 1).all()
  real = rows[rows >= 0]
  assert memory['count'] == len(real)
  first, roles_1 = world.first_stage()
  batch = {k: v[real] for k, v in world.columns().items()}
  batch |= {'mask': jnp.ones(len(real), bool)}
  batch |= first.columns(roles_1, batch, world.DENSE)
  whole = roles.frozen['global']
  for number, ranks in enumerate(tried):
    stack = lonas.narrowed(
      world.LORA, at_rest(whole['blocks'], world.BLOCKS), ranks
    )
    now = roles_1._replace(shared=whole | {'blocks': stack.full})
    out = first.predict(now, batch, world.DENSE).logits['global']
    hits = (np.argmax(out, axis=1) == batch['labels']).sum()
    assert memory['right'][number] == hits
  setting = world.setting()
  chosen = lonas.smallest(
    setting, memory['candidates'], memory['right'], memory['count'], SEARCH
  )
  np.testing.assert_array_equal(after.roles.shared['ranks'], tried[chosen])
  two = cohort.one_round(
    algorithm, after.roles, rows[:1], world.DENSE, memory=memory
  )
  assert two.memory['count'] == len(real) + (rows[0] >= 0).sum()


def test_users_get_the_configuration_that_was_taken():
  algorithm, roles = searching()
  ranks = jnp.asarray([[1.0, 2, 1], [2, 1, 2]])
  roles = roles._replace(shared={'ranks': ranks})
  batch = {k: v[:6] for k, v in world.columns().items()}
  batch |= {'mask': jnp.ones(6, bool)}
  batch |= algorithm.columns(roles, batch, world.TOP)
  found = jax.jit(lambda r, b: algorithm.predict(r, b, world.TOP).logits)(
    roles, batch
  )
  base, backbone = roles.frozen['base'], world.setting().backbone
  whole = joined.rest(roles.frozen['global'], world.BLOCKS)
  for name, stack in (
    ('whole', whole['blocks']),
    ('global', lonas.narrowed(world.LORA, whole['blocks'], ranks)),
  ):
    x = backbone.embed(base, batch['inputs'])
    x = adapted.features(backbone, base, [stack], x, batch, 0)
    out = backbone.logits(base, whole['head'], x)
    np.testing.assert_allclose(found[name], out, atol=1e-4)
  assert np.abs(found['whole'] - found['global']).max() > 1e-3


@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_who_weighs_nothing_is_not_counted(weight):
  algorithm, roles = searching()
  rows = world.cohort_rows(clients=1, steps=1)
  after = cohort.one_round(
    algorithm, roles, rows, world.DENSE, weights=np.full(1, weight, np.float32)
  )
  assert after.memory['count'] == 4 * weight
