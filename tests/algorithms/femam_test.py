"""FeMAM: sums of models by levels, of which the newest trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import femam, levels
from fedms_jax.core import columns, reduction, tree
from tests import world
from tests.algorithms import cohort
from tests.algorithms.two_models_test import noisy

# They compile for a minute.
pytestmark = pytest.mark.slow

RATE = 0.5  # of world.SGD
CHOICE = levels.Choice(3, 2, 8, 2, 0.1, 0.0)


@functools.cache
def method():
  """(algorithm, roles, memory) with models that all say something."""
  algorithm = femam.femam(world.setting(), CHOICE)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  own = {key: roles.personal[key] for key in ('blocks', 'head')}
  roles = roles._replace(
    shared=noisy(roles.shared, 1), personal=roles.personal | noisy(own, 2)
  )
  roles, memory, _ = reduction.begin(algorithm, roles, 0)
  return algorithm, roles, memory


def at_level(level, centers=None):
  """The memory of a server whose newest level this is."""
  memory = method()[2]
  seen = memory['seen'] | {'level': jnp.int32(level)}
  if centers is not None:
    seen['centers'] = centers
  return memory | {'seen': seen}


def one_round(level, *, personal=None, centers=None, rows=None):
  algorithm, roles, _ = method()
  rows = world.cohort_rows(clients=2, steps=1) if rows is None else rows
  rows = np.where(rows < 0, 1, rows)
  found = cohort.one_round(
    algorithm, roles, rows, world.DENSE, memory=at_level(level, centers),
    personal=personal,
  )  # fmt: skip
  return found, rows


def logits(model, images):
  """Of a model of one level, by FedAvg's prediction."""
  plain, start = world.first_stage()
  batch = {'inputs': images, 'mask': jnp.ones(len(images), bool)}
  roles = start._replace(shared=model)
  batch |= plain.columns(roles, batch, world.DENSE)
  return plain.predict(roles, batch, world.DENSE).logits['global']


def cross_entropy(out, labels):
  batch = {'labels': labels, 'mask': jnp.ones(len(labels), bool)}
  return world.TASK.loss(out, batch)[0].mean()


def middle(shared, cluster):
  return jax.tree.map(lambda x: x[0, cluster], shared['middle'])


def level_0(shared):
  return {key: shared[key] for key in ('blocks', 'head')}


@pytest.mark.slow
def test_the_first_level_is_fedavg():
  _, roles, _ = method()
  found, rows = one_round(0)
  plain, start = world.first_stage()
  expected = cohort.one_round(
    plain, start._replace(shared=level_0(roles.shared)), rows, world.DENSE
  ).roles.shared
  world.close(level_0(found.roles.shared), expected)
  world.same(found.roles.shared['middle'], roles.shared['middle'])


@pytest.mark.slow
def test_a_fresh_level_adds_nothing():
  algorithm, _, _ = method()
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  for model in (middle(roles.shared, 1), level_0(roles.personal)):
    images = world.columns()['inputs'][:4]
    np.testing.assert_array_equal(logits(model, images), np.zeros((4, 4)))


@pytest.mark.slow
def test_a_client_s_prediction_is_the_sum_of_what_it_keeps():
  algorithm, roles, _ = method()
  images = world.columns()['inputs'][:6]
  own = roles.personal | {
    'kept': jnp.array([1.0, 0.0, 1.0]),
    'cluster': jnp.array([1.0]),
    'assigned': jnp.array([1.0]),
  }
  models = [level_0(roles.shared), middle(roles.shared, 1), level_0(own)]
  each = [logits(model, images) for model in models]
  for kept in ([1.0, 0, 1], [1.0, 1, 0], [1.0, 1, 1]):
    mine = roles._replace(personal=own | {'kept': jnp.array(kept)})
    batch = columns.take(world.table(), jnp.arange(6))
    batch = columns.complete(algorithm, mine, batch, world.DENSE)
    found = algorithm.predict(mine, batch, world.DENSE)
    expected = sum(k * x for k, x in zip(kept, each, strict=True))
    np.testing.assert_allclose(found.logits['local'], expected, atol=1e-4)
    assert found.stats['levels_kept'].tolist() == [sum(kept)] * 6


