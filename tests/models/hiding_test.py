"""What is hidden, how much of it, and that nothing else is looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core import token_logits
from fedms_jax.models import hiding, transformer, vit

WORDS, MASK = 50, 4
TOKENS = hiding.Tokens(MASK, WORDS, 0.15)


def batch(rows=100, length=100):
  """Rows of tokens from 5 on, between two marks that may not be hidden."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(5, WORDS, (rows, length)).astype(np.int32)
  targets = tokens.copy()
  targets[:, 0] = targets[:, -1] = -1
  tokens[:, 0], tokens[:, -1] = 2, 3
  return {
    'inputs': jnp.asarray(tokens),
    'targets': jnp.asarray(targets),
    'mask': jnp.ones(rows, bool),
  }


def test_of_the_chosen_8_in_10_are_masked_and_1_in_10_is_any():
  task, before = hiding.masked_lm(TOKENS), batch()
  after = jax.jit(task.hide)(before, jax.random.key(3))
  old, new = np.asarray(before['inputs']), np.asarray(after['inputs'])
  chosen = np.asarray(after['hidden'])
  assert not chosen[:, 0].any() and not chosen[:, -1].any()
  np.testing.assert_array_equal(new[~chosen], old[~chosen])
  count = chosen.sum()
  masked = (new == MASK)[chosen].sum()
  same = (new == old)[chosen].sum()
  other = count - masked - same
  # An id drawn at random may be the old one, or the mask.
  expected = np.array([0.8 + 0.1 / WORDS, 0.1 - 0.2 / WORDS, 0.1 + 0.1 / WORDS])
  squares = (np.array([masked, other, same]) - count * expected) ** 2
  assert (squares / (count * expected)).sum() < 13.8  # 1 in 1000
  assert abs(count - 0.15 * 98 * 100) < 4 * (9800 * 0.15 * 0.85) ** 0.5
  targets = np.asarray(after['targets'])
  np.testing.assert_array_equal(targets[chosen], old[chosen])
  assert (targets[~chosen] == -1).all()


def test_the_loss_looks_at_chosen_tokens_alone():
  task, rows = hiding.masked_lm(TOKENS), batch(4, 30)
  logits = jnp.zeros((4, 30, WORDS))
  values, weights = task.loss(logits, rows)
  hidden = task.hide(rows, None)['hidden']
  np.testing.assert_array_equal(weights, hidden.sum(axis=1))
  counted = np.asarray(weights) > 0
  np.testing.assert_allclose(
    np.asarray(values)[counted], np.log(WORDS), rtol=1e-5
  )
  elsewhere = jnp.where(
    hidden[..., None], logits, 7.0 * jnp.arange(WORDS)[None, None]
  )
  np.testing.assert_array_equal(task.loss(elsewhere, rows)[0], values)


def test_logits_by_chunks_are_of_the_same_hidden_tokens(monkeypatch):
  task, rows = hiding.masked_lm(TOKENS), batch(4, 30)
  features = jax.random.normal(jax.random.key(1), (4, 30, 8))
  weights = jax.random.normal(jax.random.key(2), (8, WORDS))

  def made():
    return token_logits.of(lambda w, x: x @ w, weights, features)

  whole = task.loss(made(), rows), task.score(made(), rows)
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', 4 * 7 * WORDS)
  assert isinstance(made(), token_logits.TokenLogits)
  total, pairs = task.together([made()], rows)
  np.testing.assert_allclose(total, whole[0], rtol=1e-5)
  np.testing.assert_allclose(pairs, [whole], rtol=1e-5)


def test_nothing_hidden_weighs_nothing():
  task = hiding.masked_lm(TOKENS._replace(fraction=0.0))
  values, weights = task.loss(jnp.zeros((4, 30, WORDS)), batch(4, 30))
  assert not np.asarray(weights).any() and np.isfinite(values).all()


