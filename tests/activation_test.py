"""SAL schedules: monotone, bounded, pure; what each trigger means."""

import json
import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax import activation
from fedms_jax.activation import Stack
from tests import world

CAP = 6
TRIGGERS = {
  'queue': activation.queue(1, CAP, length=3, eps=0.05, step=2),
  'queue_std': activation.queue(
    1, CAP, length=3, eps=0.03, step=1, spread=statistics.pstdev
  ),
  'fixed': activation.fixed(1, CAP, interval=4, step=2),
  'linear': activation.linear(1, CAP, rounds=20),
  'geometric': activation.geometric(1, CAP, interval=3),
  'dense': activation.dense(CAP),
  'random': activation.random(1, CAP, probability=0.4, step=1, seed=3),
  'manual': activation.manual([1, 2, 2, 5], CAP),
}


def depths(trigger, scores):
  """The depth of each round, planned by what was observed before it."""
  state, out = trigger.init, []
  for t, score in enumerate(scores):
    out.append(trigger.progress(state, t))
    state = json.loads(json.dumps(trigger.observe(state, score)))
  return out


@pytest.mark.parametrize('name', TRIGGERS)
def test_depth_is_monotone_and_bounded_and_pure(name):
  scores = np.random.default_rng(0).random(40) * 0.1
  found = depths(TRIGGERS[name], scores)
  assert found == sorted(found)
  assert 1 <= found[0] and found[-1] <= CAP
  assert found == depths(TRIGGERS[name], scores)


def test_triggers_by_hand():
  flat = [0.5] * 8
  assert depths(TRIGGERS['fixed'], flat) == [1, 1, 1, 1, 3, 3, 3, 3]
  assert depths(TRIGGERS['geometric'], flat) == [1, 1, 1, 2, 2, 2, 4, 4]
  assert depths(TRIGGERS['manual'], flat) == [1, 2, 2, 5, 5, 5, 5, 5]
  assert depths(TRIGGERS['dense'], flat) == [6] * 8
  line = depths(TRIGGERS['linear'], [0.5] * 20)
  assert (line[0], line[-1]) == (1, 6)
  assert all(line.count(d) in (3, 4) for d in range(1, 7))


def test_the_queue_fires_when_it_is_full_and_settled_and_is_then_empty():
  trigger = TRIGGERS['queue']
  state = trigger.init
  for score in (0.1, 0.5, 0.52):  # full, but not settled
    state = trigger.observe(state, score)
  assert state == {'depth': 1, 'scores': [0.1, 0.5, 0.52]}
  state = trigger.observe(state, 0.54)  # 0.1 has left the queue
  assert state == {'depth': 3, 'scores': []}
  for score in (0.5, 0.5):
    state = trigger.observe(state, score)
  assert state['depth'] == 3  # not full again yet
  for _ in range(20):
    state = trigger.observe(state, 0.5)
  assert state['depth'] == CAP


def test_the_other_queue_fires_by_the_standard_deviation():
  losses = [1.0, 1.0, 1.05]  # range 0.05, standard deviation 0.024
  for name, depth in (('queue', 1), ('queue_std', 2)):
    state = TRIGGERS[name].init
    for loss in losses:
      state = TRIGGERS[name].observe(state, loss)
    assert state['depth'] == depth, name


def test_a_score_that_is_not_finite_settles_nothing():
  state = TRIGGERS['queue'].init
  for score in (0.5, float('nan'), 0.5, 0.5):
    state = TRIGGERS['queue'].observe(state, score)
  assert state['depth'] == 1


def test_orders():
  assert activation.order('top_down', 4, 0) == (3, 2, 1, 0)
  assert activation.order('bottom_up', 4, 0) == (0, 1, 2, 3)
  drawn = activation.order('random', 8, 1)
  assert sorted(drawn) == list(range(8))
  assert drawn == activation.order('random', 8, 1)
  assert drawn != activation.order('random', 8, 2)
  scores = [0.1, 0.9, 0.1, 0.5]
  assert activation.order('importance', 4, 0, scores) == (1, 3, 2, 0)


def test_a_client_activates_what_its_budget_allows():
  order = activation.order('top_down', CAP, 0)
  plan = activation.schedule(
    activation.manual([1, 4, 6], CAP), order, budgets=(1, 3, 6), seed=2
  )
  seen = set()
  for client in range(40):
    budget = activation.budget((1, 3, 6), client, 2)
    seen.add(budget)
    for t, progress in enumerate([1, 4, 6]):
      active = plan.active(None, t, client)
      depth = min(progress, budget)
      assert active == (False,) * (CAP - depth) + (True,) * depth
  assert seen == {1, 3, 6}


