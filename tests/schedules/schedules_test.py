"""SAL schedules: monotone, bounded, pure; what each trigger means."""

import itertools
import json
import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax import schedules
from fedms_jax.core import activation
from fedms_jax.core.activation import Stack
from fedms_jax.schedules import orders, triggers
from tests import world

CAP = 6
TRIGGERS = {
  'queue': triggers.queue(1, CAP, length=3, eps=0.05, step=2),
  'queue_std': triggers.queue(
    1, CAP, length=3, eps=0.03, step=1, spread=statistics.pstdev
  ),
  'fixed': triggers.fixed(1, CAP, interval=4, step=2),
  'linear': triggers.linear(1, CAP, rounds=20),
  'geometric': triggers.geometric(1, CAP, interval=3),
  'dense': triggers.dense(CAP),
  'random': triggers.random(1, CAP, probability=0.4, step=1, seed=3),
  'manual': triggers.manual([1, 2, 2, 5], CAP),
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


def test_a_range_of_the_threshold_itself_is_not_settled():
  trigger = triggers.queue(1, CAP, length=2, eps=0.25, step=1)
  state = trigger.observe(trigger.observe(trigger.init, 0.5), 0.75)
  assert state == {'depth': 1, 'scores': [0.5, 0.75]}
  assert trigger.observe(state, 0.625)['depth'] == 2


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
  assert orders.order('top_down', 4, 0) == (3, 2, 1, 0)
  assert orders.order('bottom_up', 4, 0) == (0, 1, 2, 3)
  drawn = orders.order('random', 8, 1)
  assert sorted(drawn) == list(range(8))
  assert drawn == orders.order('random', 8, 1)
  assert drawn != orders.order('random', 8, 2)
  scores = [0.1, 0.9, 0.1, 0.5]
  assert orders.order('importance', 4, 0, scores) == (1, 3, 2, 0)


def test_a_client_activates_what_its_budget_allows():
  order = orders.order('top_down', CAP, 0)
  plan = schedules.schedule(
    triggers.manual([1, 4, 6], CAP), order, budgets=(1, 3, 6), seed=2
  )
  seen = set()
  for client in range(40):
    budget = schedules.budget((1, 3, 6), client, 2)
    seen.add(budget)
    for t, progress in enumerate([1, 4, 6]):
      (active,) = plan.active(None, t, [client])
      depth = min(progress, budget)
      assert active == (False,) * (CAP - depth) + (True,) * depth
  assert seen == {1, 3, 6}


FLAT = [1.0] * CAP
PICKS = {
  'order': orders.in_order((5, 0, 1, 2, 3, 4)),
  'allocation': orders.allocation(CAP, 1, FLAT),
  'balanced': orders.balanced(FLAT, 1.0, 1),
  'window': orders.window(CAP),
  'dropout': orders.dropout(CAP, 1),
}


def of_one(pick, depth, t, client):
  """What a pick gives a client that is alone in its cohort."""
  (active,) = pick([depth], t, [client])
  return active


@pytest.mark.parametrize('name', PICKS)
def test_a_pick_is_pure_and_as_deep_as_it_should_be(name):
  pick, clients = PICKS[name], list(range(20))
  for depth in range(1, CAP + 1):
    depths = [depth] * len(clients)
    cohorts = [pick(depths, t, clients) for t in range(5)]
    assert cohorts == [pick(depths, t, clients) for t in range(5)]
    found = list(itertools.chain(*cohorts))
    counts = [sum(active) for active in found]
    if name == 'dropout':  # in the mean; never no block
      assert 1 <= min(counts) and np.mean(counts) == pytest.approx(
        depth, abs=0.6
      )
    else:
      assert set(counts) == {depth}
    assert all(type(on) is bool for active in found for on in active)


def test_an_allocation_is_each_client_s_and_round_s_own():
  pick, clients = PICKS['allocation'], list(range(40))
  found = [pick([3] * 40, t, clients) for t in range(40)]
  assert found[2][7] == of_one(pick, 3, 2, 7)  # whoever else is there
  assert len(set(found[0])) > 5
  assert len({active[0] for active in found}) > 5
  share = np.mean(found, (0, 1))
  np.testing.assert_allclose(share, 0.5, atol=0.06)


@pytest.mark.parametrize(
  ('name', 'likeliest'),
  [('rising', [5]), ('falling', [0]), ('bottleneck', [0, 5])],
)
def test_an_allocation_prefers_by_its_shape(name, likeliest):
  pick = orders.allocation(CAP, 0, orders.shape(name, CAP))
  share = np.mean([of_one(pick, 1, t, 0) for t in range(2000)], axis=0)
  wanted = np.array(orders.shape(name, CAP))
  np.testing.assert_allclose(share, wanted / wanted.sum(), atol=0.03)
  assert set(np.argsort(wanted)[-len(likeliest) :]) == set(likeliest)


def test_an_allocation_by_importance_that_is_none_yet_is_even():
  for weights in ([0.0] * CAP, [float('nan')] * CAP):
    same = orders.allocation(CAP, 1, weights)
    assert [same([2], t, [0]) for t in range(9)] == [
      PICKS['allocation']([2], t, [0]) for t in range(9)
    ]


def test_a_window_freezes_every_block_equally_often():
  found = np.array([of_one(PICKS['window'], 4, t, 7) for t in range(3)])
  np.testing.assert_array_equal(
    ~found,
    [
      [True, True, False, False, False, False],
      [False, False, True, True, False, False],
      [False, False, False, False, True, True],
    ],
  )
  around = [of_one(PICKS['window'], 2, t, 0) for t in range(CAP)]
  assert set(np.sum(around, 0)) == {2}


def test_budgets_hold_for_every_pick():
  for name, pick in PICKS.items():
    plan = schedules.schedule(triggers.dense(CAP), pick, budgets=(2,), seed=0)
    if name != 'dropout':
      found = plan.active(None, 0, np.arange(9))
      assert [sum(active) for active in found] == [2] * 9


DEPTHS = [2, 6, 4, 2, 4, 6, 2, 1, 5]
IDS = [3, 4, 8, 11, 20, 21, 35, 36, 90]


def use(pick, t=0, depths=DEPTHS):
  """How many clients of the cohort train each block."""
  return np.sum(pick(depths, t, IDS), axis=0)


def test_what_is_as_important_is_used_as_evenly_as_budgets_allow():
  for importance in (FLAT, [0.0] * CAP, [float('nan')] * CAP):
    pick = orders.balanced(importance, 0.7, 2)
    found = pick(DEPTHS, 4, IDS)
    assert [sum(active) for active in found] == DEPTHS
    assert np.ptp(use(pick, 4)) <= 1


IMPORTANCE = [0.1, 0.9, 0.1, 0.5, 2.0, 0.3]


def test_without_balance_the_order_is_that_of_importance():
  plain = orders.in_order(orders.order('importance', CAP, 0, IMPORTANCE))
  pick = orders.balanced(IMPORTANCE, 0.0, 5)
  assert pick(DEPTHS, 3, IDS) == plain(DEPTHS, 3, IDS)


def test_more_balance_spreads_and_gives_up_importance():
  found = [orders.balanced(IMPORTANCE, x, 1) for x in (0, 0.5, 2, 50)]
  spread = [np.var(use(pick)) for pick in found]
  gained = [use(pick) @ np.array(IMPORTANCE) for pick in found]
  assert spread == sorted(spread)[::-1] and gained == sorted(gained)[::-1]
  assert len(set(spread)) == 4 and np.ptp(use(found[-1])) <= 1


def test_no_other_choice_is_better():
  """All choices of three clients, for budgets and importances by chance."""
  rng = np.random.default_rng(0)
  for _ in range(60):
    blocks = int(rng.integers(2, 5))
    depths = rng.integers(1, blocks + 1, 3).tolist()
    weights, balance = rng.random(blocks), float(rng.choice([0.2, 1.0, 4.0]))
    weights /= weights.max()

    def worth(sets, weights=weights, balance=balance):
      share = np.mean(sets, axis=0)
      return weights @ share - balance / 2 * share @ share

    every = [
      [
        s
        for s in itertools.product((False, True), repeat=blocks)
        if sum(s) == d
      ]
      for d in depths
    ]
    found = orders.balanced(weights, balance, 0)(depths, 0, [1, 2, 3])
    best = max(worth(sets) for sets in itertools.product(*every))
    assert worth(found) == pytest.approx(best, abs=1e-12)


def test_turns_change_by_round_and_seed_but_what_is_dealt_does_not():
  """So that the programs of one round serve all the others."""
  pick = orders.balanced(IMPORTANCE, 1.0, 1)
  rounds = [pick(DEPTHS, t, IDS) for t in range(20)]
  assert rounds == [pick(DEPTHS, t, IDS) for t in range(20)]
  assert len({tuple(active) for active in rounds}) > 3
  assert len({tuple(sorted(active)) for active in rounds}) == 1
  other = orders.balanced(IMPORTANCE, 1.0, 2)
  assert rounds != [other(DEPTHS, t, IDS) for t in range(20)]


def test_an_allocation_does_not_depend_on_the_order_of_the_cohort():
  pick, turned = PICKS['balanced'], slice(None, None, -1)
  found = pick(DEPTHS, 0, IDS)
  assert pick(DEPTHS[turned], 0, IDS[turned]) == found[turned]


@pytest.mark.parametrize('depth', [0, 7])
def test_a_manual_depth_that_does_not_exist_is_refused(depth):
  with pytest.raises(ValueError, match=r'depths`\[1\].*1 to 6'):
    triggers.manual([1, depth], CAP)


def test_boundary_is_the_lowest_block_that_was_ever_active():
  assert activation.boundary((False, False, True)) == 2
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


def score_of(t):
  return 0.5 + 0.1 * (-1) ** t / (1 + t)


@pytest.mark.parametrize('delay', [1, 2])
def test_a_delayed_schedule_plans_the_same_whatever_is_known_already(delay):
  """Round t is planned by the scores up to t - 1 - delay: it may not matter
  whether later ones have come in."""
  trigger = triggers.queue(1, 6, length=2, eps=0.2, step=1)
  plain = schedules.schedule(trigger, orders.order('top_down', 6, 0))
  late = schedules.delayed(plain, delay)
  assert late.delay == delay
  states = [late.init]
  for t in range(9):
    told = late.observe(json.loads(json.dumps(states[-1])), t, score_of(t))
    states.append(told)
  seen = plain.init
  for t in range(9):
    if t - 1 - delay >= 0:
      seen = plain.observe(seen, t - 1 - delay, score_of(t - 1 - delay))
    expected = plain.active(seen, t, [3])
    for known in range(max(0, t - delay), t + 1):
      assert late.active(states[known], t, [3]) == expected
  assert len(states[-1]['late']) == delay


def over(schedule, scores):
  """Whether the stage is over before each round."""
  state, out = schedule.init, []
  for t, score in enumerate(scores):
    out.append(schedule.over(state, t))
    state = json.loads(json.dumps(schedule.observe(state, t, score)))
  return out


def made(trigger, **kwargs):
  return schedules.schedule(trigger, range(CAP), **kwargs)


def test_a_stage_that_ends_is_over_when_its_queue_has_settled_at_the_cap():
  trigger = triggers.queue(CAP - 1, CAP, length=2, eps=0.1, step=1)
  flat = [0.5] * 6
  assert over(made(trigger, ends=True), flat) == [False] * 4 + [True] * 2
  assert not any(over(made(trigger), flat))
  rough = [0.1, 0.5] * 3
  assert not any(over(made(trigger, ends=True), rough))
  with pytest.raises(ValueError, match='needs a queue'):
    made(TRIGGERS['fixed'], ends=True)


def test_a_stage_is_over_when_its_score_no_longer_grows():
  scores = [0.1, 0.2, 0.25, 0.29, 0.24, *[0.9] * 5]
  found = over(schedules.until_flat(made(TRIGGERS['fixed']), 3, 0.1), scores)
  # From 0.2 on, until 0.9, nothing gains 0.1: rounds 2, 3 and 4.
  assert found == [False] * 5 + [True] + [False] * 3 + [True]


def test_the_end_of_a_stage_does_not_look_at_what_may_be_in_flight():
  inner = made(triggers.queue(CAP, CAP, length=2, eps=0.1, step=1), ends=True)
  late = schedules.delayed(inner, 1)
  assert over(inner, [0.5] * 5) == [False] * 2 + [True] * 3
  assert over(late, [0.5] * 5) == [False] * 3 + [True] * 2
  # Known ahead of time or not.
  state = late.init
  for t in range(2):
    state = late.observe(state, t, 0.5)
  assert not late.over(state, 2) and late.over(state, 3)


def test_a_queue_that_goes_on_is_that_of_the_stage_before():
  trigger = triggers.queue(1, CAP, length=3, eps=0.1, step=1)
  whole = schedules.delayed(made(trigger), 1)
  state = whole.init
  for t, score in enumerate([0.5, 0.5, 0.5, 0.7, 0.7]):
    state = whole.observe(state, t, score)
  told = whole.told(state)
  assert told == {'depth': 2, 'scores': [0.7, 0.7]}
  later = triggers.continued(trigger, told, 5)
  assert later.progress(later.init, 0) == 2
  assert later.observe(later.init, 0.7) == {'depth': 3, 'scores': []}


def test_a_count_of_rounds_goes_on():
  trigger = TRIGGERS['fixed']
  later = triggers.continued(trigger, trigger.init, 6)
  assert [later.progress(later.init, t) for t in range(4)] == [3, 3, 5, 5]
