"""Mixed ranks: what a client sees, sends, gives up, and how that is merged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import lora_merging, ranks
from fedms_jax.core import tree
from fedms_jax.core.contract import ClientUpdate, Message, Start
from fedms_jax.core.types import Plan, Roles
from tests import world
from tests.algorithms import cohort
from tests.algorithms.lora_cohort import (
  MAKERS,
  ROWS,
  WEIGHTS,
  started,
  update_of,
)

# Ranks 1, 2 and 1 of R = 2.
RANKS = (1, 2, 1)
MIXED = [world.TOP._replace(variant=r) for r in RANKS]


@functools.cache
def ranked(name):
  return MAKERS[name](world.setting(), rank_of=lambda client: RANKS[client])


@functools.cache
def at_ranks(name, which=(0, 1, 2)):
  """A round of some of the three clients, each at its rank."""
  places = list(which)
  plans = [MIXED[i] for i in places]
  roles = started('fedit')
  if name == 'flora':
    extra = started('flora').frozen['delta_blocks']
    roles = roles._replace(frozen=roles.frozen | {'delta_blocks': extra})
  return roles, cohort.one_round(ranked(name), roles, ROWS[places], plans)


def test_columns_beyond_a_clients_rank_stay_bitwise():
  before, (roles, *_) = at_ranks('hetlora', (0,))
  old, new = before.shared['blocks'], roles.shared['blocks']
  for target in world.TARGETS:
    (a0, b0), (a1, b1) = (lora.pairs(x)[target] for x in (old, new))
    np.testing.assert_array_equal(a1[..., 1:], a0[..., 1:])
    np.testing.assert_array_equal(b1[:, 1:], b0[:, 1:])
    assert (np.asarray(a1[2, :, 0]) != np.asarray(a0[2, :, 0])).any()


def test_a_client_does_not_look_beyond_its_rank():
  """Not in blocks that others have trained, either: block 1 of this plan."""
  before, plan = started('fedit'), [world.GAP._replace(variant=1)]
  hidden = jax.tree_util.tree_map_with_path(
    lambda path, x: x.at[..., 1:].add(5.0) if path[-1].key == 'a' else x,
    before.shared['blocks'],
  )
  other = before._replace(shared=before.shared | {'blocks': hidden})
  first, second = (
    cohort.one_round(ranked('hetlora'), roles, ROWS[:1], plan)[0].shared
    for roles in (before, other)
  )
  world.same(first['head'], second['head'])
  world.same(*(lora.leaves(x['blocks'], 'b') for x in (first, second)))


def test_hetlora_weighs_by_the_norm_of_the_product_and_fills_with_zeros():
  _, (roles, *_) = at_ranks('hetlora')
  alone = [at_ranks('hetlora', (i,))[1][0].shared for i in range(3)]
  top = [tree.rows(x['blocks'], 2) for x in alone]
  cut = [
    {t: (a[:, :r], b[:r]) for t, (a, b) in lora.pairs(x).items()}
    for x, r in zip(top, RANKS, strict=True)
  ]
  norms = np.array([
    np.sqrt(sum(np.square(np.asarray(a @ b)).sum() for a, b in x.values()))
    for x in cut
  ])  # fmt: skip
  share = norms / norms.sum()
  assert np.ptp(share) > 1e-3
  found = lora.pairs(tree.rows(roles.shared['blocks'], 2))
  for target, (a, b) in found.items():
    mean_a, mean_b = np.zeros((8, 2)), np.zeros((2, 8))
    for p, x, r in zip(share, cut, RANKS, strict=True):
      mean_a[:, :r] += p * x[target][0]
      mean_b[:r] += p * x[target][1]
    np.testing.assert_allclose(a, mean_a, atol=1e-6)
    np.testing.assert_allclose(b, mean_b, atol=1e-6)
  heads = [x['head']['kernel'] for x in alone]
  rows = WEIGHTS / WEIGHTS.sum()
  mean = sum(p * x for p, x in zip(rows, heads, strict=True))
  np.testing.assert_allclose(roles.shared['head']['kernel'], mean, atol=1e-6)


@pytest.mark.parametrize('name', ['flora', 'flexlora'])
def test_products_of_mixed_ranks_add_up(name):
  """alpha / R has the server's R: a smaller rank is scaled alike."""
  _, (roles, *_) = at_ranks(name)
  alone = [update_of(at_ranks(name, (i,))[1][0]) for i in range(3)]
  share = WEIGHTS / WEIGHTS.sum()
  found = update_of(roles)
  for target in world.TARGETS:
    mean = sum(p * x[target][2] for p, x in zip(share, alone, strict=True))
    if name == 'flexlora':
      u, s, v = np.linalg.svd(mean)
      mean = (u[:, :2] * s[:2]) @ v[:2]
    np.testing.assert_allclose(found[target][2], mean, atol=5e-6)


