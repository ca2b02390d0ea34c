"""Codes of vectors: what is lost of them, and how many bits are left.

A code is applied to the last axis of an array, of which every vector is coded
by itself: `apply` gives what the receiver makes of it, `bits` what one vector
takes. All codes commute with positive factors. Where a code would take as many
bits as 32 a number, the vector is sent as it is.

What both sides can draw by themselves, from the numbers of the round and the
client, is not sent: the signs of a rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.channel import entropy

FLOAT = 32  # bits
SEED = 64
CLIP = 2.5  # standard deviations, of TernGrad


class Codec(NamedTuple):
  """apply: (x [..., d], key) -> what is received of it [..., d]. bits: d -> of
  one vector; whole. unbiased: whether the mean of what is received is x. coded:
  (x, key) -> bits of each vector [...] after an entropy coder; None: it would
  find nothing."""

  apply: Callable
  bits: Callable[[int], int]
  unbiased: bool
  coded: Callable | None = None


def sparing(codec: Codec) -> Codec:
  """The code, or none where it saves nothing."""

  def apply(x, key):
    d = x.shape[-1]
    return codec.apply(x, key) if codec.bits(d) < FLOAT * d else x

  def coded(x, key):
    d = x.shape[-1]
    assert codec.coded is not None
    if codec.bits(d) < FLOAT * d:
      return codec.coded(x, key)
    return jnp.full(x.shape[:-1], float(FLOAT * d))

  return codec._replace(
    apply=apply,
    bits=lambda d: min(codec.bits(d), FLOAT * d),
    coded=None if codec.coded is None else coded,
  )


def uniform(levels: int) -> Codec:
  """Stochastic rounding to levels that are evenly spaced between the least and
  the largest number (arXiv 1611.00429, section 2). Two floats say where.

  levels: L, at least 2.
  """

  def steps(x, key):
    low = jnp.min(x, axis=-1, keepdims=True)
    width = (jnp.max(x, axis=-1, keepdims=True) - low) / (levels - 1)
    at = (x - low) / jnp.where(width > 0, width, 1.0)
    return low, width, rounded(at, key)

  def apply(x, key):
    low, width, at = steps(x, key)
    return low + width * at

  def coded(x, key):
    at = jnp.clip(steps(x, key)[2], 0, levels - 1)
    return entropy.bits(at, levels) + 2.0 * FLOAT

  def bits(d: int) -> int:
    return whole(d * math.log2(levels)) + 2 * FLOAT

  return Codec(apply, bits, True, coded)


def rotated(levels: int) -> Codec:
  """`uniform` after a random rotation, which makes the numbers of a vector
  about equally large (arXiv 1611.00429, section 3)."""
  plain = uniform(levels)

  def apply(x, key):
    signs, draws = jax.random.split(key)
    turned = rotate(x, signs)
    return rotate_back(plain.apply(turned, draws), signs, x.shape[-1])

  def coded(x, key):
    signs, draws = jax.random.split(key)
    assert plain.coded is not None
    return plain.coded(rotate(x, signs), draws)

  return Codec(apply, lambda d: plain.bits(padded(d)), True, coded)


def drive() -> Codec:
  """DRIVE (arXiv 2105.08339, section 3): a rotation, of whose result the signs
  are sent, and one number, by which what is received has the same product with
  the vector as the vector itself. With a uniform rotation it would be without
  bias; with this one, of Hadamard, it nearly is."""

  def apply(x, key):
    turned = rotate(x, key)
    one = jnp.sum(jnp.abs(turned), axis=-1, keepdims=True)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    scale = square / jnp.where(one > 0, one, 1.0)
    return rotate_back(scale * sign(turned), key, x.shape[-1])

  return Codec(apply, lambda d: padded(d) + FLOAT, False)


def terngrad() -> Codec:
  """TernGrad (arXiv 1705.07878): -s, 0 or s by chance, of numbers that are
  clipped at 2.5 standard deviations. Without bias but for the clip."""

  def apply(x, key):
    most = CLIP * jnp.std(x, axis=-1, keepdims=True)
    # Of a constant vector nothing is far from the others.
    x = jnp.where(most > 0, jnp.clip(x, -most, most), x)
    size = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    chance = jnp.abs(x) / jnp.where(size > 0, size, 1.0)
    kept = jax.random.uniform(key, x.shape) < chance
    return jnp.where(kept, size * jnp.sign(x), 0.0)

  def coded(x, key):
    return entropy.bits(jnp.sign(apply(x, key)) + 1, 3) + float(FLOAT)

  return Codec(apply, lambda d: whole(d * math.log2(3)) + FLOAT, False, coded)


def top_k(share: float) -> Codec:
  """The largest numbers, and their places, as a list or as a bit for each
  number. share: of the numbers; at least one."""

  def apply(x, key):
    del key
    k = count(share, x.shape[-1])
    order = jnp.argsort(jnp.argsort(-jnp.abs(x), axis=-1), axis=-1)
    return jnp.where(order < k, x, 0.0)

  def bits(d: int) -> int:
    k = count(share, d)
    return FLOAT * k + min(d, k * index_bits(d))

  def coded(x, key):
    d = x.shape[-1]
    k = count(share, d)
    places = entropy.bits(apply(x, key) != 0, 2)
    return FLOAT * k + jnp.minimum(places, 1.0 + k * index_bits(d))

  return Codec(apply, bits, False, coded)


def random_k(share: float, scaled: bool) -> Codec:
  """Some numbers, whose places follow from a seed that is sent. scaled: by d /
  k, which takes the bias away."""

  def apply(x, key):
    d = x.shape[-1]
    k = count(share, d)
    order = jnp.argsort(
      jnp.argsort(jax.random.uniform(key, x.shape), axis=-1), axis=-1
    )
    return jnp.where(order < k, x * (d / k if scaled else 1.0), 0.0)

  return Codec(apply, lambda d: FLOAT * count(share, d) + SEED, scaled)


def signs() -> Codec:
  """The signs, times the mean size (arXiv 1901.09847, section 4)."""

  def apply(x, key):
    del key
    return jnp.mean(jnp.abs(x), axis=-1, keepdims=True) * sign(x)

  def coded(x, key):
    return entropy.bits(apply(x, key) >= 0, 2) + float(FLOAT)

  return Codec(apply, lambda d: d + FLOAT, False, coded)


def count(share: float, d: int) -> int:
  """How many of d numbers a share of them is."""
  return max(1, min(d, math.ceil(share * d - 1e-9)))


def index_bits(d: int) -> int:
  """Bits of the place of one of d numbers."""
  return max(1, (d - 1).bit_length())


def padded(d: int) -> int:
  """The least power of two that is no less."""
  return 1 << max(0, (d - 1).bit_length())


def whole(bits: float) -> int:
  """Bits of a list of digits of another base, written as one number."""
  return math.ceil(bits - 1e-9)


def sign(x):
  """1 where x is at least 0, else -1."""
  return jnp.where(x < 0, -1.0, 1.0)


def rounded(x, key):
  """x, at least 0, rounded up or down by chance, so that its mean is x."""
  low = jnp.floor(x)
  return low + (jax.random.uniform(key, x.shape) < x - low)


def rotate(x, key):
  """A random rotation of vectors [..., d], padded with zeros to a power of two:
  random signs, then a Walsh-Hadamard transform [..., d']."""
  d = x.shape[-1]
  size = padded(d)
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - d)])
  return hadamard(x * jax.random.rademacher(key, x.shape, jnp.float32))


def rotate_back(x, key, d: int):
  """The inverse of `rotate`, [..., d]."""
  turned = hadamard(x)
  return (turned * jax.random.rademacher(key, x.shape, jnp.float32))[..., :d]


def hadamard(x):
  """The orthonormal Walsh-Hadamard transform of the last axis, whose length is
  a power of two; it is its own inverse."""
  shape, size = x.shape, x.shape[-1]
  half = 1
  while half < size:
    pairs = x.reshape(*shape[:-1], size // (2 * half), 2, half)
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    x = jnp.stack([a + b, a - b], axis=-2).reshape(shape)
    half *= 2
  return x / math.sqrt(size)