FLAT = [1.0] * CAP
PICKS = {
  'order': activation.in_order((5, 0, 1, 2, 3, 4)),
  'allocation': activation.allocation(CAP, 1, FLAT),
  'window': activation.window(CAP),
  'dropout': activation.dropout(CAP, 1),
}


@pytest.mark.parametrize('name', PICKS)
def test_a_pick_is_pure_and_as_deep_as_it_should_be(name):
  pick, clients = PICKS[name], range(20)
  for depth in range(1, CAP + 1):
    found = [pick(depth, t, k) for t in range(5) for k in clients]
    assert found == [pick(depth, t, k) for t in range(5) for k in clients]
    counts = [sum(active) for active in found]
    if name == 'dropout':  # in the mean; never no block
      assert 1 <= min(counts) and np.mean(counts) == pytest.approx(
        depth, abs=0.6
      )
    else:
      assert set(counts) == {depth}
    assert all(type(on) is bool for active in found for on in active)


def test_an_allocation_is_each_client_s_and_round_s_own():
  pick = PICKS['allocation']
  assert len({pick(3, 0, k) for k in range(40)}) > 5
  assert len({pick(3, t, 0) for t in range(40)}) > 5
  share = np.mean([pick(3, t, k) for t in range(40) for k in range(40)], 0)
  np.testing.assert_allclose(share, 0.5, atol=0.06)


@pytest.mark.parametrize(
  ('name', 'likeliest'),
  [('rising', [5]), ('falling', [0]), ('bottleneck', [0, 5])],
)
def test_an_allocation_prefers_by_its_shape(name, likeliest):
  pick = activation.allocation(CAP, 0, activation.shape(name, CAP))
  share = np.mean([pick(1, t, 0) for t in range(2000)], axis=0)
  wanted = np.array(activation.shape(name, CAP))
  np.testing.assert_allclose(share, wanted / wanted.sum(), atol=0.03)
  assert set(np.argsort(wanted)[-len(likeliest) :]) == set(likeliest)


def test_an_allocation_by_importance_that_is_none_yet_is_even():
  for weights in ([0.0] * CAP, [float('nan')] * CAP):
    same = activation.allocation(CAP, 1, weights)
    assert [same(2, t, 0) for t in range(9)] == [
      PICKS['allocation'](2, t, 0) for t in range(9)
    ]


def test_a_window_freezes_every_block_equally_often():
  found = np.array([PICKS['window'](4, t, 7) for t in range(3)])
  np.testing.assert_array_equal(
    ~found,
    [
      [True, True, False, False, False, False],
      [False, False, True, True, False, False],
      [False, False, False, False, True, True],
    ],
  )
  around = [PICKS['window'](2, t, 0) for t in range(CAP)]
  assert set(np.sum(around, 0)) == {2}


def test_budgets_hold_for_every_pick():
  for name, pick in PICKS.items():
    plan = activation.schedule(
      activation.dense(CAP), pick, budgets=(2,), seed=0
    )
    if name != 'dropout':
      assert all(sum(plan.active(None, 0, k)) == 2 for k in range(9))


@pytest.mark.parametrize('depth', [0, 7])
def test_a_manual_depth_that_does_not_exist_is_refused(depth):
  with pytest.raises(ValueError, match=r'schedule.depths\[1\].*1 to 6'):
    activation.manual([1, depth], CAP)


def test_boundary_is_the_lowest_block_that_was_ever_active():
  assert activation.boundary((False, False, True)) == 2
  assert activation.boundary((False, False, True), 1) == 1
  assert activation.boundary((False, False, False)) == 3


def test_spans_cover_the_blocks_and_take_each_from_its_owner():
  full = {'x': jnp.arange(6.0)}
  shared = Stack(full, {'x': jnp.array([101.0])}, (False, True) + (False,) * 4)
  top = (False,) * 3 + (True,) * 2 + (False,)
  personal = Stack({'x': -jnp.arange(6.0)}, {'x': jnp.array([203.0, 204.0])},
                   top)  # fmt: skip
  found = activation.spans([shared, personal], 1)
  assert [(s.start, s.stop) for s in found] == [(1, 2), (2, 3), (3, 5), (5, 6)]
  values = np.concatenate([s.params['x'] for s in found])
  np.testing.assert_array_equal(values, [101, -2, 203, 204, -5])
  assert activation.spans([shared, personal], 6) == ()
  rest = activation.at_rest(full, 6)
  (span,) = activation.spans([rest], 2)
  world.same(span.params, {'x': jnp.arange(2.0, 6.0)})
