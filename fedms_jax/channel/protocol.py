"""The protocol of a secure sum: its numbers, what it refuses, what it costs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from fedms_jax.channel import discrete
from fedms_jax.core import tree
from fedms_jax.core.types import Tree
from fedms_jax.core.wire import Keys

WORD = 32  # bits of what contributions are kept in
# Bytes: of a public key, of what is added to a ciphertext, of two shares in it,
# and of a share that is revealed (X25519, AES-GCM; ours).
_KEY, _SEALED, _SHARES, _SHARE = 32, 28, 72, 36
_SPREAD = 8  # standard deviations of noise that the modulus has room for


class Secure(NamedTuple):
  """How messages become whole numbers, and what opens their sum.

  bits: b; values are rounded by chance to multiples of range / (2^(b-1) - 1).
  range: R, the largest size of a value, per unit of weight. weight: the largest
  weight of a client. most: clients in a round. modulus: m; 0: the least that
  the sum of so many fits into. masked: whether masks are made, which changes
  no number. neighbors: of a client, even; 0: all others. threshold: how many of
  a client and its neighbors must be alive; 0: two thirds of them. survivors:
  how many of all must be; 0: as many. noise: see `discrete.Noise`; None: there
  is none. blocks: L. share: of the numbers are sent, of which all clients know
  which.
  """

  bits: int
  range: float
  weight: float
  most: int
  blocks: int
  modulus: int = 0
  masked: bool = True
  neighbors: int = 0
  threshold: int = 0
  survivors: int = 0
  noise: discrete.Noise | None = None
  share: float = 1.0

  @property
  def levels(self) -> int:
    """The largest whole number of a client."""
    return 2 ** (self.bits - 1) - 1

  @property
  def half(self) -> int:
    """Neighbors on either side of the ring."""
    wanted = self.neighbors or self.most - 1
    return -(-min(wanted, self.most - 1) // 2)

  @property
  def shares(self) -> int:
    """k: of each secret, one at the client itself."""
    return min(2 * self.half + 1, self.most)

  @property
  def needed(self) -> int:
    """t: shares that open a secret."""
    return self.threshold or -(-2 * self.shares // 3)

  @property
  def enough(self) -> int:
    """Clients that must be alive in all."""
    least = 0 if self.noise is None else self.noise.least
    return max(self.needed, self.survivors, least)

  @property
  def fitting(self) -> int:
    """The bits that the sum of all clients needs."""
    largest = self.most * self.levels
    if self.noise is not None:
      # Of more clients than it takes there is more noise, too.
      more = math.sqrt(max(1.0, self.most / self.noise.least))
      largest += math.ceil(_SPREAD * self.noise.total * more * self.levels)
    return 1 + math.ceil(math.log2(largest + 1))

  @property
  def word(self) -> int:
    """m, in bits."""
    return self.modulus or self.fitting


def check(how: Secure) -> None:
  """Raises `ValueError` for sums that wrap, or open too early or never."""
  if how.bits < 2:
    raise ValueError(
      f'`Secure.bits`={how.bits} leaves a sign and no number; allowed: 2 or '
      'more.'
    )
  if how.word > WORD or how.word < how.fitting:
    raise ValueError(
      f'`Secure.modulus`={how.word} bits do not hold the sum of {how.most} '
      f'clients of `Secure.bits`={how.bits}; allowed: {how.fitting} to {WORD}. '
      'Lower `Secure.bits`, or raise the modulus.'
    )
  if how.most < 2:
    raise ValueError(
      f'`Secure.most`={how.most}: the sum of one client is its message; '
      'allowed: at least 2.'
    )
  if not how.shares / 2 < how.needed <= how.shares:
    raise ValueError(
      f'`Secure.threshold`={how.needed} is not allowed for secrets in '
      f'{how.shares} shares; allowed: {how.shares // 2 + 1} to {how.shares}, '
      'for with half of them a server could open both masks of a client.'
    )
  if how.enough > how.most:
    raise ValueError(
      f'`Secure.survivors`={how.enough} is more than the {how.most} clients of '
      'a round. Lower it.'
    )
  if how.noise is not None:
    discrete.check(how.noise, how.levels)


def keys(shares: int) -> Keys:
  """Bytes of the protocol, of a client with so many shares of its secrets: two
  public keys and sealed shares before training, the shares that open the sum
  after it; and those of its neighbors."""
  sealed = shares * (_SEALED + _SHARES)
  return Keys(
    early=2 * _KEY + sealed,
    up=shares * _SHARE,
    down=2 * _KEY * shares + sealed,
  )


def nbytes(how: Secure, part: Tree) -> float:
  """Bytes of the masked numbers: of what is trained, who held what, and how
  much was out of range."""
  count = 1
  for name, value in part.items():
    stacked = tree.is_stacked(name)
    leaves = jax.tree.leaves(value)
    rows = leaves[0].shape[0] if stacked and leaves else 1
    count += rows
    for leaf in leaves:
      size = math.prod(leaf.shape[1:] if stacked else leaf.shape)
      sent = size if how.share == 1 else math.ceil(how.share * size - 1e-9)
      count += rows * max(1, sent)
  return float(math.ceil(count * how.word / 8))
