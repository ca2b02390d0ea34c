"""Mixed ranks: what a client sees, sends, and how that is merged."""

import functools

import jax
import numpy as np
import pytest

from fedms_jax import tree
from fedms_jax.adapters import lora
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
