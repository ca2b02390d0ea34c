"""What a report weighs that began with an older model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedms_jax.core import tree
from fedms_jax.core.contract import Channel, Message, Sender, identity

KINDS = ('constant', 'poly', 'hinge')


class Discount(NamedTuple):
  """s(tau) of a report that is tau server steps old (arXiv 1903.03934, section
  5.2).

  kind: 'constant' 1; 'poly' (1 + tau)^-a; 'hinge' 1 up to b, then 1 / (a (tau -
  b) + 1). a, b: of these.
  """

  kind: str = 'constant'
  a: float = 0.5
  b: float = 4.0

  def __call__(self, tau: Any) -> Any:
    """s of a number or an array."""
    if self.kind == 'constant':
      return 1.0 + 0.0 * tau
    if self.kind == 'poly':
      return (1.0 + tau) ** -self.a
    over = tau - self.b
    over = over * (over > 0)
    return 1.0 / (self.a * over + 1.0)


@functools.lru_cache(maxsize=64)
def discounted(how: Callable[[Any], Any], normalize: str = 'count') -> Channel:
  """Messages times s of their staleness.

  normalize: 'count': what is sent shrinks and what it is divided by does not,
  so that a mean is (1/K) sum of s Delta, as FedBuff has it (arXiv 2106.06639,
  algorithm 1); 'weight': both do, so that it is a weighted mean, as FedScale
  has it. 'count' suits servers that sum differences of clients: a sum of whole
  models would shrink towards 0.
  """

  def encode(state, message: Message, key, sender: Sender) -> Message:
    del state, key
    s = how(sender.stale)
    if isinstance(s, float) and s == 1.0:
      return message  # a fresh chunk is computed as ever
    update, extras = tree.scale((message.update, message.extras), s)
    cover = message.cover
    if normalize == 'weight':
      cover = jax.tree.map(lambda x: x * s, cover)
    return message._replace(update=update, extras=extras, cover=cover)

  return identity()._replace(encode=encode)
