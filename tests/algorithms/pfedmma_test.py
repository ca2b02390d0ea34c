"""pFedMMA: adapters beside blocks of both towers, of which one layer is
shared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import pfedmma
from fedms_jax.core import columns
from fedms_jax.core.types import Span
from fedms_jax.models import pretrained
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.algorithms import clip_world, cohort

# They compile for a minute.
pytestmark = pytest.mark.slow

CHOICE = pfedmma.Choice(blocks=2, width=3, scale=0.5)
NO_WORDS = jnp.zeros((0, clip_world.WIDTH))


@functools.cache
def method(choice=CHOICE):
  """(algorithm, roles at first, roles that have learned something)."""
  algorithm = pfedmma.pfedmma(
    clip_world.setting(), clip_world.model().prompted, choice
  )
  first = clip_world.begin(algorithm)
  keys = iter(jax.random.split(jax.random.key(7), 20))

  def moved(x):
    return x + 0.3 * jax.random.normal(next(keys), x.shape)

  return (
    algorithm,
    first,
    first._replace(
      shared=jax.tree.map(moved, first.shared),
      personal=jax.tree.map(moved, first.personal),
    ),
  )


def predict(roles, rows=range(8)):
  algorithm = method()[0]
  batch = columns.take(world.table(), jnp.asarray(list(rows)))
  batch = columns.complete(algorithm, roles, batch, world.DENSE)
  return jax.jit(lambda r, b: algorithm.predict(r, b, world.DENSE).logits)(
    roles, batch
  )


def test_new_adapters_leave_the_model_as_it_is():
  _, first, _ = method()
  found = predict(first)
  frozen = first.frozen
  backbone = clip_world.model().backbone
  base, images = frozen['base'], world.columns()['inputs'][:8]
  x = pretrained.encode(backbone, base, images)
  for name, classes in (
    ('pretrained', base['final']['classes']),
    ('local', clip_world.model().prompted.features(base['text'], NO_WORDS)),
  ):
    final = base['final'] | {'classes': classes}
    expected = backbone.logits({'final': final}, {}, x)
    np.testing.assert_allclose(found[name], expected, atol=1e-4)


def adapter(parts, tower, number):
  """What an adapter adds, in NumPy."""
  own, meet = parts[tower], parts['meet']

  def linear(layer, x):
    kernel, bias = (np.asarray(layer[k][number]) for k in ('kernel', 'bias'))
    return x @ kernel + bias

  def added(x):
    y = np.maximum(linear(own['down'], np.asarray(x)), 0)
    return 0.5 * linear(own['up'], np.maximum(linear(meet, y), 0))

  return added


def test_adapters_are_beside_the_last_blocks_of_both_towers():
  _, _, roles = method()
  parts, base = roles.shared | roles.personal, roles.frozen['base']
  backbone, text = clip_world.model().backbone, base['text']

  def blocks(tree, n):
    return jax.tree.map(lambda x: x[n : n + 1], tree)

  x = backbone.embed(base, world.columns()['inputs'][:8])
  for n in range(world.BLOCKS):
    y = backbone.run(
      [Span(n, n + 1, (blocks(base['blocks'], n), None))], x, None
    )
    x = y + adapter(parts, 'image', n - 1)(x) if n >= 1 else y
  feature = backbone.features(base, x, None)
  plain = clip_world.text_model().backbone
  tokens = clip_world.TOKENS
  x = plain.embed(text, tokens)
  for n in range(2):
    y = plain.run([Span(n, n + 1, (blocks(text['blocks'], n), None))], x, None)
    x = y + adapter(parts, 'text', n)(x)
  classes = plain.features(text, x, plain.mask(tokens))
  classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
  final = base['final'] | {'classes': classes}
  expected = backbone.logits({'final': final}, {}, feature)
  np.testing.assert_allclose(predict(roles)['local'], expected, atol=1e-3)


def test_a_round_averages_the_shared_layer_and_leaves_the_rest_to_clients():
  algorithm, _, roles = method()
  rows = world.cohort_rows()
  after = cohort.one_round(algorithm, roles, rows, world.DENSE)
  assert set(after.totals.update) == {'meet'}
  sizes = (rows >= 0).sum((1, 2))
  alone = [
    cohort.one_round(algorithm, roles, rows[i : i + 1], world.DENSE)
    for i in range(3)
  ]
  mean = jax.tree.map(
    lambda *xs: (
      sum(s * x for s, x in zip(sizes, xs, strict=True)) / sizes.sum()
    ),
    *(x.roles.shared for x in alone),
  )
  world.close(after.roles.shared, mean)
  for old, new in zip(
    jax.tree.leaves((roles.shared, roles.personal)),
    jax.tree.leaves((after.roles.shared, after.personal)),
    strict=True,
  ):
    assert np.abs(np.asarray(new) - np.asarray(old)).max() > 1e-5


def test_the_ledger_counts_what_is_sent_and_how_deep_gradients_go():
  algorithm, roles, _ = method()
  meter = Meter(algorithm, roles, batch=4, slots=0)
  size = 4 * CHOICE.blocks * (CHOICE.width**2 + CHOICE.width)
  assert meter.traffic(world.DENSE, world.DENSE.active, 3) == (size, size)
  plain = clip_world.model().backbone.cost
  total = algorithm.backbone.cost.block * 2 * world.BLOCKS
  adapters = 3 * 2 * plain.tokens * CHOICE.blocks * (2 * 8 * 3 + 9)
  expected = (world.BLOCKS + CHOICE.blocks) * plain.block + adapters
  np.testing.assert_allclose(total, expected)
  step, once = algorithm.passes.beside(roles)
  prompted = clip_world.model().prompted
  text = prompted.flops(roles.frozen['base']['text'], 0)
  words = clip_world.TOKENS.size
  expected = 2 * text + 3 * 2 * words * CHOICE.blocks * (2 * 12 * 3 + 9)
  np.testing.assert_allclose(step, expected)
  assert once == 0


def test_words_go_before_the_names():
  text = method()[1].frozen['base']['text']
  assert pfedmma.context(text).shape == (0, clip_world.WIDTH)
  words = text | {'words': np.array([11, 12], np.int32)}
  np.testing.assert_array_equal(
    pfedmma.context(words), text['stem']['word'][np.array([11, 12])]
  )
