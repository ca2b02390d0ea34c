"""What an algorithm does to remember, as functions of arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.algorithms import continual, fisher, general
from fedms_jax.core import columns, reduction, rounds, tree
from fedms_jax.core.contract import Moment, Start, Work
from fedms_jax.core.types import Plan, Roles
from fedms_jax.models import tasks
from tests import world

C = world.CLASSES
EYE = np.eye(2, dtype=bool)
OF = np.repeat(EYE, 2, axis=1)  # [T, C]: two classes a task
SEEN = np.stack([OF[0], OF[0] | OF[1]])  # after each of two steps
OLD = np.stack([np.zeros(C, bool), OF[0]])


def by_task(step_classes):
  return np.repeat(step_classes[:, None], 2, axis=1)


def begun(how, setting=None, method=general.probe, step=0, **more):
  """(algorithm, roles) of a step; lessons: of the setting's task."""
  setting = setting or world.setting()
  inner = method(setting)
  algorithm = continual.through(inner, how)
  arrays = {'visible': by_task(SEEN), 'learned': by_task(SEEN),
            'old': by_task(OLD)} | more  # fmt: skip
  roles = world.start()
  roles = roles._replace(frozen=roles.frozen | continual.start(**arrays))
  begin = jax.jit(algorithm.begin)
  for number in range(step + 1):
    roles = begin(jax.random.key(number), roles)
    if number < step:
      keys = iter(jax.random.split(jax.random.key(9), 99))
      moved = jax.tree.map(
        lambda x, keys=keys: x + 0.1 * jax.random.normal(next(keys), x.shape),
        roles.shared,
      )
      roles = roles._replace(shared=moved)
  return algorithm, roles


