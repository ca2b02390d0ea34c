"""One client, what it sends, and scores: the pure parts, without a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.core import client, reduction, scoring
from fedms_jax.core.contract import (
  ClientResult,
  Clients,
  Message,
  Moment,
  Received,
  Start,
  identity,
)
from fedms_jax.core.types import Roles
from tests import world
from tests.diary import BEFORE, TOLD, diary


def test_an_optimizer_goes_on_from_step_to_step_and_no_further():
  """Three steps of Adam on a slope that the batch gives; the next round begins
  with fresh moments."""
  adam = optax.adam(0.1)

  def objective(roles, batch, key, start):
    both = roles.shared['w'] + roles.personal['v']
    return jnp.sum(both * batch['slope']), {}

  update = client.sgd(objective, adam, client.everywhere, sums=())
  roles = Roles({}, {'w': jnp.zeros(2)}, {'v': jnp.ones(2)})
  start = Start(roles, world.DENSE)
  slopes = jnp.array([[1.0, -1], [0.5, 3], [-2, 0.1]])
  w, state = jnp.zeros(2), adam.init(jnp.zeros(2))
  for slope in slopes:
    step, state = adam.update(slope, state)
    w = w + step
  for _ in range(2):
    carry = update.begin(start)
    for slope in slopes:
      carry, _ = update.step(carry, start, {'slope': slope}, None)
    message, own = update.finish(carry, start)
    np.testing.assert_allclose(message.update['w'], w, rtol=1e-6)
    np.testing.assert_allclose(own['v'], 1 + w, rtol=1e-6)


def test_the_moment_of_a_later_step_is_the_same_from_any_earlier_one():
  first = Start(BEFORE, world.DENSE, Moment(round=3, steps=9, clock=100))
  later = client.at_step(client.at_step(first, 2), 5)
  assert later.moment == client.at_step(first, 5).moment == Moment(3, 5, 9, 105)


def test_a_channel_draws_by_a_key_that_no_step_has():
  """Else its noise would be what training has drawn."""
  seen, key = [], jax.random.key(7)

  def encode(state, message, key, sender):
    seen.append(jax.random.key_data(key).tolist())
    return message

  roles = diary().begin(key, BEFORE)
  deaf = diary()._replace(channel=identity()._replace(encode=encode))
  result = ClientResult(Message(roles.shared), roles.personal, {})
  its = Clients(jnp.uint32(0), None, None, 1.0)
  reduction.sent(deaf, Start(roles, world.DENSE), result, its, key, ())
  steps = [jax.random.fold_in(key, step) for step in range(20)]
  (found,) = seen
  assert found not in [jax.random.key_data(k).tolist() for k in [key, *steps]]


@pytest.mark.parametrize('part', ['message', 'personal', 'sums'])
def test_who_is_not_finite_anywhere_does_not_count(part):
  start = Start(diary().begin(jax.random.key(0), BEFORE), world.DENSE)
  roles = start.roles

  def sent(weight, **bad):
    result = ClientResult(
      Message({'told': jnp.ones(TOLD)}),
      {'took': jnp.float32(1)},
      {'loss': jnp.ones(2)},
    )
    result = result._replace(**bad)
    its = Clients(jnp.uint32(0), None, None, jnp.float32(weight))
    args = its, jax.random.key(0), jnp.float32(1)
    return reduction.sent(diary(), start, result, *args)

  bad = {
    'message': Message({'told': jnp.full(TOLD, jnp.inf)}),
    'personal': {'took': jnp.float32(jnp.nan)},
    'sums': {'loss': jnp.array([jnp.nan, 1])},
  }
  message, counts, personal, sums = sent(2.0, **{part: bad[part]})
  assert not counts
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(message))
  world.same(personal, roles.personal)
  world.same(sums, {'loss': np.zeros(2), 'skipped': np.ones(2)})
  # Who only fills a chunk is not told of.
  *_, sums = sent(0.0, **{part: bad[part]})
  assert not sums['skipped'].any()
  message, counts, personal, sums = sent(2.0)
  assert counts and personal['took'] == 1 and message.cover['told'] == 2
  world.same(sums, {'loss': np.ones(2), 'skipped': np.array([0.0, 1.0])})


def test_rows_of_active_blocks_take_their_places_apart_and_together():
  x = jnp.arange(1.0, 13).reshape(2, 2, 3)  # of two clients, blocks 0 and 2
  messages = Message({'blocks': x}, {}, {'blocks': jnp.ones((2, 2))})
  zeros = {'blocks': jnp.zeros((3, 3)), 'other': jnp.ones(5)}
  none = Received(zeros, {}, {'blocks': jnp.zeros(3)}, 0.0, 0.0)
  apart, total = (
    reduction.collect(diary(), had, messages, jnp.ones(2, bool), world.GAP)
    for had in (None, none)
  )
  whole = apart.update['blocks']
  np.testing.assert_array_equal(whole[:, [0, 2]], x)
  assert not whole[:, 1].any()
  np.testing.assert_array_equal(apart.cover['blocks'], [[1, 0, 1]] * 2)
  np.testing.assert_array_equal(total.update['blocks'], whole.sum(0))
  np.testing.assert_array_equal(total.cover['blocks'], [2, 0, 2])
  assert total.count == 2
  # What these clients do not train has come from others.
  np.testing.assert_array_equal(total.update['other'], np.ones(5))


@pytest.mark.parametrize('names', [('it',), None])
def test_what_is_not_asked_for_is_not_scored(names):
  roles = diary().begin(jax.random.key(0), BEFORE)
  look = scoring.Look(diary(), world.DENSE, names)
  personal = world.stacked(roles.personal, 2)
  rows = np.array([[0, 1], [2, -1]])
  table = {'labels': jnp.array([3, 1, 2])}
  found = scoring.evaluate_chunk(look, roles, table, personal, rows)
  models = names or ('it', 'other')
  scored = {f'{what}/{name}' for what in ('score', 'loss') for name in models}
  assert set(found) == scored | {'label'}
  for sums in found.values():
    np.testing.assert_array_equal(sums, [[4, 2], [2, 1]])
