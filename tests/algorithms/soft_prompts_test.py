"""PromptFL, PromptFolio, FedPGP and FedCLIP: what each learns and averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fedclip, fedpgp, frozen_backbone, soft_prompts
from fedms_jax.core import columns
from fedms_jax.models import pretrained
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.algorithms import clip_world, cohort
from tests.algorithms.clip_world import LENGTH, WIDTH

RATE = 0.5  # of world.SGD


def form():
  prompted = clip_world.model().prompted
  return soft_prompts.of_classes(clip_world.setting(), prompted, LENGTH)


def fedpgp_of(rank=2, weight=1.0, temperature=0.5):
  return fedpgp.fedpgp(
    clip_world.setting(), clip_world.model().prompted, LENGTH, rank=rank,
    weight=weight, temperature=temperature,
  )  # fmt: skip


MAKERS = {
  'promptfl': lambda: soft_prompts.promptfl(clip_world.setting(), form()),
  'promptfolio': lambda local=0.3: soft_prompts.promptfolio(
    clip_world.setting(), form(), local
  ),
  'fedpgp': fedpgp_of,
  'fedclip': lambda: fedclip.fedclip(clip_world.setting()),
}


@functools.cache
def method(name, *args, **kwargs):
  """(algorithm, roles): all parts learned something, and differ."""
  algorithm = MAKERS[name](*args, **kwargs)
  roles = clip_world.begin(algorithm)
  keys = iter(jax.random.split(jax.random.key(7), 9))

  def moved(x):
    return x + 0.3 * jax.random.normal(next(keys), x.shape)

  return algorithm, roles._replace(
    shared=jax.tree.map(moved, roles.shared),
    personal=jax.tree.map(moved, roles.personal),
  )


def train(algorithm, roles, rows):
  """(shared, personal [K, ...]) after a round, at rest over blocks."""
  after, personal, *_ = cohort.one_round(algorithm, roles, rows, world.DENSE)
  return after.shared, personal


def predict(algorithm, roles, rows=range(12)):
  batch = columns.take(world.table(), jnp.asarray(list(rows)))
  batch = columns.complete(algorithm, roles, batch, world.DENSE)
  return jax.jit(lambda r, b: algorithm.predict(r, b, world.DENSE).logits)(
    roles, batch
  )


def loss(classes, rows):
  """The loss of class features, from raw images of rows that are >= 0."""
  base, backbone = (
    clip_world.start().frozen['base'],
    clip_world.model().backbone,
  )
  data, real = jax.tree.map(jnp.asarray, world.columns()), rows >= 0
  x = pretrained.encode(backbone, base, data['inputs'][rows])
  x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  logits = jnp.exp(base['final']['logit_scale']) * x @ classes.T
  logp = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(logp, data['labels'][rows][:, None], 1)[:, 0]
  return -jnp.sum(chosen * real) / jnp.sum(real)


def features(prompt):
  text = clip_world.start().frozen['base']['text']
  return clip_world.model().prompted.features(text, prompt)


def test_promptfl_follows_the_slope_of_the_prompt_and_averages():
  algorithm, roles = method('promptfl')
  rows = world.cohort_rows(steps=1)  # one of them is padding
  slope = jax.jit(jax.grad(lambda p, r: loss(features(p), r)))
  p = roles.shared['prompt']
  made = [p - RATE * slope(p, mine) for mine in rows[:, 0]]
  sizes = (rows[:, 0] >= 0).sum(axis=1)
  shared, personal = train(algorithm, roles, rows)
  expected = np.average(made, axis=0, weights=sizes)
  assert np.abs(expected - p).max() > 1e-3
  np.testing.assert_allclose(shared['prompt'], expected, atol=2e-5)
  assert set(shared) == {'prompt'} and not personal


@pytest.mark.parametrize('name', MAKERS)
def test_the_model_as_it_was_is_zero_shot(name):
  algorithm, roles = method(name)
  base = roles.frozen['base']
  backbone, images = (
    clip_world.model().backbone,
    world.columns()['inputs'][:12],
  )
  expected = backbone.logits(
    base, {}, pretrained.encode(backbone, base, images)
  )
  found = predict(algorithm, roles)
  np.testing.assert_allclose(found['pretrained'], expected, atol=1e-5)
  for other, logits in found.items():
    moved = np.abs(logits - expected).max() > 1e-2
    assert moved == (other != 'pretrained'), other


def test_promptfolio_without_a_local_prompt_is_promptfl():
  algorithm, roles = method('promptfolio', 0.0)
  plain, _ = method('promptfl')
  rows = world.cohort_rows()
  shared, personal = train(algorithm, roles, rows)
  alone = roles._replace(personal={})
  world.close(shared, train(plain, alone, rows)[0])
  world.same(personal, world.stacked(roles.personal, len(rows)))
  found = predict(algorithm, roles)
  world.close(found['mixture'], predict(plain, alone)['global'])


def test_promptfolio_of_the_local_prompt_alone_is_promptfl_of_one_client():
  algorithm, roles = method('promptfolio', 1.0)
  plain, _ = method('promptfl')
  rows = world.cohort_rows()
  shared, personal = train(algorithm, roles, rows)
  world.close(shared, roles.shared)
  own = roles._replace(shared=roles.personal, personal={})
  for i, mine in enumerate(personal['prompt']):
    alone, _ = train(plain, own, rows[i : i + 1])
    world.close(mine, alone['prompt'])
  found = predict(algorithm, roles)
  world.close(found['mixture'], found['local'])


def test_promptfolio_mixes_class_features():
  algorithm, roles = method('promptfolio', 0.3)
  one, other = (features(x['prompt']) for x in (roles.shared, roles.personal))
  frozen = roles.frozen
  backbone, images = (
    clip_world.model().backbone,
    world.columns()['inputs'][:12],
  )
  x = pretrained.encode(backbone, frozen['base'], images)
  mixed = 0.7 * one + 0.3 * other
  expected = frozen_backbone.class_logits(
    clip_world.setting(), frozen, mixed, x
  )
  found = predict(algorithm, roles)['mixture']
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_contrast_is_that_of_the_paper():
  rng = np.random.default_rng(0)
  zero, shared, own = (
    x / np.linalg.norm(x, axis=-1, keepdims=True)
    for x in rng.normal(size=(3, 5, 8))
  )
  total = 0.0
  for a, b, c in zip(zero, shared, own, strict=True):
    near, far = np.exp(a @ b / 0.5), np.exp(b @ c / 0.5)
    total -= np.log(near / (near + far))
  found = fedpgp.contrast(zero, shared, own, 0.5)
  np.testing.assert_allclose(found, total / 5, rtol=1e-5)


def test_fedpgp_follows_both_losses():
  algorithm, roles = method('fedpgp', weight=0.7, temperature=0.5)
  rows = world.cohort_rows(clients=1, steps=1)
  zero = roles.frozen['base']['final']['classes']

  def total(p, u, v):
    shared, own = features(p), features(p + u @ v)
    away = fedpgp.contrast(zero, shared, own, 0.5)
    return loss(own, rows[0, 0]) + 0.7 * away

  before = (roles.shared['prompt'], *roles.personal.values())
  slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*before)
  shared, personal = train(algorithm, roles, rows)
  after = shared['prompt'], *(x[0] for x in personal.values())
  for x, y, slope in zip(before, after, slopes, strict=True):
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(y, x - RATE * slope, atol=2e-5)


def test_fedpgp_without_an_own_part_is_promptfl():
  algorithm, roles = method('fedpgp', weight=0.0)
  plain, _ = method('promptfl')
  roles = roles._replace(personal=jax.tree.map(jnp.zeros_like, roles.personal))
  rows, alone = world.cohort_rows(), roles._replace(personal={})
  shared, personal = train(algorithm, roles, rows)
  world.close(shared, train(plain, alone, rows)[0])
  assert not np.any(personal['u']) and not np.any(personal['v'])
  found = predict(algorithm, roles)
  world.close(found['local'], found['global'])


def test_an_even_attention_of_fedclip_is_zero_shot():
  """softmax of zeros has equal weights, and only directions are compared."""
  algorithm, roles = method('fedclip')
  adapter = roles.shared['adapter']
  even = adapter | {'second': jax.tree.map(jnp.zeros_like, adapter['second'])}
  found = predict(algorithm, roles._replace(shared={'adapter': even}))
  np.testing.assert_allclose(found['global'], found['pretrained'], atol=1e-5)


def test_the_attention_of_fedclip_is_linear_tanh_linear_softmax():
  _, roles = method('fedclip')
  adapter = jax.tree.map(np.asarray, roles.shared['adapter'])
  x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
  one, two = adapter['first'], adapter['second']
  y = np.tanh(x @ one['kernel'] + one['bias']) @ two['kernel'] + two['bias']
  expected = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
  found = fedclip.attention(adapter, x)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert expected.std() > 1e-2


@pytest.mark.parametrize(
  ('name', 'sent', 'own'),
  [
    ('promptfl', LENGTH * WIDTH, 0),
    ('promptfolio', LENGTH * WIDTH, LENGTH * WIDTH),
    ('fedpgp', LENGTH * WIDTH, 2 * (LENGTH + WIDTH)),
    ('fedclip', 2 * (8 * 8 + 8), 0),
  ],
)
def test_what_is_small_is_all_that_trains_and_travels(name, sent, own):
  algorithm, roles = method(name)
  meter = Meter(algorithm, roles, batch=4, slots=0)
  traffic = meter.traffic(world.DENSE, world.DENSE.active, 3)
  assert traffic == (4 * sent, 4 * sent)
  assert meter.trained(world.DENSE) == 4 * (sent + own)
  assert meter.handover() == 0  # the text tower is part of the base


def test_words_that_a_prompt_begins_as():
  before = clip_world.start()
  text = before.frozen['base']['text'] | {'words': np.array([11, 12], np.int32)}
  base = before.frozen['base'] | {'text': text}
  before = before._replace(frozen=before.frozen | {'base': base})
  algorithm, _ = method('promptfl')
  roles = algorithm.begin(jax.random.key(0), before)
  np.testing.assert_array_equal(
    roles.shared['prompt'], text['stem']['word'][np.array([11, 12])]
  )


def test_a_base_without_a_text_tower_is_told():
  before = clip_world.start()
  base = {k: v for k, v in before.frozen['base'].items() if k != 'text'}
  before = before._replace(frozen=before.frozen | {'base': base})
  algorithm, _ = method('promptfl')
  with pytest.raises(ValueError, match='text tower'):
    algorithm.begin(jax.random.key(0), before)
