"""FedOT: clients train both ends around a part of what lies between."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fedms, offsite
from fedms_jax.core import tree
from fedms_jax.core.types import Plan, Span
from fedms_jax.models import pretrained
from fedms_jax.systems.ledger import Meter
from tests import world

CHOICE = offsite.Choice(ends=1, kept=0.0)


@functools.cache
def method(choice=CHOICE):
  algorithm = offsite.fedot(world.setting(), choice)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return algorithm, world.trained(roles)


def logits(algorithm, roles, plan=world.DENSE):
  batch = {k: v[:6] for k, v in world.columns().items()}
  batch |= {'mask': jnp.ones(6, bool)}
  batch |= algorithm.columns(roles, batch, plan)
  return algorithm.predict(roles, batch, plan).logits


@pytest.mark.parametrize(
  ('kept', 'middle'),
  [(0.0, []), (0.25, [4, 8]), (0.5, [3, 5, 7, 9]), (1.0, [*range(2, 10)])],
)
def test_the_emulator_is_spread_evenly_over_the_middle(kept, middle):
  found = offsite.Choice(2, kept).held(12)
  assert np.flatnonzero(found).tolist() == [0, 1, *middle, 10, 11]
  ends = offsite.Choice(2, kept).adapter(12)
  assert np.flatnonzero(ends).tolist() == [0, 1, 10, 11]


def test_spans_lose_the_blocks_that_are_not_held():
  params = {'x': np.arange(6)}
  spans = (
    Span(0, 2, {'x': params['x'][:2]}),
    Span(2, 6, {'x': params['x'][2:]}),
  )
  held = (True, False, True, True, False, True)
  found = offsite.emulated(spans, held)
  assert [(s.start, s.stop, s.params['x'].tolist()) for s in found] == [
    (0, 1, [0]), (2, 4, [2, 3]), (5, 6, [5]),
  ]  # fmt: skip
  assert offsite.emulated(spans, (False,) * 6) == ()


@pytest.mark.parametrize('plan', [world.DENSE, world.TOP])
def test_the_emulator_is_the_model_without_the_blocks_that_are_left_out(plan):
  algorithm, roles = method()
  base, held = roles.frozen['base'], np.array([0, 2])
  lora, head = roles.shared['blocks'], roles.shared['head']
  if plan == world.TOP:  # below it nothing has trained
    start = roles.frozen['start']['blocks']
    lora = jax.tree.map(lambda x, y: y.at[2].set(x[2]), lora, start)
  roles = roles._replace(shared=roles.shared | {'blocks': lora})
  backbone = world.setting().backbone
  images = world.columns()['inputs'][:6]

  def expected(rows):
    x = backbone.embed(base, images)
    blocks = tree.rows((base['blocks'], lora), rows)
    x = backbone.run([Span(0, len(rows), blocks)], x, None)
    return backbone.logits(base, head, backbone.features(base, x, None))

  found = jax.jit(lambda r: logits(algorithm, r, plan))(roles)
  np.testing.assert_allclose(found['emulator'], expected(held), atol=1e-4)
  whole = expected(np.arange(3))
  np.testing.assert_allclose(found['global'], whole, atol=1e-4)
  assert np.abs(found['global'] - found['emulator']).max() > 1e-3
  plain = pretrained.encode(world.backbone(), base, images)
  start = world.backbone().logits(base, roles.frozen['start']['head'], plain)
  np.testing.assert_allclose(found['pretrained'], start, atol=1e-4)


def test_with_all_blocks_it_is_averaging_of_the_ends():
  algorithm, roles = method(offsite.Choice(1, 1.0))
  rows = world.cohort_rows()
  found, *_ = world.train(algorithm, roles, rows)
  plain = fedms.global_stage(world.setting())
  usual, *_ = world.train(plain, roles, rows, world.GAP)
  world.close(found, usual)


def test_the_middle_stays_and_clients_follow_the_emulator():
  algorithm, roles = method()
  rows = world.cohort_rows()
  found, *_ = world.train(algorithm, roles, rows)
  old, new = roles.shared['blocks'], found['blocks']
  world.same(tree.rows(new, np.array([1])), tree.rows(old, np.array([1])))
  for block in (0, 2):
    moved = np.abs(new['attn']['q']['b'] - old['attn']['q']['b'])[block]
    assert moved.max() > 1e-5
  whole, *_ = world.train(method(offsite.Choice(1, 1.0))[0], roles, rows)
  gap = new['attn']['q']['b'] - whole['blocks']['attn']['q']['b']
  assert np.abs(gap).max() > 1e-4


def test_the_ledger_has_the_ends_and_the_emulator():
  algorithm, roles = method()
  meter = Meter(algorithm, roles, batch=4, slots=0)
  plain = Meter(fedms.global_stage(world.setting()), roles, batch=4, slots=0)
  dense = world.DENSE
  assert meter.up(dense) == plain.up(Plan((True, False, True), 0))
  assert meter.down(dense.active) == meter.up(dense)
  cost, usual = algorithm.backbone.cost, world.backbone().cost
  np.testing.assert_allclose(3 * cost.block, 2 * usual.block)


def test_more_ends_than_blocks_are_refused():
  with pytest.raises(ValueError, match='allowed: 1 to 1'):
    offsite.fedot(world.setting(), offsite.Choice(2, 0.5))
