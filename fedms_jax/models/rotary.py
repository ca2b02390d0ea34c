"""Rotary position embeddings (RoFormer, arXiv 2104.09864), and the ways to
stretch them over more tokens than a model was first trained on.

What depends on the number of tokens depends on T as it is given, padding
included: as in transformers, where all of a batch is turned alike.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Scaling:
  """No stretching; others derive from it.

  gain: what rotated queries and keys are multiplied by.
  """

  gain: float = dataclasses.field(default=1.0, kw_only=True)

  def frequencies(self, half: int, base: float, tokens: int):
    """Angles per position of the rotary pairs, float32 [half]."""
    return base ** (-jnp.arange(half, dtype=jnp.float32) / half)


@dataclasses.dataclass(frozen=True)
class Linear(Scaling):
  """All are divided by the factor (arXiv 2306.15595)."""

  factor: float

  def frequencies(self, half: int, base: float, tokens: int):
    """See `Scaling`."""
    return super().frequencies(half, base, tokens) / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3(Scaling):
  """Divides those that turn less than `low` times within the original context,
  leaves those that turn more than `high` times, and blends in between (Llama
  3.1, arXiv 2407.21783)."""

  factor: float
  low: float
  high: float
  context: float

  def frequencies(self, half: int, base: float, tokens: int):
    """See `Scaling`."""
    plain = super().frequencies(half, base, tokens)
    slow = plain / self.factor
    turns = self.context * plain / (2 * jnp.pi)
    share = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
    return share * plain + (1.0 - share) * slow


@dataclasses.dataclass(frozen=True)
class Dynamic(Scaling):
  """A larger base where there are more tokens than the context, by how many
  there are (dynamic NTK, as in transformers)."""

  factor: float
  context: int

  def frequencies(self, half: int, base: float, tokens: int):
    """See `Scaling`."""
    if tokens > self.context:
      grown = self.factor * tokens / self.context - (self.factor - 1)
      base *= grown ** (half / (half - 1))
    return super().frequencies(half, base, tokens)


@dataclasses.dataclass(frozen=True)
class Yarn(Scaling):
  """Divides the pairs that turn less than `slow` times within the context,
  leaves those that turn more than `fast` times, and blends by the number of
  the pair (YaRN, arXiv 2309.00071, section 3.2). whole: the bounds of the
  blend are rounded to whole pairs."""

  factor: float
  context: float
  fast: float
  slow: float
  whole: bool

  def frequencies(self, half: int, base: float, tokens: int):
    """See `Scaling`."""

    def pair(turns: float) -> float:
      """The pair that turns so often within the context."""
      return (
        half * math.log(self.context / (2 * math.pi * turns)) / math.log(base)
      )

    low, high = pair(self.fast), pair(self.slow)
    if self.whole:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
      high += 0.001  # as in the reference
    plain = super().frequencies(half, base, tokens)
    ramp = (jnp.arange(half, dtype=jnp.float32) - low) / (high - low)
    slowed = jnp.clip(ramp, 0.0, 1.0)
    return slowed * (plain / self.factor) + (1.0 - slowed) * plain


@dataclasses.dataclass(frozen=True)
class LongRope(Scaling):
  """Each pair has a divisor of its own, and another one where there are more
  tokens than the context (LongRoPE, arXiv 2402.13753)."""

  short: tuple[float, ...]
  long: tuple[float, ...]
  context: int

  def frequencies(self, half: int, base: float, tokens: int):
    """See `Scaling`."""
    own = self.long if tokens > self.context else self.short
    plain = super().frequencies(half, base, tokens)
    return plain / jnp.asarray(own, jnp.float32)


def rotate(x, angles, gain: float = 1.0, first: int = 0):
  """x [B, T, H, Dh], of which the first 2 * half are turned by the angles per
  position [half], in the half-split layout of LLaMA checkpoints. first: the
  position of the first of them."""
  half = angles.shape[0]
  places = first + jnp.arange(x.shape[1], dtype=jnp.float32)
  angle = places[:, None] * angles[None]
  cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
  if gain != 1.0:
    cos, sin = gain * cos, gain * sin
  turned, rest = x, None
  if 2 * half < x.shape[-1]:
    turned, rest = jnp.split(x, [2 * half], axis=-1)
  one, other = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
  rotated = (one * cos - other * sin, other * cos + one * sin)
  out = jnp.concatenate(rotated, axis=-1).astype(x.dtype)
  return out if rest is None else jnp.concatenate([out, rest], axis=-1)