def factors_of(a, b):
  """LoRA of one block, one input and one output."""
  a, b = np.float32(a)[None, None], np.float32(b)[None, :, None]
  return {'blocks': {'q': {'a': jnp.asarray(a), 'b': jnp.asarray(b)}}}


def decided(sent, trained, gamma=0.5, pruned=0):
  """What a client of first rank 4 sends and keeps that was sent the first
  LoRA and made the second of it."""
  update = ClientUpdate(
    lambda start: None,
    lambda carry, *rest: (carry, {}),
    lambda carry, start: (Message(trained), start.roles.personal),
  )
  own = {'pruned': jnp.int32(pruned)}
  plan = Plan((True,), 0, variant=4)
  update = ranks.Pruning(gamma, 0.0).around(update)
  message, own = update.finish(None, Start(Roles({}, sent, own), plan))
  (a, b), *_ = lora.pairs(message.update['blocks']).values()
  rank = message.extras['rank']['blocks']
  return a[0, 0].tolist(), b[0, :, 0].tolist(), rank, own


SENT = factors_of([1, 1, 3, 4], [1, 1, 0, 2])  # of the tail: 5 x 2 = 10


def test_a_tail_that_got_smaller_is_given_up_by_hand():
  a, b, rank, own = decided(SENT, factors_of([8, 9, 0, 3], [8, 9, 3, 0]))
  assert (a, b) == ([8, 9, 0, 0], [8, 9, 0, 0])  # 3 x 3 < 10
  assert rank.tolist() == [2] and own == {'pruned': 2}


def test_a_tail_that_did_not_get_smaller_stays():
  a, b, rank, own = decided(SENT, factors_of([0, 0, 3, 4], [0, 0, 2, 0]))
  assert (a, b) == ([0, 0, 3, 4], [0, 0, 2, 0])  # 5 x 2 = 10, still
  assert rank.tolist() == [4] and own == {'pruned': 0}


def test_what_was_given_up_is_no_longer_looked_at_and_one_column_stays():
  larger = factors_of([1, 3, 0, 0], [1, 3, 0, 0])
  *_, rank, own = decided(SENT, larger, pruned=2)  # of column 1: 1 x 1 to 3 x 3
  assert rank.tolist() == [2] and own == {'pruned': 2}
  smaller = factors_of([9, 0, 0, 0], [9, 0, 0, 0])
  *_, rank, own = decided(SENT, smaller, pruned=2)
  assert rank.tolist() == [1] and own == {'pruned': 3}
  *_, rank, own = decided(SENT, factors_of([0] * 4, [0] * 4), pruned=3)
  assert rank.tolist() == [1] and own == {'pruned': 3}