def table():
  labels = np.asarray(world.table()['labels'])
  return world.table() | {'task': jnp.asarray(labels // 2)}


def batch(algorithm, roles, count=8, rows=None):
  rows = jnp.arange(count) if rows is None else jnp.asarray(rows)
  found = columns.take(table(), rows)
  return columns.complete(algorithm, roles, found, world.DENSE)


def test_the_second_term_of_lwf_by_hand():
  teacher = jnp.array([[0.0, np.log(3.0)]])
  old = jnp.ones((1, 2), bool)

  def kd(student, t):
    return continual.distilled(teacher, student, old, t)

  equal = jnp.zeros((1, 2))
  np.testing.assert_allclose(kd(equal, 1.0), [0.6931], atol=1e-4)
  own = kd(teacher, 1.0)  # the entropy of the teacher, which no student lowers
  np.testing.assert_allclose(kd(equal, 1.0) - own, [0.1308], atol=1e-4)
  half = kd(equal, 2.0) - kd(teacher, 2.0)
  np.testing.assert_allclose(half, [0.03634], atol=1e-4)
  slope = jax.grad(lambda s: kd(s, 2.0).sum())(teacher)
  np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_classes_that_are_not_old_teach_nothing():
  old = jnp.array([[True, True, False]])
  teacher, student = jnp.array([[1.0, 0.0, 9.0]]), jnp.array([[0.0, 1.0, -5.0]])
  found = continual.distilled(teacher, student, old, 2.0)
  two = continual.distilled(teacher[:, :2], student[:, :2], old[:, :2], 2.0)
  np.testing.assert_allclose(found, two, rtol=1e-6)
  none = continual.distilled(teacher, student, jnp.zeros((1, 3), bool), 2.0)
  assert float(none[0]) == 0.0


def one_weight(weight, fisher_, anchor):
  """Where gradient descent on (w - 1)^2 / 2 ends with an anchor."""
  optimizer = optax.chain(continual.anchoring(weight), optax.sgd(0.1))
  mine = {'fisher': {'w': jnp.float32(fisher_)},
          'anchor': {'w': jnp.float32(anchor)}}  # fmt: skip
  start = Start(Roles({continual.KEY: mine}, {}, {}), Plan((True,), 0))
  train = {'shared': {'w': jnp.float32(anchor)}, 'personal': {}}
  state = optimizer.init(train)
  for _ in range(200):
    slope = {'shared': {'w': train['shared']['w'] - 1.0}, 'personal': {}}
    moved, state = optimizer.update(
      slope, state, train, start=start, masks=((True,), (True,))
    )
    train = optax.apply_updates(train, moved)
  return float(train['shared']['w'])


@pytest.mark.parametrize(
  ('weight', 'expected'), [(2.0, 0.5), (0.0, 1.0), (30.0, 1 / 16)]
)
def test_a_weight_is_pulled_to_where_it_was(weight, expected):
  """1/2 (w - 1)^2 + weight/2 F w^2 with F = 1/2."""
  assert one_weight(weight, 0.5, 0.0) == pytest.approx(expected, abs=1e-5)


def test_an_anchor_is_in_the_client_s_own_steps():
  """Through the engine's one client, and of no weight it is the plain run."""
  ends = {}
  for weight in (None, 0.0, 1.0):
    optimizer = world.SGD
    if weight is not None:
      optimizer = optax.chain(continual.anchoring(weight), optimizer)
    how = continual.How(anchored=True)
    algorithm, roles = begun(how, world.setting(optimizer))
    mine = roles.frozen[continual.KEY]
    mine |= {'fisher': jax.tree.map(jnp.ones_like, mine['fisher'])}
    roles = roles._replace(frozen=roles.frozen | {continual.KEY: mine})
    rows = world.cohort_rows(1, steps=1)
    shared, _, _ = world.train(algorithm, roles, rows, data=table())
    ends[weight] = shared
  world.same(ends[None], ends[0.0])
  # F = 1 and w* = 0: a step of 0.5 takes half of what was there.
  was = roles.shared
  halved = jax.tree.map(lambda x, y: x - 0.5 * y, ends[0.0], was)
  world.close(ends[1.0], halved, atol=1e-6)


@pytest.mark.parametrize('teacher', ['', 'lwf', 'glfc'])
def test_classes_nobody_has_met_do_not_compete_and_do_not_move(teacher):
  lesson = continual.Lesson(teacher, 1.0)
  task = continual.learning(tasks.classification(), lesson)
  setting = world.setting()._replace(task=task)
  algorithm, roles = begun(continual.How(taught=bool(teacher)), setting)
  rows = np.flatnonzero(np.asarray(table()['task']) == 0)[:8]
  found = batch(algorithm, roles, rows=rows)
  logits = algorithm.predict(roles, found, world.DENSE).logits['global']
  assert (np.argmax(logits, axis=-1) < 2).all()
  update, start = algorithm.update, Start(roles, world.DENSE)
  carry, _ = update.step(update.begin(start), start, found, jax.random.key(0))
  moved = tree.subtract(carry['train']['shared'], roles.shared)['head']
  assert not np.asarray(moved['kernel'])[:, 2:].any()
  assert np.asarray(moved['kernel'])[:, :2].any()


def test_a_known_task_s_classes_alone_compete():
  own = np.stack([OF, OF])
  algorithm, roles = begun(continual.How(), visible=own, learned=own)
  found = batch(algorithm, roles, 40)
  said = np.argmax(
    algorithm.predict(roles, found, world.DENSE).logits['global'], axis=-1
  )
  np.testing.assert_array_equal(said // 2, found['task'])


def test_where_no_classes_are_learned_none_compete():
  inner = general.probe(world.setting())._replace(task=tasks.causal_lm())
  algorithm = continual.through(inner, continual.How())
  assert algorithm.derived == inner.derived
  frozen = {continual.KEY: {'step': jnp.int32(0)}}
  _, roles = begun(continual.How())
  roles = roles._replace(frozen=roles.frozen | frozen)
  found = batch(algorithm, roles)
  assert 'visible' not in found
  world.same(algorithm.predict(roles, found, world.DENSE).logits,
             inner.predict(roles, found, world.DENSE).logits)  # fmt: skip


def test_the_teacher_is_the_model_of_the_last_boundary():
  """Its column is what it says when asked, and training moves it nowhere."""
  algorithm, roles = begun(continual.How(taught=True), step=1)
  plain = general.probe(world.setting())
  found = batch(algorithm, roles)
  before = plain.predict(roles, found, world.DENSE).logits['global']
  np.testing.assert_allclose(found['teacher'], before, rtol=1e-6)
  moved = roles._replace(shared=jax.tree.map(lambda x: x + 1.0, roles.shared))
  np.testing.assert_array_equal(batch(algorithm, moved)['teacher'],
                                found['teacher'])  # fmt: skip
  task = continual.learning(tasks.classification(), continual.Lesson('lwf'))
  at_zero = task.loss(before, found)[0]
  masked = jnp.where(found['learned'], before, -1e9)
  world.same(at_zero, tasks.classification().loss(masked, found)[0])


def test_balanced_losses_by_hand():
  """Where all rows are equally wrong, GLFC's first half is a plain mean."""
  task = continual.learning(tasks.classification(), continual.Lesson('glfc'))
  found = {
    'labels': jnp.array([0, 2]),
    'mask': jnp.ones(2, bool),
    'learned': jnp.array([[False, False, True, True]] * 2),
    'old': jnp.array([[True, True, False, False]] * 2),
    'teacher': jnp.array([[50.0, -50.0, 0, 0], [-50.0, 50.0, 0, 0]]),
  }
  values, weights = task.loss(jnp.zeros((2, 4)), found)
  np.testing.assert_allclose(values, np.log(2.0), rtol=1e-6)
  assert weights.tolist() == [1, 1]
  # The teacher's word on old classes counts against the label's.
  sure = 9.0 * jnp.array([[1.0, -1, -1, -1], [-1.0, -1, 1, -1]])
  values, _ = task.loss(sure, found)
  # Row 1: of four classes one old one is said wrongly, at a cost of 9.
  assert float(values[0]) < 1e-3
  np.testing.assert_allclose(values[1], 0.5 * 9.0 / 4, rtol=2e-2)


@functools.cache
def measuring():
  how = continual.How(anchored=True)
  task = continual.learning(tasks.classification(), continual.Lesson())
  slope, roles = begun(how, world.setting(world.PLAIN)._replace(task=task))
  return fisher.measured(slope, slope, 0.5), roles


def measured(rows):
  """frozen['tasks'] after a round over clients with these rows [K, S, B]."""
  algorithm, roles = measuring()
  roles, memory, channel = reduction.begin(algorithm, roles, 0)
  totals = reduction.empty(algorithm, roles)
  weights = (rows >= 0).sum((1, 2)).astype(np.float32)
  chunk = world.clients(rows, {}, weights)
  work = Work(table(), jax.random.key(0), Moment())
  totals, *_ = rounds.train(algorithm, world.DENSE, roles, work, totals, chunk)
  after, *_ = reduction.close(
    algorithm, roles, memory, channel, totals, jax.random.key(0), 0
  )
  world.same(after.shared, roles.shared)
  return after.frozen[continual.KEY]


def test_what_a_task_depends_on_is_the_same_for_any_partition():
  """And it is the mean square of the gradients of single rows."""
  rows = np.arange(1, 13, dtype=np.int32)
  alone = measured(rows.reshape(1, 3, 4))
  uneven = np.full((3, 2, 4), -1, np.int32)
  uneven[0, 0], uneven[0, 1], uneven[1, 0, :3], uneven[2, 0, 0] = (
    rows[:4], rows[4:8], rows[8:11], rows[11],
  )  # fmt: skip
  world.close(measured(uneven)['fisher'], alone['fisher'], atol=1e-6)
  algorithm, roles = measuring()
  world.same(alone['anchor'], roles.shared)
  inner = general.probe(world.setting(world.PLAIN))
  found = batch(algorithm, roles, rows=rows)

  def loss(shared, row):
    one = jax.tree.map(lambda x: x[None], row)
    out = inner.predict(roles._replace(shared=shared), one, world.DENSE)
    out = jnp.where(one['learned'], out.logits['global'], -1e9)
    return jnp.sum(tasks.classification().loss(out, one)[0])

  slopes = jax.vmap(lambda row: jax.grad(loss)(roles.shared, row))(found)
  expected = jax.tree.map(lambda g: jnp.mean(jnp.square(g), 0), slopes)
  visible = np.asarray(found['task']) == 0
  assert visible.any()
  world.close(alone['fisher'], expected, atol=1e-5)


def test_several_stages_of_a_method_each_go_on_with_their_own():
  first = continual.through(
    general.probe(world.setting()), continual.How(index=0, of=2)
  )

  def begin(key, before):
    del key
    return Roles({'base': before.frozen['base']}, before.shared, {})

  second = general.probe(world.setting())._replace(begin=begin)
  second = continual.through(second, continual.How(index=1, of=2))
  _, roles = begun(continual.How(index=0, of=2))

  def moved(roles, by):
    return roles._replace(shared=jax.tree.map(lambda x: x + by, roles.shared))

  one = moved(roles, 1.0)
  two = second.begin(jax.random.key(1), one)
  world.same(two.shared, one.shared)
  two = moved(two, 5.0)
  again = first.begin(jax.random.key(2), two)
  world.same(again.shared, one.shared)
  assert int(again.frozen[continual.KEY]['step']) == 1
  last = second.begin(jax.random.key(3), moved(again, 1.0))
  world.same(last.shared, two.shared)
