"""FedMS of models whose logits are no column: of tokens, and of pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import reduction, rounds, scoring, tree
from fedms_jax.core.contract import Work
from fedms_jax.core.types import Plan
from fedms_jax.models import gate, pretrained, tasks
from fedms_jax.server import averaged
from tests import folders, world
from tests.models import references

ROWS = 12
KINDS = {
  'next': ('gpt2', tasks.causal_lm(), 'token', ('attn/q',)),
  'running': ('gpt2', tasks.causal_lm(), 'running', ('attn/q',)),
  'masked': ('bert', tasks.masked_lm(), 'sequence', ('attn/v',)),
  'pairs': (
    'clip',
    tasks.contrast(),
    'token',
    ('image/attn/q', 'text/attn/q'),
  ),
}


def table(kind):
  tokens = references.tokens(ROWS, 9, seed=1)
  tokens[5:] = references.tokens(ROWS - 5, 9, seed=2)[::-1][: ROWS - 5]
  columns = {'inputs': tokens, 'labels': np.zeros(ROWS, np.int32)}
  if kind == 'masked':
    columns['targets'] = np.where(np.arange(9) % 3 == 1, tokens, -1)
  if kind == 'pairs':
    ends = np.argmax(np.append(tokens, tokens * 0 - 1, 1) < 0, axis=1) - 1
    tokens[np.arange(ROWS), ends] = folders.VOCABULARY['<eos>']
    columns |= {'texts': tokens, 'inputs': references.images(ROWS)}
  return jax.tree.map(jnp.asarray, columns)


@functools.cache
def stage(kind, mix='logits'):
  """(algorithm, roles, plan) of stage 2, experts and gate all different."""
  family, task, level, targets = KINDS[kind]
  model = pretrained.model(folders.CONFIGS[family], folders.HEADS[family])
  backbone = model.backbone
  setting = fedms.Setting(
    backbone, task, optax.sgd(0.1), optax.sgd(1.0), averaged.mean(),
    lora.Spec(2, 2.0, targets),
  )  # fmt: skip
  spec = gate.GateSpec(backbone.width, classes=0, level=level, mix=mix)
  first = fedms.global_stage(setting)
  second = fedms.personal_stage(setting, fedms.Personal(spec))
  rng = np.random.default_rng(0)

  def noisy(x):
    return x + 0.3 * rng.normal(size=x.shape).astype(np.float32)

  key = jax.random.key(0)
  base = jax.tree_util.tree_map_with_path(
    lambda path, x: folders.random(path, x, rng),
    jax.eval_shape(backbone.init, key),
  )
  before = first.begin(key, fedms.start(base, {}))
  before = before._replace(shared=jax.tree.map(noisy, before.shared))
  roles = second.begin(key, before)
  roles = roles._replace(
    shared=jax.tree.map(noisy, roles.shared),
    personal=jax.tree.map(noisy, roles.personal),
  )
  active = (False,) * (backbone.blocks - 1) + (True,)
  return second, roles, Plan(active, backbone.blocks - 1)


@functools.cache
def evaluator(kind, mix, group_bytes):
  del group_bytes  # read when the program is traced
  algorithm, _, plan = stage(kind, mix)
  rows = jnp.arange(ROWS, dtype=jnp.int32)
  return jax.jit(
    lambda roles, columns: scoring.evaluate(
      scoring.Look(algorithm, plan), roles, columns, rows
    )
  )


def evaluate(kind, columns, mix='logits', roles=None):
  run = evaluator(kind, mix, scoring.GROUP_BYTES)
  return run(roles or stage(kind, mix)[1], columns)


def gated(kind, log_odds, mix='logits'):
  """The roles with a gate that always says the same."""
  _, roles, _ = stage(kind, mix)
  linear = {
    'kernel': jnp.zeros_like(roles.shared['gate']['linear']['kernel']),
    'bias': jnp.array([log_odds, 0.0]),
  }
  return roles._replace(
    shared={'gate': roles.shared['gate'] | {'linear': linear}}
  )


def close(a, b, **kwargs):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-4, **kwargs)


def derived(kind):
  algorithm, roles, plan = stage(kind)
  raw = table(kind)
  shared = roles._replace(personal=None)
  return raw | jax.jit(
    lambda r, b: algorithm.columns(r, b, plan)
  )(shared, raw | {'mask': jnp.ones(ROWS, bool)})  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_columns_looked_up_and_computed_agree(kind):
  found = derived(kind)
  assert 'global_logits' not in found and 'global_features' in found
  close(evaluate(kind, found), evaluate(kind, table(kind)))


def test_groups_of_rows_add_up_to_all_rows(monkeypatch):
  """Six or so rows at a time, padding included."""
  whole = evaluate('next', table('next'))
  monkeypatch.setattr(scoring, 'GROUP_BYTES', 5 * 4 * 9 * 60 * 4)
  mapped = []
  real = jax.lax.map
  monkeypatch.setattr(
    jax.lax, 'map', lambda f, x: mapped.append(x.shape) or real(f, x)
  )
  close(evaluate('next', table('next')), whole)
  assert mapped == [(3, 5)]


@pytest.mark.parametrize('kind', KINDS)
def test_a_gate_that_is_sure_leaves_one_expert(kind):
  for sure, expert in ((99.0, 'global'), (-99.0, 'local')):
    sums = evaluate(kind, table(kind), roles=gated(kind, sure))
    for measure in ('loss', 'score'):
      np.testing.assert_allclose(
        sums[f'{measure}/mixture'], sums[f'{measure}/{expert}'], rtol=1e-5
      )


def test_mixed_probabilities_lose_less_than_their_experts_on_average():
  """Jensen: the logarithm is concave."""
  roles = gated('next', 0.0, 'probabilities')
  sums = evaluate('next', table('next'), 'probabilities', roles)
  mixture, one, two = (
    float(sums[f'loss/{name}'][0]) for name in ('mixture', 'global', 'local')
  )
  assert mixture < (one + two) / 2 - 1e-3


def test_a_client_learns_next_tokens():
  kind = 'next'
  algorithm, roles, plan = stage(kind)
  rows = np.tile(np.arange(ROWS, dtype=np.int32), (1, 8, 1))
  one = world.clients(rows, world.stacked(roles.personal, 1))
  work = Work(derived(kind), jax.random.key(0))
  totals = reduction.empty(algorithm, roles)
  _, personal, _ = rounds.train(algorithm, plan, roles, work, totals, one)
  after = roles._replace(personal=tree.rows(personal, 0))
  before = evaluate(kind, table(kind))
  now = evaluate(kind, table(kind), roles=after)
  assert now['loss/local'][0] < before['loss/local'][0]
  np.testing.assert_array_equal(now['loss/global'], before['loss/global'])