@pytest.mark.parametrize('gamma', [0.29, 0.5, 0.7, 0.9, 0.99])
def test_the_rank_that_is_left_is_the_floor_of_its_share(gamma):
  rule = ranks.Pruning(gamma, 0.0)
  found = [int(rule.left(r, 100)) for r in (1, 2, 10, 100)]
  share = round(gamma * 100)  # in whole numbers
  assert found == [max(1, share * r // 100) for r in (1, 2, 10, 100)]


def test_the_size_of_a_tail_has_a_slope_also_where_it_is_zero():
  none = factors_of([1, 2, 3, 4], [0, 0, 0, 0])
  slope = jax.grad(lambda x: ranks.tail(x['blocks'], 2))
  assert all(not np.asarray(x).any() for x in jax.tree.leaves(slope(none)))
  ((a, b),) = lora.pairs(slope(SENT)['blocks']).values()
  # d ||A|| ||B|| = ||B|| A / ||A|| dA + ||A|| B / ||B|| dB
  np.testing.assert_allclose(a[0, 0], [0, 0, 2 * 3 / 5, 2 * 4 / 5], rtol=1e-6)
  np.testing.assert_allclose(b[0, :, 0], [0, 0, 0, 5], rtol=1e-6)


@functools.cache
def pruning(pull):
  """HetLoRA at ranks that clients prune, by half."""
  return lora_merging.hetlora(
    world.setting(),
    rank_of=lambda client: RANKS[client],
    pruning=ranks.Pruning(0.5, pull),
  )


def with_ranks(algorithm, variants, pruned):
  """A round from LoRA that has learned something: (roles, each client's
  columns given up, and so on)."""
  roles = started('fedit')
  personal = {'pruned': jnp.asarray(pruned, jnp.int32)} if pruned else None
  if pruned:
    roles = roles._replace(personal={'pruned': jnp.int32(0)})
  plans = [world.GAP._replace(variant=r) for r in variants]
  return cohort.one_round(
    algorithm, roles, ROWS[: len(plans)], plans, personal=personal
  )


def test_given_up_is_cut_off():
  """At rank 1 of a first rank 2, a client trains as one of rank 1 does."""
  small, own, *_ = with_ranks(pruning(0.0), [2], [1])
  cut, *_ = with_ranks(ranked('hetlora'), [1], None)
  world.close(small.shared, cut.shared)
  assert own['pruned'].tolist() == [1]


def test_a_client_that_gives_up_nothing_trains_as_without_pruning():
  roles, own, _, measured, _ = with_ranks(pruning(0.0), [2], [0])
  plain, *_ = with_ranks(ranked('hetlora'), [2], None)
  assert own['pruned'].tolist() == [0] and measured['mean_rank'] == 2
  world.close(roles.shared, plain.shared)


def test_a_strong_pull_prunes_and_zeros_are_sent():
  before = started('fedit').shared['blocks']
  after = with_ranks(pruning(3.0), [2, 2, 1], [0, 1, 0])
  roles, own, totals, measured, _ = after
  assert own['pruned'].tolist() == [1, 1, 0]
  assert measured['mean_rank'] == 1
  for a, b in lora.pairs(totals.update['blocks']).values():
    assert (
      not np.asarray(a)[..., 1:].any() and not np.asarray(b)[:, :, 1:].any()
    )
    assert np.asarray(a)[:, [0, 2], :, 0].any()
  # Nobody has column 1 any more: the server's stays.
  for (a0, b0), (a1, b1) in zip(
    lora.pairs(before).values(),
    lora.pairs(roles.shared['blocks']).values(),
    strict=True,
  ):
    np.testing.assert_array_equal(a1[..., 1:], a0[..., 1:])
    np.testing.assert_array_equal(b1[:, 1:], b0[:, 1:])


def test_pruning_is_the_same_step_by_step():
  algorithm, roles = pruning(3.0), started('fedit')
  roles = roles._replace(personal={'pruned': jnp.int32(0)})
  plans = [world.GAP._replace(variant=2)] * 2
  wide, slow = (
    cohort.one_round(algorithm, roles, ROWS[:2], plans, how=how)
    for how in ('vmap', 'loop')
  )
  world.close(wide[0].shared, slow[0].shared)
  world.same(wide[1], slow[1])
