"""pFedMoAP: a mean prompt, a pool of prompts, and a gate of each client."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import pfedmoap, pool, soft_prompts
from fedms_jax.core import columns
from fedms_jax.persistence import run_store
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation.state import Options, Stage
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.algorithms import clip_world, cohort
from tests.algorithms.clip_world import LENGTH, WIDTH

# They compile for a minute.
pytestmark = pytest.mark.slow

CHOICE = pfedmoap.Choice(
  experts=3, pool=4, width=4, heads=2, scale=2.0, local=0.5
)


@functools.cache
def method():
  algorithm = pfedmoap.pfedmoap(
    clip_world.setting(), clip_world.model().prompted, LENGTH, CHOICE
  )
  return algorithm, clip_world.begin(algorithm)


@functools.cache
def two_rounds():
  """[(roles, personal)] before, between and after two rounds; the pool is
  frozen['server']."""
  algorithm, roles = method()
  rows = world.cohort_rows()
  personal = world.stacked(roles.personal, len(rows))
  found, memory = [(roles, personal)], None
  for key in (5, 6):
    roles, personal, *_, memory = cohort.one_round(
      algorithm, roles, rows, world.DENSE, personal=personal, key=key,
      memory=memory,
    )  # fmt: skip
    found.append((roles, personal))
  return found


def test_the_first_round_is_promptfl_and_fills_the_pool():
  (start, before), (roles, personal), _ = two_rounds()
  setting = clip_world.setting()
  form = soft_prompts.of_classes(setting, clip_world.model().prompted, LENGTH)
  plain = soft_prompts.promptfl(setting, form)
  shared = {'prompt': start.shared['prompt']}
  alone = start._replace(shared=shared, personal={})
  expected, *_ = cohort.one_round(
    plain, alone, world.cohort_rows(), world.DENSE
  )
  world.close(roles.shared['prompt'], expected.shared['prompt'])
  world.same(personal['gate'], before['gate'])  # it had nothing to weigh
  held = roles.frozen['server']
  np.testing.assert_array_equal(held['prompts'][:3], personal['prompt'])
  np.testing.assert_array_equal(held['owners'][:3], personal['ticket'])
  assert pool.is_nobody(held['owners']).tolist() == [
    False, False, False, True
  ]  # fmt: skip


def test_the_second_round_trains_the_gate_beside_fixed_experts():
  _, (_, before), (roles, personal) = two_rounds()
  np.testing.assert_array_equal(personal['ticket'], before['ticket'])
  moved = np.abs(
    personal['gate']['v']['kernel'] - before['gate']['v']['kernel']
  )
  assert (moved.max(axis=(1, 2)) > 1e-4).all()
  # Prompts of the same owners, renewed.
  held = roles.frozen['server']
  np.testing.assert_array_equal(held['prompts'][:3], personal['prompt'])
  assert pool.is_nobody(held['owners']).sum() == 1


def gate(seed=0, width=4):
  rng = np.random.default_rng(seed)
  return {
    name: {
      'kernel': rng.normal(size=(width, width)).astype(np.float32),
      'bias': rng.normal(size=width).astype(np.float32),
    }
    for name in 'qkvo'
  }


def test_the_gate_is_attention_of_an_image_over_experts():
  """Against loops over images, classes and heads; the third of three experts
  does not exist."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 8)).astype(np.float32)
  classes = rng.normal(size=(3, 5, 8)).astype(np.float32)
  layers = gate()

  def linear(name, y):
    return y @ layers[name]['kernel'] + layers[name]['bias']

  expected, first = np.zeros((2, 5)), np.zeros(2)
  for b in range(2):
    for c in range(5):
      q = linear('q', x[b, ::2])
      k, v = (linear(n, classes[:2, c, ::2]) for n in 'kv')
      parts = []
      for part in (slice(0, 2), slice(2, 4)):
        w = np.exp(2.0 * k[:, part] @ q[part])
        w = w / w.sum()
        parts.append(w @ v[:, part])
        first[b] += w[0] / 10
      expected[b, c] = x[b, ::2] @ linear('o', np.concatenate(parts))
  held = np.array([True, True, False])
  found, weight = pfedmoap.attended(layers, CHOICE, x, classes, held)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(weight, first, rtol=1e-4)


def test_of_one_expert_the_gate_has_nothing_to_weigh():
  layers, x = gate(), np.ones((2, 8), np.float32)
  classes = np.random.default_rng(2).normal(size=(1, 5, 8)).astype(np.float32)
  held = np.array([True])
  found, weight = pfedmoap.attended(layers, CHOICE, x, classes, held)
  np.testing.assert_allclose(weight, 1.0, rtol=1e-6)
  v = classes[0][:, ::2] @ layers['v']['kernel'] + layers['v']['bias']
  y = v @ layers['o']['kernel'] + layers['o']['bias']
  np.testing.assert_allclose(found, x[:, ::2] @ y.T, rtol=1e-4)


def test_what_users_get_depends_on_whom_the_pool_knows():
  algorithm, _ = method()
  _, (roles, personal), _ = two_rounds()
  predict = jax.jit(lambda r, b: algorithm.predict(r, b, world.DENSE))
  batch = columns.take(world.table(), jnp.arange(6))
  batch = columns.complete(algorithm, roles, batch, world.DENSE)
  # A newcomer gets the mean prompt, and no experts.
  found = predict(roles, batch)
  world.close(found.logits['mixture'], found.logits['global'])
  np.testing.assert_array_equal(found.stats['own_weight'], 1.0)
  mine = roles._replace(personal=jax.tree.map(lambda x: x[0], personal))
  found = predict(mine, batch)
  assert np.abs(found.logits['mixture'] - found.logits['local']).max() > 1e-2
  assert (found.stats['own_weight'] < 0.9).all()
  # Alone in the pool it has its own prompt.
  only = pool.renewed(
    pool.empty(4, roles.shared['prompt']), personal['prompt'][:1],
    personal['ticket'][:1], jnp.array([True]),
  )  # fmt: skip
  frozen = mine.frozen | {'server': only}
  found = predict(mine._replace(frozen=frozen), batch)
  world.close(found.logits['mixture'], found.logits['local'])


def test_a_prompt_goes_up_and_the_mean_and_the_experts_come_down():
  algorithm, roles = method()
  meter = Meter(algorithm, roles, batch=4, slots=0)
  one = 4 * LENGTH * WIDTH
  traffic = meter.traffic(world.DENSE, world.DENSE.active, 3)
  assert traffic == (one, 3 * one)
  assert meter.trained(world.DENSE) == one + 4 * 4 * (4 * 4 + 4)


def simulate(**options):
  algorithm, _ = method()
  schedule = world.stages()[0].schedule
  records = observer.Recorder()
  simulation = driver.Simulation(
    world.federation(), clip_world.start(),
    [Stage('personal', algorithm, 2, schedule)],
    Options(cohort=3, batch_size=4, block=32, **options),
    run_store=run_store.Memory(), observer=records,
  )  # fmt: skip
  return simulation.run(), records.records


@pytest.mark.slow
def test_the_loop_and_wide_vmap_agree():
  """Columns looked up, and computed in the step."""
  state, records = simulate(clients='loop', scope='run')
  other, _ = simulate(clients='vmap', scope='step')
  world.close(state.roles.shared, other.roles.shared)
  assert np.isfinite([record['train_loss'] for record in records]).all()