def test_steps_hide_anew_and_evaluation_by_the_row_alone():
  task, rows = hiding.masked_lm(TOKENS), batch(6, 30)
  first, second = (
    task.hide(rows, jax.random.key(i))['hidden'] for i in range(2)
  )
  assert (first != second).any()
  alone = task.hide(jax.tree.map(lambda x: x[3:4], rows), None)['hidden']
  np.testing.assert_array_equal(task.hide(rows, None)['hidden'][3:4], alone)
  assert (task.hide(rows, None)['hidden'][2:3] != alone).any()


def images(rows=3, side=16):
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8)
  return {'inputs': jnp.asarray(pixels), 'mask': jnp.ones(rows, bool)}


@pytest.mark.parametrize(
  ('side', 'patches', 'seen'), [(2, 64, 16), (2, 49, 12), (1, 196, 49)]
)
def test_of_n_patches_so_many_are_seen(side, patches, seen):
  task = hiding.masked_patches(hiding.Patches(side, 0.75))
  edge = side * round(patches**0.5)
  hidden = task.hide(images(2, edge), jax.random.key(0))['hidden']
  assert hidden.shape == (2, patches)
  np.testing.assert_array_equal((~hidden).sum(axis=1), seen)


@pytest.mark.parametrize('target', ['pixels', 'normalized'])
def test_visible_patches_do_not_matter(target):
  task = hiding.masked_patches(hiding.Patches(4, 0.6, target))
  rows = images()
  hidden = task.hide(rows, None)['hidden']
  zeros = jnp.zeros((3, 16, 48))
  wild = jnp.where(hidden[..., None], zeros, 99.0)
  for one in (task.loss, task.score):
    np.testing.assert_array_equal(one(zeros, rows)[0], one(wild, rows)[0])
  assert (task.loss(zeros + 1.0, rows)[0] != task.loss(zeros, rows)[0]).all()


def test_of_normalized_patches_zeros_miss_all_but_one_value():
  """(P - 1) / P, as the variance is the unbiased one."""
  task = hiding.masked_patches(hiding.Patches(2, 0.75, 'normalized'))
  values, _ = task.loss(jnp.zeros((3, 64, 12)), images())
  np.testing.assert_allclose(values, 11 / 12, rtol=1e-3)


def test_the_score_is_what_is_explained():
  task = hiding.masked_patches(hiding.Patches(4, 0.6))
  rows = images()
  pixels = vit.patches(rows['inputs'], 4).astype(jnp.float32) / 127.5 - 1.0
  np.testing.assert_allclose(task.score(pixels, rows)[0], 1.0)
  hidden = task.hide(rows, None)['hidden'][..., None]
  mean = (pixels * hidden).sum((1, 2)) / hidden.sum((1, 2)) / 48
  flat = jnp.zeros_like(pixels) + mean[:, None, None]
  np.testing.assert_allclose(task.score(flat, rows)[0], 0.0, atol=1e-5)


def test_no_hidden_patch_weighs_nothing():
  task = hiding.masked_patches(hiding.Patches(4, 0.0))
  values, weights = task.loss(jnp.zeros((3, 16, 48)), images())
  assert not np.asarray(weights).any() and np.isfinite(values).all()


def test_the_model_does_not_see_hidden_pixels():
  shape = transformer.TransformerConfig(blocks=1, width=8, heads=2, mlp_width=8)
  model = vit.backbone(
    vit.VitConfig(shape, image=8, channels=3, patch=4, classes=0, masked=True)
  )
  params = model.init(jax.random.key(0))
  rows = images(2, 8)['inputs']
  hidden = jnp.array([[True, False, False, True], [False, True, True, True]])
  seen = model.embed(params, {'image': rows, 'hidden': hidden})
  cover = jnp.repeat(jnp.repeat(hidden.reshape(2, 2, 2), 4, 1), 4, 2)
  other = jnp.where(cover[..., None], 255 - rows, rows)
  np.testing.assert_array_equal(
    model.embed(params, {'image': other, 'hidden': hidden}), seen
  )
  bare = model.embed(params, {'image': other, 'hidden': ~hidden})
  assert (bare != seen).any()
  head = model.init_head(jax.random.key(1))
  out = model.logits(params, head, model.features(params, seen, None))
  assert out.shape == (2, 4, 48)
