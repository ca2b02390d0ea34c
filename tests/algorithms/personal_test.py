"""Methods that keep a part of one model with its client."""

import functools

import jax
import numpy as np
import pytest

from fedms_jax.algorithms import personal
from fedms_jax.core import client
from fedms_jax.core.contract import Moment, Start
from fedms_jax.systems.ledger import Meter
from tests import world


@functools.cache
def method(make, *args):
  """(algorithm, roles) of a method with LoRA that does something."""
  algorithm = make(world.setting(), *args)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  shared = world.trained(roles).shared
  return algorithm, roles._replace(shared=shared)


def changed(before, after):
  return any(
    np.asarray(x != y).any()
    for x, y in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
  )


def test_local_only_is_training_alone_and_sends_nothing():
  algorithm, roles = method(personal.local_only)
  rows = world.cohort_rows()
  shared, own, _ = world.train(algorithm, roles, rows)
  assert shared == {}
  together, start = world.first_stage()
  for i in range(len(rows)):
    alone = world.train(together, start, rows[i : i + 1])[0]
    world.close(jax.tree.map(lambda x, i=i: x[i], own), alone)
  meter = Meter(algorithm, roles, batch=4, slots=0)
  assert meter.traffic(world.DENSE, world.DENSE.active, 3) == (0, 0)
  assert meter.handover() == 0 and meter.trained(world.DENSE) > 0


def test_fedper_shares_lora_alone_and_trains_both_at_once():
  algorithm, roles = method(personal.fedper)
  assert set(roles.shared) == {'blocks'} and set(roles.personal) == {'head'}
  rows = world.cohort_rows(clients=1, steps=1)
  shared, own, _ = world.train(algorithm, roles, rows)
  together, start = world.first_stage()
  whole = roles.shared | roles.personal
  joint = world.train(together, start._replace(shared=whole), rows)[0]
  world.close(shared['blocks'], joint['blocks'])
  world.close(jax.tree.map(lambda x: x[0], own['head']), joint['head'])
  _, own, _ = world.train(algorithm, roles, world.cohort_rows())
  kernel = own['head']['kernel']
  assert np.abs(kernel[0] - kernel[2]).max() > 1e-4


@pytest.mark.parametrize(('share', 'heads'), [(0.5, 2), (0.3, 2), (0.8, 4)])
def test_fedrep_trains_the_head_first_and_then_the_lora(share, heads):
  algorithm, roles = method(personal.fedrep, share)
  rows = np.arange(1, 17, dtype=np.int32).reshape(4, 4)

  @jax.jit
  def step(carry, rows, number):
    now = client.at_step(start, number)
    return client.one_step(
      algorithm, carry, now, world.table(), rows, jax.random.key(0)
    )

  start = Start(roles, world.TOP, Moment(steps=len(rows)))
  carry = (algorithm.update.begin(start), client.zero_sums(algorithm))
  moves = []
  for number in range(4):
    before = algorithm.update.finish(carry[0], start)
    carry = step(carry, rows[number], number)
    after = algorithm.update.finish(carry[0], start)
    moves.append([changed(a, b) for a, b in zip(before, after, strict=True)])
  head, lora = [False, True], [True, False]  # shared, personal
  assert moves == [head] * heads + [lora] * (4 - heads)


def test_a_step_knows_how_far_its_client_is():
  """Padded steps do not count, under vmap and in a loop."""
  algorithm, roles = world.first_stage()
  seen = []

  def note(carry, start, batch, key):
    progress = client.progress(start.moment)
    jax.debug.callback(lambda x: seen.append(float(x)), progress)
    return carry, client.zero_sums(algorithm)

  watched = algorithm._replace(update=algorithm.update._replace(step=note))
  rows = np.full((2, 4, 4), -1, np.int32)
  rows[0, :2] = rows[1] = 1
  own = [0.0, 0.0, 0.25, 0.5, 0.5, 0.75]
  for how, after in (('loop', []), ('vmap', [1.0, 1.5])):
    seen.clear()
    jax.block_until_ready(world.train(watched, roles, rows, how=how))
    jax.effects_barrier()
    assert sorted(seen) == own + after
