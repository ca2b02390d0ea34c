"""How A and B are merged: each method's rule, against factors by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora, lora_products
from fedms_jax.core import tree
from fedms_jax.core.contract import Message, Received, Sender
from fedms_jax.core.reduction import covered
from fedms_jax.core.types import Plan
from fedms_jax.server import averaged, measures
from fedms_jax.systems import ledger
from tests import world
from tests.algorithms import cohort
from tests.algorithms.lora_cohort import (
  MAKERS,
  ROWS,
  SCALE,
  WEIGHTS,
  method,
  started,
  update_of,
  variant,
)


@functools.cache
def alone(plan):
  """The shared tree of each client after training by itself."""
  return cohort.each_alone(method('fedit'), started('fedit'), ROWS, plan)


@functools.cache
def after(name, plan):
  return cohort.one_round(method(name), started(name), ROWS, plan)


def mean_product(results, weights=WEIGHTS):
  """sum p_k A_k B_k by target, in float64."""
  share = weights / weights.sum()
  found = {}
  for p, shared in zip(share, results, strict=True):
    for target, (a, b) in lora.pairs(shared['blocks']).items():
      product = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
      found[target] = found.get(target, 0.0) + p * product
  return found


def product_of_means(results, weights=WEIGHTS):
  share = weights / weights.sum()
  mean = jax.tree.map(
    lambda *xs: sum(
      p * np.asarray(x, np.float64) for p, x in zip(share, xs, strict=True)
    ),
    *(shared['blocks'] for shared in results),
  )
  return {t: a @ b for t, (a, b) in lora.pairs(mean).items()}


def worst(a, b):
  return max(np.abs(a[t] - b[t]).max() for t in a)


@pytest.mark.parametrize('name', ['flora', 'fedex_lora'])
def test_a_dense_residual_makes_the_model_the_mean_of_the_products(name):
  exact = {t: SCALE * x for t, x in mean_product(alone(world.DENSE)).items()}
  roles, *_ = after(name, world.DENSE)
  assert worst(update_of(roles), exact) < 2e-6


def test_averaged_factors_are_another_model():
  exact = {t: SCALE * x for t, x in mean_product(alone(world.DENSE)).items()}
  roles, *_ = after('fedit', world.DENSE)
  assert worst(update_of(roles), exact) > 1e-3


def test_flexlora_is_the_best_approximation_of_the_mean_of_the_products():
  exact = mean_product(alone(world.DENSE))
  roles, *_ = after('flexlora', world.DENSE)
  for target, (a, b) in lora.pairs(roles.shared['blocks']).items():
    u, s, v = np.linalg.svd(exact[target])
    assert s[:, 2].max() > 1e-3  # more than rank 2 is there
    best = (u[..., :2] * s[:, None, :2]) @ v[:, :2]
    np.testing.assert_allclose(a @ b, best, atol=5e-6)
    # A client of rank 1 begins with the best of rank 1.
    first = (u[..., :1] * s[:, None, :1]) @ v[:, :1]
    np.testing.assert_allclose(a[..., :1] @ b[:, :1], first, atol=5e-6)


def stack(clients=3, rank=2, seed=0, sizes=(8, 6)):
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(clients, 2, sizes[0], rank)).astype(np.float32)
  b = rng.normal(size=(clients, 2, rank, sizes[1])).astype(np.float32)
  return {'attn': {'q': {'a': jnp.asarray(a), 'b': jnp.asarray(b)}}}


def test_at_full_rank_flexlora_is_exact():
  values = stack(clients=4, rank=6)
  share = np.full((4, 2), 0.25, np.float32)
  found = lora.products(lora_products.best(values, share, 6))
  exact = lora_products.products(values, share)
  np.testing.assert_allclose(found['attn/q'], exact['attn/q'], atol=2e-5)


@pytest.mark.parametrize('plan', [world.DENSE, world.GAP])
@pytest.mark.parametrize('name', ['fedit', 'fedex_lora'])
def test_the_residual_is_what_averaged_factors_miss(name, plan):
  """Summed contributions or stacked ones: the same number."""
  results = alone(plan)
  mean, other = mean_product(results), product_of_means(results)
  squares = sum(np.square(mean[t] - other[t]).sum() for t in mean)
  found = after(name, plan).measured[measures.RESIDUAL]
  assert found > 1e-3
  np.testing.assert_allclose(found, SCALE * np.sqrt(squares), rtol=1e-3)


def test_the_residual_of_wide_kernels_is_estimated_without_bias():
  """d_in = 512 is sketched by 64 rows."""
  rng = np.random.default_rng(3)
  changes = [
    {
      'blocks': {
        'q': {
          'a': jnp.asarray(rng.normal(size=(6, 512, 2)), jnp.float32),
          'b': jnp.asarray(rng.normal(size=(6, 2, 16)), jnp.float32),
        }
      }
    }
    for _ in range(4)
  ]
  before = jax.tree.map(jnp.zeros_like, changes[0])
  aggregator = measures.with_residual(averaged.mean(), 0.5)
  sent = [
    aggregator.send(before, covered(Message(x)), 1.0, Sender()) for x in changes
  ]
  largest = max(x.size for x in jax.tree.leaves(sent[0]))
  assert largest == 6 * 64 * 16  # no product [512, 16] of a client
  total = jax.tree.map(lambda *xs: sum(xs), *sent)
  measured = aggregator.measure(before, Received(*total, 4.0, 0.0))
  equal = np.ones(4)
  exact = mean_product(changes, equal)['q']
  exact = 0.5 * np.linalg.norm(exact - product_of_means(changes, equal)['q'])
  np.testing.assert_allclose(measured[measures.RESIDUAL], exact, rtol=0.1)


def test_flora_starts_again_where_it_trained_and_nowhere_else():
  before, (roles, *_) = started('flora'), after('flora', world.GAP)
  held, rest = np.array([0, 2]), np.array([1])
  old, new = before.shared['blocks'], roles.shared['blocks']
  world.same(tree.rows(new, rest), tree.rows(old, rest))
  assert not np.asarray(
    tree.rows(lora.leaves(new, 'b'), held)['attn']['q']['b']
  ).any()
  a = [x['attn']['q']['a'][held] for x in (old, new)]
  assert (np.asarray(a[0]) != np.asarray(a[1])).all()
  delta = roles.frozen['delta_blocks']['attn']['q']['delta']
  assert [bool(x.any()) for x in np.asarray(delta)] == [True, False, True]


def test_the_model_adds_its_dense_residual():
  """The same logits as with the residual in the kernels."""
  roles, *_ = after('fedex_lora', world.GAP)
  batch = {'inputs': world.columns()['inputs'][:6]}
  base = roles.frozen['base']
  delta = roles.frozen['delta_blocks']
  none = jax.tree.map(jnp.zeros_like, roles.shared['blocks'])
  merged = lora.merge(base['blocks'], lora.joined(none, delta), SCALE)
  plain = {'delta_blocks': jax.tree.map(jnp.zeros_like, delta)}
  other = roles._replace(
    frozen=roles.frozen | {'base': base | {'blocks': merged}} | plain
  )
  logits = jax.jit(lambda r: predicted(method('fedex_lora'), r, batch))
  world.close(logits(roles), logits(other))
  without = roles._replace(frozen=roles.frozen | plain)
  assert np.abs(logits(roles) - logits(without)).max() > 1e-5


def predicted(algorithm, roles, batch):
  found = algorithm.columns(roles, batch, world.DENSE)
  return algorithm.predict(roles, batch | found, world.DENSE).logits['global']


@functools.cache
def one_step():
  """One client and one step of SGD on all of LoRA, from fresh LoRA."""
  roles = cohort.begin(method('fedit'))
  rows = world.cohort_rows(clients=1, steps=1)
  return roles, cohort.one_round(method('fedit'), roles, rows, world.TOP)[0]


@pytest.mark.parametrize(
  ('name', 'number', 'trained'),
  [('ffa_lora', 0, 'b'), ('rolora', 0, 'b'), ('rolora', 1, 'a'),
   ('rolora', 2, 'b'), ('fedsa_lora', 0, 'ab')],
)  # fmt: skip
def test_of_the_factors_only_some_train(name, number, trained):
  """Those take the step of plain SGD; the others stay bitwise."""
  start, end = (x.shared for x in one_step())
  algorithm = method(name)
  roles = cohort.begin(algorithm, scale=0)
  mine = {f'{x}_blocks': lora.leaves(start['blocks'], x) for x in 'ab'}
  mine['head'] = start['head']
  roles = roles._replace(
    shared={k: mine[k] for k in roles.shared},
    personal={k: mine[k] for k in roles.personal},
  )
  rows = world.cohort_rows(clients=1, steps=1)
  roles, personal, *_ = cohort.one_round(
    algorithm, roles, rows, variant(name, number)
  )
  kept = roles.shared | jax.tree.map(lambda x: x[0], personal)
  for factor in 'ab':
    if f'{factor}_blocks' not in kept:
      continue
    wanted = end if factor in trained else start
    check = world.close if factor in trained else world.same
    check(kept[f'{factor}_blocks'], lora.leaves(wanted['blocks'], factor))
  world.close(kept['head'], end['head'])
  assert np.abs(
    end['blocks']['attn']['v']['b'] - start['blocks']['attn']['v']['b']
  ).max() > 1e-4  # fmt: skip


def test_ffa_sends_no_a_and_fedsa_neither_b_nor_head():
  assert set(started('ffa_lora').shared) == {'b_blocks', 'head'}
  roles = started('fedsa_lora')
  assert set(roles.shared) == {'a_blocks'}
  assert set(roles.personal) == {'b_blocks', 'head'}


def test_fedsa_averages_a_and_leaves_each_client_its_b():
  plan = world.TOP
  roles, personal, *_ = after('fedsa_lora', plan)
  b = np.asarray(personal['b_blocks']['attn']['q']['b'])
  assert not (b[0, 2] == b[1, 2]).any()
  alone = [
    cohort.one_round(
      method('fedsa_lora'), started('fedsa_lora'), ROWS[i : i + 1], plan
    )
    for i in range(3)
  ]
  world.close(
    personal,
    jax.tree.map(lambda *x: jnp.concatenate(x), *(r[1] for r in alone)),
  )
  share = WEIGHTS / WEIGHTS.sum()
  world.close(
    roles.shared,
    jax.tree.map(
      lambda *xs: sum(p * x for p, x in zip(share, xs, strict=True)),
      *(r[0].shared for r in alone),
    ),
  )


@pytest.mark.parametrize('name', MAKERS)
def test_clients_at_once_and_one_by_one_agree(name):
  algorithm, roles = method(name), started(name)
  plan, rows = variant(name, 0), ROWS[:2]
  wide = cohort.one_round(algorithm, roles, rows, plan)
  slow = cohort.one_round(algorithm, roles, rows, plan, how='loop')
  for a, b in zip(wide[:2], slow[:2], strict=True):
    world.close(a, b)
  for key, value in wide[3].items():
    np.testing.assert_allclose(value, slow[3][key], atol=1e-5)


def test_bytes_of_a_client():
  """Factors of its own rank up; down what is new of the dense residual."""
  plan = Plan((False, True, True), 1, variant=1)
  shapes = jax.eval_shape(lambda r: r, started('flora'))
  factor, head = 2 * 2 * 8 * 4, (8 + 1) * 4 * 4  # rank 1, both targets
  dense = 2 * 8 * 8 * 4
  up, down = method('flora').traffic(shapes, plan, plan.active, 1)
  assert (up, down) == (head + 2 * factor, head + 2 * 2 * factor)
  _, down = method('flora').traffic(shapes, plan, plan.active, 100)
  assert down == head + 2 * dense
  shapes = jax.eval_shape(lambda r: r, started('hetlora'))
  _, down = method('hetlora').traffic(shapes, plan, plan.active, 100)
  assert down == head + 2 * factor


def test_the_ledger_finds_lora_in_whichever_roles_it_is():
  """All of these run the same LoRA; none hands over what it folds."""
  spent = {}
  for name in MAKERS:
    meter = ledger.Meter(method(name), started(name), batch=4, slots=0)
    entry = meter.group(
      variant(name, 0), world.TOP.active, clients=1, newcomers=1, cohort=1,
      examples=1, steps=1, derived=0, scope='run',
    )  # fmt: skip
    spent[name] = entry.client_flops
    assert meter.handover() == 0
  assert len(set(spent.values())) == 1
  none = started('fedit')
  none = none._replace(frozen={'base': none.frozen['base']}, shared={})
  meter = ledger.Meter(method('fedit'), none, batch=4, slots=0)
  entry = meter.group(
    world.TOP, world.TOP.active, clients=1, newcomers=0, cohort=1,
    examples=1, steps=1, derived=0, scope='run',
  )  # fmt: skip
  tokens, each = world.backbone().cost.tokens, 2 * 2 * (8 + 8)
  assert spent['ffa_lora'] - entry.client_flops == 3 * 2 * tokens * each
