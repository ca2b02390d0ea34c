"""What a channel may do beside encoding and decoding: for codes that have a
state at the client or at the server, and for protocols of a whole cohort.

Everything here is optional; a channel without it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fedms_jax.core.types import Tree

INNER = 'inner'  # of a personal tree: what is no part of a client's model
RESIDUAL = 'residual'  # of that: what a channel has kept back, see `Wire.keep`


class Opening(NamedTuple):
  """What everybody knows of a cohort when its round begins.

  ids: uint32 [K]. there: bool [K], whose messages will come. held: by key of a
  message, which of it all clients train: bool [L], or a scalar.
  """

  ids: Any
  there: Any
  held: dict[str, Any]


class Keys(NamedTuple):
  """Bytes of a client and round that are no values: keys, shares, signs of
  life. early: sent before training. up: sent after it. down: received."""

  early: float = 0.0
  up: float = 0.0
  down: float = 0.0

  def plus(self, other: Keys) -> Keys:
    """Those of two channels."""
    return Keys._make(a + b for a, b in zip(self, other, strict=True))


class Wire(NamedTuple):
  """Parts of a channel that most have not; None: as if it were not there.

  begin: (state, shared tree at the start of a stage) -> state. open: (state,
  opening, key of the round) -> state of the same form, before a round. receive:
  (state, shared tree, key of the round) -> what clients get of it. keep:
  (state, message, key of the client, sender, kept) -> (message, kept), in place
  of `Channel.encode`; kept: as `Message.update`, zeros at first, stays with the
  client. coded, coded_down: shapes of what is sent of the shared tree -> its
  bytes as it is coded, in place of those as it is.
  """

  begin: Callable[[Tree, Tree], Tree] | None = None
  open: Callable[[Tree, Opening, Any], Tree] | None = None
  receive: Callable[[Tree, Tree, Any], Tree] | None = None
  keep: Callable[..., tuple[Any, Tree]] | None = None
  coded: Callable[[Tree], float] | None = None
  coded_down: Callable[[Tree], float] | None = None
  keys: Keys = Keys()
