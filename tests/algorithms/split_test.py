"""FedV and FedVZ: who has which blocks, what passes, and what is estimated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fedms, split
from fedms_jax.core import tree
from fedms_jax.core.types import Plan
from fedms_jax.systems.ledger import Meter
from tests import world

CUT = split.Cut(first=1, last=1)
ONE = 4.0 * world.WIDTH * 5  # bytes of what enters the body; 5 tokens
ONE_ROW = world.cohort_rows(clients=1, steps=1)


@functools.cache
def method(kind='fedv', cut=CUT, directions=1, step=1e-2):
  if kind == 'fedv':
    algorithm = split.fedv(world.setting(), cut)
  else:
    zeroth = split.Zeroth(directions, step)
    algorithm = split.fedvz(world.setting(), cut, zeroth)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return algorithm, world.trained(roles)


def moves(algorithm, roles, plan=world.DENSE, rows=ONE_ROW):
  """What a round adds to the shared tree."""
  found, *_ = world.train(algorithm, roles, rows, plan)
  return tree.subtract(found, roles.shared)


def flat(blocks, number):
  """All LoRA of one block as a vector."""
  return np.concatenate([np.ravel(x[number]) for x in jax.tree.leaves(blocks)])


def cosine(x, y):
  return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


@pytest.mark.parametrize('plan', [world.GAP, world.TOP])
def test_fedv_is_fedavg_of_lora(plan):
  algorithm, roles = method()
  rows = world.cohort_rows()
  plain = fedms.global_stage(world.setting())
  found, *_ = world.train(algorithm, roles, rows, plan)
  world.same(found, world.train(plain, roles, rows, plan)[0])


def test_the_body_may_have_a_rate_of_its_own():
  slow = CUT._replace(body_rate=0.25)
  algorithm, roles = method(cut=slow)
  found, usual = moves(algorithm, roles), moves(*method())
  for block, factor in ((0, 1.0), (1, 0.25), (2, 1.0)):
    np.testing.assert_allclose(
      flat(found['blocks'], block), factor * flat(usual['blocks'], block),
      atol=2e-6,
    )  # fmt: skip
  world.close(found['head'], usual['head'])


def test_without_a_body_nothing_is_estimated():
  cut = split.Cut(first=1, last=2)
  found = moves(*method('fedvz', cut))
  world.close(found, moves(*method('fedv', cut)))


def test_the_last_blocks_and_the_head_are_exact_and_the_others_are_not():
  found, exact = moves(*method('fedvz')), moves(*method())
  world.close(found['head'], exact['head'])
  np.testing.assert_allclose(
    flat(found['blocks'], 2), flat(exact['blocks'], 2), atol=1e-5
  )
  for block in (0, 1):
    assert np.abs(flat(found['blocks'], block)).max() > 1e-4
    assert (
      cosine(flat(found['blocks'], block), flat(exact['blocks'], block)) < 0.9
    )


def test_many_directions_come_near_the_gradient():
  found, exact = moves(*method('fedvz', directions=400)), moves(*method())
  for block in (0, 1):
    near = cosine(flat(found['blocks'], block), flat(exact['blocks'], block))
    assert near > 0.75  # the law says 0.93 and 0.85
    sizes = [np.linalg.norm(flat(x['blocks'], block)) for x in (found, exact)]
    np.testing.assert_allclose(sizes[0] / sizes[1], 1, atol=0.35)


@pytest.mark.parametrize('directions', [10, 100, 1000])
def test_the_cosine_of_an_estimate_is_that_of_its_law(directions):
  """sqrt(P / (P + d)), of a linear function in d dimensions."""
  size = 100
  slope = np.random.default_rng(0).normal(size=size).astype(np.float32)
  zeroth = split.Zeroth(directions, 1e-2)
  x = {'a': jnp.zeros(60), 'b': jnp.zeros(40)}

  def value(x):
    return jnp.concatenate([x['a'], x['b']]) @ slope

  @jax.jit
  def near(key):
    found = split.estimated(value, x, key, zeroth)
    g = jnp.concatenate([found['a'], found['b']])
    return g @ slope / jnp.linalg.norm(g) / jnp.linalg.norm(slope)

  mean = np.mean([near(jax.random.key(i)) for i in range(20)])
  expected = np.sqrt(directions / (directions + size))
  np.testing.assert_allclose(mean, expected, atol=0.06)


def test_steps_have_directions_of_their_own():
  algorithm, roles = method('fedvz')
  rows = np.repeat(ONE_ROW, 2, axis=1)
  one = flat(moves(algorithm, roles)['blocks'], 1)
  two = flat(moves(algorithm, roles, rows=rows)['blocks'], 1) - one
  assert abs(cosine(one, two)) < 0.5


def crossing(kind, plan, cut=CUT, **kwargs):
  algorithm, roles = method(kind, cut, **kwargs)
  return algorithm.crossing(jax.eval_shape(lambda r: r, roles), plan)


@pytest.mark.parametrize(
  ('kind', 'active', 'up', 'down', 'messages'),
  [
    ('fedv', (True, True, True), 2, 2, 4),
    ('fedv', (False, True, True), 2, 1, 3),
    ('fedv', (False, False, True), 1, 1, 2),
    ('fedvz', (True, True, True), 1 + 3, 1 + 6, 3),
    ('fedvz', (False, True, True), 1, 1 + 3, 3),
    ('fedvz', (False, False, True), 1, 1, 2),
  ],
)
def test_gradients_pass_where_something_below_trains(
  kind, active, up, down, messages
):
  found = crossing(kind, Plan(active, 0), directions=3)
  assert found.up == up * ONE and found.down == down * ONE
  assert found.messages == messages and found.held == (True, False, True)


def test_without_a_body_nothing_passes_in_a_step():
  for kind in ('fedv', 'fedvz'):
    found = crossing(kind, world.DENSE, split.Cut(2, 1))
    assert found[:3] == (0, 0, 0) and all(found.held)
  half = crossing('fedv', world.DENSE, CUT._replace(number=2))
  assert half.up == ONE


def test_the_ledger_has_steps_and_ends():
  algorithm, roles = method()
  plain = fedms.global_stage(world.setting())
  shown = {'newcomers': 0, 'cohort': 2, 'derived': 0, 'scope': 'step'}
  entries = [
    Meter(x, roles, batch=4, slots=0).group(
      world.DENSE, world.DENSE.active, clients=2, examples=10, steps=3, **shown
    )
    for x in (algorithm, plain)
  ]
  ours, usual = entries
  blocks = tree.nbytes(roles.shared['blocks']) / 3
  head = tree.nbytes(roles.shared['head'])
  assert ours.bytes_up == 2 * (head + 2 * blocks) + 10 * 2 * ONE
  assert ours.bytes_down == ours.bytes_up and ours.step_messages == 12
  assert ours.peak_client_bytes_up == head + 2 * blocks + 5 * 2 * ONE
  assert ours.simulator_flops == usual.simulator_flops
  cost = world.backbone().cost
  ends = usual.client_flops - ours.client_flops
  lora = 2 * cost.tokens * (blocks / 4)
  assert ends == 10 * (2 * cost.block + 3 * lora)
  assert ours.peak_client_memory < usual.peak_client_memory
  assert usual.step_messages == 0


def test_more_ends_than_blocks_are_refused():
  with pytest.raises(ValueError, match='the 3 of the model'):
    split.fedv(world.setting(), split.Cut(2, 2))
