"""Parts that all share, masked, and parts of each task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedms_jax.algorithms import continual, fedms, fedweit
from fedms_jax.core import columns, reduction, tree
from fedms_jax.core.contract import Context, Received, Start
from tests import world

T, POOL = 2, 3
CHOICE = fedweit.Choice(T, POOL, 0.0, 0.0, 0.3, 0.01)
STILL = optax.sgd(0.0)


@functools.cache
def method(choice=CHOICE, optimizer=STILL):
  """(algorithm, roles with a B that is not zero, the server's memory)."""
  algorithm = fedweit.fedweit(world.setting(optimizer), choice)
  roles = world.trained(jax.jit(algorithm.begin)(jax.random.key(2),
                                                 world.start()))  # fmt: skip
  roles, memory, _ = reduction.begin(algorithm, roles, 0)
  return algorithm, roles, memory


def batch(algorithm, roles, task, rows=8):
  found = columns.take(world.table(), jnp.arange(rows))
  found['task'] = jnp.broadcast_to(jnp.int32(task), (rows,))
  return columns.complete(algorithm, roles, found, world.DENSE)


@functools.cache
def stepped(choice=CHOICE, optimizer=STILL):
  algorithm, *_ = method(choice, optimizer)

  @jax.jit
  def one(roles, found):
    start = Start(roles, world.DENSE)
    carry = algorithm.update.begin(start)
    carry, _ = algorithm.update.step(carry, start, found, jax.random.key(0))
    return algorithm.update.finish(carry, start)

  return one


def moved(values, seed, by=0.2):
  keys = iter(jax.random.split(jax.random.key(seed), 99))
  return jax.tree.map(
    lambda x: x + by * jax.random.normal(next(keys), x.shape), values
  )


def leaf(x):
  """A LoRA of one layer and block, of a alone: [L, d_in, R]."""
  return {'a': jnp.asarray(x, jnp.float32).reshape(1, 2, 2)}


def test_the_parameters_of_a_task_by_hand():
  base, own, mixed = leaf([4, 8, 4, 8]), leaf([1, 0, 0, 0]), leaf([0, 0, 0, 5])
  masks = {'a': jnp.array([[0.0, 50.0]])}  # halves the first output
  one = {'masks': masks, 'own': own, 'mixed': mixed}
  found = fedweit._theta(base, one)['a'].ravel().tolist()
  assert found == [3, 8, 2, 13]


def test_earlier_tasks_are_held_where_they_were_by_hand():
  base = leaf([4, 8, 4, 8])
  masks = {'a': jnp.zeros((2, 1, 2))}
  own = {'a': jnp.zeros((2, 1, 2, 2))}
  goal = {'a': jnp.stack([leaf([2, 4, 2, 7])['a'], leaf([9, 9, 9, 9])['a']])}
  mine = {'masks': masks, 'own': own, 'goal': goal, 'met': jnp.ones(2)}
  # Of task 1 nothing counts while it is trained on: 4 is 3 from 7.
  assert float(fedweit._apart(base, mine, 1)) == 9
  assert float(fedweit._apart(base, mine | {'met': jnp.zeros(2)}, 1)) == 0


def test_a_new_task_begins_with_a_third_of_what_all_share():
  algorithm, roles, _ = method()
  base = roles.shared['blocks']
  message, kept = stepped()(roles, batch(algorithm, roles, 1))
  assert kept['met'].tolist() == [0, 1]
  before, own = (tree.rows(kept['own'], i) for i in (0, 1))
  world.same(before, jax.tree.map(jnp.zeros_like, base))
  world.close(own, tree.scale(base, 1 / 3))
  # m is 0: what is kept is 1/2 + 1/3 of B.
  world.close(tree.rows(kept['goal'], 1), tree.scale(base, 5 / 6))
  world.same(message.update['blocks'], base)
  sent = message.extras['tasks']['own']
  small = jax.tree.map(lambda x: (jnp.abs(x) <= 0.01) & (x != 0), own)
  assert any(np.asarray(x).any() for x in jax.tree.leaves(small))
  expected = jax.tree.map(lambda x, y: jnp.where(y, 0, x), own, small)
  world.close(sent, expected)
  # The next round goes on with it.
  other = moved(base, 7)
  later = roles._replace(shared=roles.shared | {'blocks': other}, personal=kept)
  _, again = stepped()(later, batch(algorithm, roles, 1))
  world.same(again['own'], kept['own'])


def test_what_a_mask_looks_at_least_is_not_sent():
  masks = jnp.array([[0.1, -3.0, 0.2, 1.0, -0.4], [0.0, 0.0, 0.0, 0.0, 0.0]])
  like = jnp.zeros((2, 3, 5))
  found = fedweit._sent(masks, 0.3, np.array([0, 1]), like)
  assert found.shape == like.shape
  assert found[0].tolist() == [[0, 1, 0, 1, 1]] * 3
  assert (found[1] == 1).all()  # all are alike
  assert (fedweit._sent(masks, 0.0, np.array([0]), like[:1]) == 1).all()


def test_a_row_is_predicted_by_the_parameters_of_its_task():
  algorithm, roles, _ = method()
  plain = fedms.global_stage(world.setting(STILL))
  personal = moved(roles.personal, 3) | {'met': jnp.array([1.0, 0.0])}
  roles = roles._replace(personal=personal)
  mixed = batch(algorithm, roles, 0)
  mixed['task'] = jnp.arange(8) % 2
  predict = jax.jit(lambda r, b: algorithm.predict(r, b, world.DENSE))
  found = predict(roles, mixed).logits['by_task']
  theta = fedweit._theta(roles.shared['blocks'], tree.rows(personal, 0))
  first = roles.shared | {'blocks': theta}
  predict = jax.jit(lambda r, b: plain.predict(r, b, world.DENSE))
  for task, shared in enumerate((first, roles.shared)):  # 1 was never met
    whole = roles._replace(shared=shared, personal={})
    said = predict(whole, mixed).logits['global']
    np.testing.assert_allclose(found[task::2], said[task::2], atol=1e-5)


def test_training_on_a_task_pulls_others_to_where_they_were():
  """With no pull they are not looked at; with some they follow B."""
  heavy = CHOICE._replace(pull=0.5)
  gaps = {}
  for choice in (CHOICE, heavy):
    algorithm, roles, _ = method(choice, world.SGD)
    _, kept = stepped(choice, world.SGD)(roles, batch(algorithm, roles, 0))
    shared = roles.shared | {'blocks': moved(roles.shared['blocks'], 4)}
    later = roles._replace(shared=shared, personal=kept)
    message, after = stepped(choice, world.SGD)(
      later, batch(algorithm, roles, 1)
    )
    world.same(tree.rows(after['goal'], 0), tree.rows(kept['goal'], 0))
    gaps[choice.pull] = float(
      fedweit._apart(message.update['blocks'], after, 1)
    )
    same = tree.equal(tree.rows(after['own'], 0), tree.rows(kept['own'], 0))
    assert bool(same) == (choice.pull == 0)
  assert gaps[0.5] < 0.8 * gaps[0.0]


def test_sparse_parts_get_smaller():
  """The derivative of |A| is its sign."""
  sparse = CHOICE._replace(sparsity=0.1)
  ends = []
  for choice in (CHOICE, sparse):
    algorithm, roles, _ = method(choice, world.SGD)
    _, kept = stepped(choice, world.SGD)(roles, batch(algorithm, roles, 0))
    ends.append(tree.rows(kept['own'], 0))
  start = tree.scale(roles.shared['blocks'], 1 / 3)
  expected = jax.tree.map(lambda x, s: x - 0.05 * jnp.sign(s), ends[0], start)
  world.close(ends[1], expected, atol=1e-5)


def test_what_others_had_of_the_last_task_is_mixed_in_the_next():
  algorithm, roles, memory = method()
  base = roles.shared['blocks']
  server = jax.jit(algorithm.server.step)

  def closed(step, memory, own, weight=1.0):
    key = {continual.KEY: {'step': jnp.int32(step)}}
    now = roles._replace(frozen=roles.frozen | key)
    update = {'blocks': base, 'head': roles.shared['head']}
    cover = {'blocks': jax.tree.map(jnp.ones_like, base),
             'head': jnp.float32(1)}  # fmt: skip
    extras = {'tasks': {'own': tree.scale(base, own)}}
    update, extras, cover = jax.tree.map(
      lambda x: x[None], (update, extras, tree.scale(cover, weight))
    )
    received = Received(update, extras, cover, jnp.float32(1), jnp.float32(0))
    return server(now, memory, received, Context(jax.random.key(0)))[1]

  first = closed(0, closed(0, memory, 1.0), 2.0)
  assert not np.asarray(first['seen']['held']).any()
  world.same(closed(0, first, 9.0, weight=0.0), first)
  later = closed(1, first, 3.0)
  assert later['seen']['held'].tolist() == [1, 1, 0]
  assert later['next']['held'].tolist() == [1, 0, 0]
  world.same(later['seen'], first['next'])
  personal = roles.personal | {'shares': jnp.array([[0, 0, 0], [2.0, 1, 5]])}
  frozen = roles.frozen | {'server': later['seen']}
  found = fedweit._mixed(roles._replace(frozen=frozen), personal, 1)
  world.close(found, tree.scale(base, 2 * 2.0 + 1 * 1.0))


def test_inactive_blocks_of_earlier_tasks_stay():
  plan = world.GAP
  decay = CHOICE._replace(pull=1.0)
  algorithm, roles, _ = method(decay, world.DECAY)
  kept = moved(roles.personal, 6) | {'met': jnp.ones(2)}
  roles = roles._replace(personal=kept)

  @jax.jit
  def stepped(roles):
    start = Start(roles, plan)
    found = batch(algorithm, roles, 1)
    found |= algorithm.columns(roles, found, plan)
    carry = algorithm.update.begin(start)
    carry, _ = algorithm.update.step(carry, start, found, jax.random.key(0))
    return algorithm.update.finish(carry, start)[1]

  after = stepped(roles)
  for block, active in enumerate(plan.active):
    for name in ('own', 'masks'):
      one, two = (
        jax.tree.map(lambda x, b=block: x[:, b], p[name]) for p in (kept, after)
      )
      assert bool(tree.equal(one, two)) != active
