"""Codes of vectors: what is received has the right mean, and the bits are
those of an encoder that is written here."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.channel import codecs, entropy

KEY = jax.random.key(3)
X = jnp.asarray(np.random.default_rng(0).normal(size=37), jnp.float32)
D = len(X)
UNBIASED = {
  'uniform': codecs.uniform(4),
  'rotated': codecs.rotated(4),
  'random_k': codecs.random_k(0.2, True),
}


@pytest.mark.parametrize('name', UNBIASED)
def test_the_mean_of_what_is_received_is_what_was_sent(name):
  codec, draws = UNBIASED[name], 4000
  assert codec.unbiased
  found = jax.jit(jax.vmap(codec.apply, (None, 0)))(
    X, jax.random.split(KEY, draws)
  )
  off = np.mean(found, axis=0) - X
  assert (abs(off) <= 5 * np.std(found, axis=0) / draws**0.5 + 1e-6).all()


def test_terngrad_is_exact_in_the_mean_where_nothing_is_clipped():
  third = jnp.repeat(jnp.array([-2.0, 0.0, 2.0]), 3)
  found = codecs.terngrad().apply(third, KEY)
  np.testing.assert_array_equal(found, third)
  far = jnp.zeros(64).at[0].set(8.0)
  most = codecs.CLIP * float(jnp.std(far))
  draws = jax.vmap(codecs.terngrad().apply, (None, 0))(
    far, jax.random.split(KEY, 50)
  )
  np.testing.assert_allclose(draws[:, 0], most, rtol=1e-6)
  assert not draws[:, 1:].any() and most < 8


def test_drive_is_exact_where_the_rotated_vector_is_of_one_size():
  size = jnp.where(jnp.arange(16) % 3 > 0, 0.7, -0.7)
  x = codecs.rotate_back(size, KEY, 16)
  np.testing.assert_allclose(codecs.drive().apply(x, KEY), x, atol=1e-6)


def test_drive_keeps_the_product_with_the_vector_and_nearly_the_mean():
  keys = jax.random.split(KEY, 2000)
  found = jax.jit(jax.vmap(codecs.drive().apply, (None, 0)))(X, keys)
  np.testing.assert_allclose(found @ X, float(X @ X), rtol=1e-5)
  off = np.linalg.norm(np.mean(found, axis=0) - X)
  assert off < 0.1 * np.linalg.norm(X)


@pytest.mark.parametrize('d', [1, 2, 37, 64])
def test_a_rotation_is_taken_back_and_keeps_lengths(d):
  x = jnp.stack([X, -X[::-1]])[:, :d] if d <= D else jnp.ones((2, d))
  turned = codecs.rotate(x, KEY)
  np.testing.assert_allclose(codecs.rotate_back(turned, KEY, d), x, atol=1e-6)
  np.testing.assert_allclose(
    jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )


def test_many_levels_are_the_identity():
  found = codecs.uniform(1 << 24).apply(X, KEY)
  np.testing.assert_allclose(found, X, atol=1e-6)
  found = codecs.rotated(1 << 24).apply(X, KEY)
  np.testing.assert_allclose(found, X, atol=2e-6)


def test_all_numbers_are_the_identity_bitwise():
  for codec in (codecs.top_k(1.0), codecs.random_k(1.0, True)):
    np.testing.assert_array_equal(codec.apply(X, KEY), X)


def test_the_largest_numbers_stay_and_no_others():
  found = np.asarray(codecs.top_k(0.1).apply(X, KEY))
  kept = np.flatnonzero(found)
  assert len(kept) == 4
  assert set(kept) == set(np.argsort(-abs(np.asarray(X)))[:4].tolist())
  np.testing.assert_array_equal(found[kept], X[kept])


def test_signs_keep_the_mean_size():
  found = codecs.signs().apply(X, KEY)
  np.testing.assert_array_equal(np.sign(found), np.sign(X))
  assert float(jnp.abs(found).mean()) == pytest.approx(
    float(jnp.abs(X).mean()), rel=1e-5
  )


ALL = UNBIASED | {
  'drive': codecs.drive(),
  'terngrad': codecs.terngrad(),
  'top_k': codecs.top_k(0.2),
  'sign': codecs.signs(),
}


@pytest.mark.parametrize('name', ALL)
def test_codes_keep_zeros_and_commute_with_factors(name):
  apply = ALL[name].apply
  assert not np.asarray(apply(jnp.zeros(D), KEY)).any()
  np.testing.assert_allclose(
    apply(4 * X, KEY), 4 * apply(X, KEY), rtol=1e-4, atol=1e-5
  )


def digits(values, base):
  """Bits of whole numbers of a base, written as one number."""
  number = 0
  for value in values:
    number = number * base + int(value)
  return max(number.bit_length(), math.ceil(len(values) * math.log2(base)))


def encoded(name, x):
  """Bits of an encoder: the code of what `apply` gave, and read back."""
  found = np.asarray(ALL[name].apply(x, KEY), np.float64)
  signs, draws = jax.random.split(KEY)
  if name in ('uniform', 'rotated'):
    source, key = (x, KEY) if name == 'uniform' else (
      codecs.rotate(x, signs), draws)  # fmt: skip
    received = np.asarray(codecs.uniform(4).apply(source, key))
    low, high = float(source.min()), float(source.max())
    steps = np.rint((received - low) / ((high - low) / 3))
    assert set(steps.tolist()) <= {0, 1, 2, 3}
    back = low + steps * (high - low) / 3
    np.testing.assert_allclose(back, received, atol=1e-5)
    return digits(steps, 4) + 2 * 32
  if name == 'drive':
    turned = np.asarray(codecs.rotate(x, KEY))
    bits, size = turned >= 0, float(x @ x) / float(abs(turned).sum())
    read = codecs.rotate_back(jnp.where(bits, size, -size), KEY, len(x))
    np.testing.assert_allclose(read, found, atol=1e-5)
    return len(bits) + 32
  if name == 'terngrad':
    size = abs(found).max()
    np.testing.assert_allclose(found, np.sign(found) * size, rtol=1e-6)
    return digits(np.sign(found) + 1, 3) + 32
  if name == 'sign':
    assert len(np.unique(abs(found).round(6))) == 1
    return len(found) + 32
  kept = np.flatnonzero(found)
  if name == 'random_k':
    return 32 * len(kept) + 64
  places = min(len(found), len(kept) * math.ceil(math.log2(len(found))))
  return 32 * len(kept) + places


@pytest.mark.parametrize('name', ALL)
def test_the_bits_are_those_of_an_encoder(name):
  assert ALL[name].bits(D) == encoded(name, X)


def enumerated(symbols, levels):
  """(bits, what is read back) of the code of counts and of the place among all
  lists that have them, in whole numbers without rounding."""
  counts = [symbols.count(a) for a in range(levels)]
  d = len(symbols)

  def lists(left):
    total = math.factorial(sum(left))
    return total // math.prod(map(math.factorial, left))

  place, left = 0, list(counts)
  for symbol in symbols:
    for smaller in range(symbol):
      if left[smaller]:
        left[smaller] -= 1
        place += lists(left)
        left[smaller] += 1
    left[symbol] -= 1
  assert 0 <= place < lists(counts)
  read, rest, left = [], place, list(counts)
  for _ in range(d):
    for symbol in range(levels):
      if not left[symbol]:
        continue
      left[symbol] -= 1
      ways = lists(left)
      if rest < ways:
        read.append(symbol)
        break
      rest -= ways
      left[symbol] += 1
  table = (math.comb(d + levels - 1, levels - 1) - 1).bit_length()
  return table + (lists(counts) - 1).bit_length(), read


@pytest.mark.parametrize(
  ('levels', 'weights'),
  [(2, [1, 1]), (2, [1, 30]), (3, [1, 8, 1]), (16, 0.6 ** np.arange(16)),
   (4, [1, 0, 0, 0]), (256, np.ones(256))],
)  # fmt: skip
def test_entropy_bits_are_those_of_an_encoder(levels, weights):
  share = np.asarray(weights, float) / np.sum(weights)
  rng = np.random.default_rng(levels)
  rows = rng.choice(levels, size=(2, 120), p=share)
  found = np.asarray(entropy.bits(jnp.asarray(rows), levels))
  plain = math.ceil(120 * math.log2(levels) - 1e-9)
  for row, bits in zip(rows.tolist(), found, strict=True):
    made, read = enumerated(row, levels)
    assert read == row
    assert abs(bits - 1 - min(made, plain)) <= 1
    assert bits <= plain + 1
    counts = np.bincount(row, minlength=levels)
    p = counts[counts > 0] / 120
    table = math.log2(math.comb(119 + levels, levels - 1))
    assert bits <= table + 120 * -(p * np.log2(p)).sum() + 3


@pytest.mark.parametrize('name', [n for n in ALL if ALL[n].coded])
def test_an_entropy_coder_sees_the_numbers_that_are_sent(name):
  """Of many numbers near zero it leaves less than the code, of a few that are
  all over no more than a bit a vector."""
  codec = {
    'uniform': codecs.uniform(16), 'rotated': codecs.rotated(16)
  }.get(name, ALL[name])  # fmt: skip
  coded = jax.jit(codecs.sparing(codec).coded)
  rng = np.random.default_rng(1)
  peaked = jnp.asarray(rng.laplace(size=(2, 512)) ** 3, jnp.float32)
  found = np.asarray(coded(peaked, KEY))
  assert found.shape == (2,)
  assert (found <= codec.bits(512) + 1).all()
  if name in ('uniform', 'terngrad'):
    assert (found < 0.8 * codec.bits(512)).all()
  if name == 'top_k':  # floats, and places
    assert (found < codec.bits(512) - 100).all()
  short = jnp.ones((3, 1))
  np.testing.assert_array_equal(coded(short, KEY), np.full(3, 32.0))


def test_a_code_that_saves_nothing_is_left_out():
  codec = codecs.sparing(codecs.uniform(256))
  short = X[:2]
  np.testing.assert_array_equal(codec.apply(short, KEY), short)
  assert codec.bits(2) == 64 and codec.bits(37) == 37 * 8 + 64
  assert (codec.apply(X, KEY) != X).any()