def test_a_cluster_learns_on_the_loss_of_the_sum():
  """Each of two clients has the nearest center; older levels rest."""
  _, roles, _ = method()
  width = roles.personal['moved'].shape[0]
  centers = jnp.eye(2, width)
  personal = world.stacked(roles.personal, 2)
  personal |= {'moved': 0.9 * centers[::-1]}  # the first is near the second
  found, rows = one_round(1, personal=personal, centers=centers)
  data, first = (
    jax.tree.map(jnp.asarray, world.columns()),
    level_0(roles.shared),
  )

  def loss(model, rows):
    images, labels = data['inputs'][rows], data['labels'][rows]
    return cross_entropy(logits(first, images) + logits(model, images), labels)

  slope = jax.jit(jax.grad(loss))
  for client, cluster in ((0, 1), (1, 0)):
    before = middle(roles.shared, cluster)
    moved = slope(before, rows[client, 0])
    expected = jax.tree.map(lambda x, g: x - RATE * g, before, moved)
    world.close(middle(found.roles.shared, cluster), expected)
  world.same(level_0(found.roles.shared), first)
  assert found.personal['cluster'][:, 0].tolist() == [1, 0]
  assert found.personal['kept'].tolist() == [[1, 1, 0]] * 2
  lengths = np.linalg.norm(found.personal['moved'], axis=1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_the_last_level_is_the_client_s_own():
  _, roles, _ = method()
  found, _ = one_round(2)
  world.same(found.roles.shared, roles.shared)
  for one in (0, 1):
    mine = jax.tree.map(lambda x, k=one: x[k], level_0(found.personal))
    gap = tree.subtract(mine, level_0(roles.personal))
    assert all(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(gap))


@pytest.mark.slow
@pytest.mark.parametrize('useful', [True, False])
def test_a_level_that_does_not_help_is_dropped(useful):
  """When the client meets the next one, by the loss of its first batch."""
  algorithm, roles, _ = method()
  mine = np.flatnonzero(world.columns()['labels'] == 1)[:4]
  rows = mine.reshape(1, 1, 4).astype(np.int32)
  wanted = 1 if useful else 2  # the class that the level always says
  zeros = jax.tree.map(jnp.zeros_like, roles.shared['middle'])
  bias = jnp.zeros((1, 2, 4)).at[..., wanted].set(2.0)
  zeros['head']['bias'] = bias
  changed = roles._replace(
    shared=roles.shared | {'middle': zeros},
    personal=roles.personal
    | {
      'kept': jnp.array([1.0, 1, 0]),
      'seen': jnp.float32(1),
      'assigned': jnp.ones(1),
    },
  )
  found = cohort.one_round(
    algorithm, changed, rows, world.DENSE, memory=at_level(2)
  )
  assert found.personal['kept'][0].tolist() == [1, float(useful), 1]


def test_a_level_begins_when_the_losses_are_alike():
  _, _, memory = method()
  seen, pool = memory['seen'], memory['pool']

  def after(level, *queue):
    now = seen | {'level': jnp.int32(level)}
    found = levels._next_level(CHOICE, now, jnp.array(queue), pool)
    return int(found['seen']['level']), found['queue']

  assert after(0, 1.0, 0.95)[0] == 1
  assert np.isinf(after(0, 1.0, 0.95)[1]).all()  # it is counted anew
  assert after(0, 1.0, 0.85)[0] == 0
  assert after(0, jnp.inf, 1.0)[0] == 0  # not full yet
  assert after(2, 1.0, 1.0)[0] == 2  # there is no other level


@pytest.mark.slow
def test_the_server_measures_what_clients_had_before_they_trained():
  _, roles, _ = method()
  found, rows = one_round(0)
  data = world.columns()
  losses = []
  for mine in rows[:, 0]:
    out = logits(level_0(roles.shared), data['inputs'][mine])
    losses.append(cross_entropy(out, data['labels'][mine]))
  np.testing.assert_allclose(
    found.memory['queue'][-1], np.mean(losses), rtol=1e-4
  )
  assert found.memory['pool']['held'][:3].tolist() == [1, 1, 0]
  np.testing.assert_allclose(
    found.memory['pool']['adapters']['moved'][:2],
    found.personal['moved'],
    rtol=1e-6,
  )
