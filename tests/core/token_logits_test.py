"""Logits by chunks of tokens: the same numbers, and never a whole array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import adapted, fedms, full, two_models
from fedms_jax.core import client, scoring, token_logits
from fedms_jax.core.contract import Start
from fedms_jax.core.token_logits import TokenLogits
from fedms_jax.core.types import Plan
from fedms_jax.models import gate, linear, pretrained, tasks
from fedms_jax.models.family import Options
from fedms_jax.server import averaged
from tests import folders
from tests.models import references

B, T, D, V = 3, 7, 5, 11
ROWS, LENGTH, WORDS, WIDTH = 5, 15, 60, 32
SMALL = 4 * V * 4  # four tokens, so that no chunk ends with a row
TASKS = {'causal_lm': tasks.causal_lm(), 'masked_lm': tasks.masked_lm()}


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', SMALL)


def draw(seed, *axes):
  return jax.random.normal(jax.random.key(seed), axes)


def ragged(task):
  """Texts of all lengths, a padded row, and tokens that are not learned."""
  tokens = np.random.default_rng(0).integers(0, V, (B, T))
  tokens[1, 4:] = -1
  targets = np.where(np.arange(T) % 3 == 1, tokens, -1)
  batch = {'inputs': jnp.asarray(tokens), 'mask': jnp.array([1, 1, 0], bool)}
  if task == 'masked_lm':
    batch['targets'] = jnp.asarray(targets)
  return batch


def read(whole, x):
  return linear.readout(x, whole)


def mixed(kind, whole, x, other, w):
  """Logits as FedMS mixes them: by linear weights, or of probabilities."""
  spec = gate.GateSpec(D, 0, mix=kind)
  first, second = (token_logits.of(read, whole, y) for y in (other, x))
  return token_logits.combined(
    lambda w, *pair: gate.mix(spec, w, jnp.stack(pair, axis=-2)),
    w,
    first,
    second,
  ), second


def objective(task, kind, args, batch):
  """(total, metrics) of a mixture and of one of its experts."""
  logits, own = mixed(kind, *args)
  total, found = adapted.learned(TASKS[task], batch, logits, own)
  return total, found


def arguments(dtype='float32'):
  w = jax.nn.softmax(draw(3, B, T, 2, 1), axis=-2)
  whole, x, other = (
    draw(i, *s) for i, s in enumerate(((V, D), (B, T, D), (B, T, D)))
  )
  return whole.astype(dtype), x.astype(dtype), other.astype(dtype), w


@pytest.mark.parametrize('kind', ['logits', 'probabilities'])
@pytest.mark.parametrize('task', TASKS)
def test_chunks_give_the_loss_and_gradients_of_the_whole(
  task, kind, monkeypatch
):
  """Of the table, of both experts and of their weights."""
  batch, args = ragged(task), arguments()
  run = jax.grad(lambda a: objective(task, kind, a, batch), has_aux=True)
  whole = run(args)
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', SMALL)
  assert isinstance(mixed(kind, *args)[0], TokenLogits)
  chunks = run(args)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunks), strict=True):
    assert np.abs(a).max() > 0
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('trained', ['whole', 'tokens'])
def test_so_in_bfloat16_of_each_client_and_recomputed(trained, monkeypatch):
  """Under vmap and checkpoint, whatever trains."""
  batch, (whole, *tokens) = ragged('causal_lm'), arguments('bfloat16')

  def run():
    def loss(whole, tokens):
      return objective('causal_lm', 'logits', (whole, *tokens), batch)[0]

    number = ('whole', 'tokens').index(trained)
    wide = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (whole, tuple(tokens)))
    return jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss), argnums=number)))(
      *wide
    )

  expected = run()
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', SMALL)
  for a, b in zip(
    jax.tree.leaves(expected), jax.tree.leaves(run()), strict=True
  ):
    assert a.dtype == b.dtype
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())


def test_what_fits_into_a_chunk_is_an_array(monkeypatch):
  whole, x, *_ = arguments()
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', 4 * B * T * V)
  assert isinstance(token_logits.of(read, whole, x), jax.Array)
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', 4 * B * T * V - 1)
  assert token_logits.of(read, whole, x).shape == (B, T, V)
  assert isinstance(token_logits.of(read, whole, x), TokenLogits)


def test_logits_that_are_not_by_token_stay_arrays(small):
  """However many classes there are."""
  x = draw(0, 64, D)
  assert isinstance(token_logits.of(read, draw(1, V, D), x), jax.Array)


def test_loss_and_score_may_be_asked_for_apart(small):
  whole, x, *_ = arguments()
  logits = token_logits.of(read, whole, x)
  array = read(whole, x)
  for name, task in TASKS.items():
    batch = ragged(name)
    for measure in (task.loss, task.score):
      for a, b in zip(
        measure(logits, batch), measure(array, batch), strict=True
      ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_logits_that_others_are_made_of_are_computed_once(small):
  count = []

  def counted(whole, x):
    count.append(1)
    return read(whole, x)

  whole, x, *_ = arguments()
  one = token_logits.of(counted, whole, x)
  two = token_logits.combined(lambda _, x: 2 * x, (), one)
  count.clear()
  tasks.causal_lm().together([two, one, token_logits.constant(one)], ragged(''))
  assert len(count) == 1


# Whole stages, of small language models.

KINDS = {
  'causal_lm': ('gpt2', 'running', ('attn/q',)),
  'masked_lm': ('bert', 'sequence', ('attn/v',)),
}


def columns_of(head):
  tokens = references.tokens(ROWS, LENGTH, seed=1)
  found = {'inputs': tokens, 'labels': np.zeros(ROWS, np.int32)}
  if head == 'masked_lm':
    found['targets'] = np.where(np.arange(LENGTH) % 3 == 1, tokens, -1)
  return jax.tree.map(jnp.asarray, found)


@functools.cache
def stage(name, head, mix='logits', dtype='float32'):
  """(algorithm, roles, plan), with experts and gate all different."""
  family, level, targets = KINDS[head]
  model = pretrained.model(
    folders.CONFIGS[family], Options(head=head, dtype=dtype)
  )
  backbone, rng = model.backbone, np.random.default_rng(0)
  setting = fedms.Setting(
    backbone, TASKS[head], optax.sgd(1.0), optax.sgd(1.0), averaged.mean(),
    lora.Spec(2, 2.0, targets),
  )  # fmt: skip
  own = mix == 'own'  # the mixture moves the gate alone
  mix = 'logits' if own else mix
  spec = gate.GateSpec(backbone.width, 0, level=level, mix=mix)
  choice = fedms.Personal(spec, local_loss='own' if own else 'both')
  stages = {
    'global': [fedms.global_stage(setting)],
    'personal': [
      fedms.global_stage(setting),
      fedms.personal_stage(setting, choice),
    ],
    'apfl': [two_models.apfl(setting, 0.3, 0.1)],
    'full': [full.full_model(setting)],
  }[name]
  key = jax.random.key(0)
  base = jax.tree_util.tree_map_with_path(
    lambda path, x: folders.random(path, x, rng),
    jax.eval_shape(backbone.init, key),
  )
  roles = fedms.start(base, {})
  for algorithm in stages:
    roles = algorithm.begin(key, roles)
    shared, personal = jax.tree.map(
      lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
      (roles.shared, roles.personal),
    )
    roles = roles._replace(shared=shared, personal=personal)
  whole = name == 'full'
  active = (whole,) * (backbone.blocks - 1) + (True,)
  plan = Plan(active, 0 if whole else backbone.blocks - 1)
  return stages[-1], roles, plan


def trained(name, head, mix='logits', dtype='float32'):
  """(what a client sends, keeps and measures in a step; shape of this)."""
  algorithm, roles, plan = stage(name, head, mix, dtype)
  table, rows = columns_of(head), jnp.arange(ROWS).at[-1].set(-1)

  def step(roles, table):
    start = Start(roles, plan)
    carry = algorithm.update.begin(start), client.zero_sums(algorithm)
    key = jax.random.key(0)
    carry, sums = client.one_step(algorithm, carry, start, table, rows, key)
    found = algorithm.update.finish(carry, start), sums
    look = scoring.Look(algorithm, plan)
    return found, scoring.evaluate(look, roles, table, rows)

  return step, (roles, table)


RUNS = [
  ('global', 'causal_lm', 'logits'),
  ('global', 'masked_lm', 'logits'),
  pytest.param('personal', 'causal_lm', 'logits', marks=pytest.mark.slow),
  ('personal', 'masked_lm', 'probabilities'),
  pytest.param('personal', 'causal_lm', 'features', marks=pytest.mark.slow),
  pytest.param('personal', 'causal_lm', 'top1', marks=pytest.mark.slow),
  ('personal', 'causal_lm', 'own'),
  pytest.param('apfl', 'causal_lm', 'logits', marks=pytest.mark.slow),
  ('full', 'causal_lm', 'logits'),
]


@pytest.mark.parametrize('name,head,mix', RUNS)
def test_a_step_and_its_scores_are_those_of_whole_logits(
  name, head, mix, monkeypatch
):
  step, args = trained(name, head, mix)
  expected = jax.jit(step)(*args)
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', 4 * WORDS * 4)
  # A new function, because the old one is traced.
  found = jax.jit(lambda *a: step(*a))(*args)
  pairs = jax.tree.leaves(expected), jax.tree.leaves(found)
  for a, b in zip(*pairs, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def shapes(jaxpr):
  """Of every value in a program, those within its loops included."""
  for equation in jaxpr.eqns:
    for x in equation.outvars:
      yield x.aval.shape
    for inner in jax.tree.leaves(tuple(equation.params.values())):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from shapes(inner)


def most(name, head, mix, dtype):
  """Tokens of the largest array that is a vocabulary wide in a step and its
  scores, the table apart."""
  step, args = trained(name, head, mix, dtype)
  found = jax.make_jaxpr(lambda *a: step(*a))(*args)
  return max(
    int(np.prod(shape)) // WORDS
    for shape in shapes(found.jaxpr)
    if WORDS in shape and sorted(shape) != [WIDTH, WORDS]
  )


def test_small_logits_are_whole():
  run = ('personal', 'causal_lm', 'probabilities', 'float32')
  assert most(*run) >= ROWS * LENGTH


@pytest.mark.parametrize(
  'name,head,mix,dtype',
  [
    ('global', 'masked_lm', 'logits', 'float32'),
    ('personal', 'causal_lm', 'probabilities', 'float32'),
    ('personal', 'masked_lm', 'logits', 'bfloat16'),
    ('personal', 'causal_lm', 'features', 'float32'),
    ('apfl', 'causal_lm', 'logits', 'float32'),
    ('full', 'causal_lm', 'logits', 'bfloat16'),
  ],
)
def test_no_array_holds_the_vocabulary_of_all_tokens(
  name, head, mix, dtype, monkeypatch
):
  """Neither of a batch nor of a sequence: at most of the tokens of a chunk."""
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', 4 * WORDS * 4)
  assert most(name, head, mix, dtype) <= 4
