"""What a model costs, from its shapes alone."""

from __future__ import annotations

from typing import NamedTuple


class BlockCost(NamedTuple):
  """What one example costs in a block; see `BackboneCost`."""

  flops: float
  activation: float
  spared: tuple[tuple[str, float], ...] = ()
  loose: float = 0.0
  work: float = 0.0


class BackboneCost(NamedTuple):
  """What one example costs in a backbone, from shapes alone.

  stem, block, head: forward FLOPs (a multiply-add counts 2) of the stem, of
  one block without LoRA, and of the head. tokens: T. activation: bytes that
  one block keeps for the backward pass where all its layers have an adapter.
  spared: pairs of a layer and the bytes that are not kept if it has none.
  loose: bytes that a block keeps too where no more than `unroll` follow each
  other, which is no loop. work: bytes that the backward pass of one block takes
  besides. vocabulary: V of logits by token, 0: they are of the example. last:
  of the last block, where the simulator computes no more of it than is read;
  None: it costs what the others do.
  """

  stem: float
  block: float
  head: float
  tokens: int
  activation: float
  spared: tuple[tuple[str, float], ...] = ()
  loose: float = 0.0
  unroll: int = 0
  work: float = 0.0
  vocabulary: int = 0
  last: BlockCost | None = None

  def whole(self) -> BackboneCost:
    """The same where all of the last block is computed."""
    return self._replace(last=None)
