"""Collective operations on host values between the processes of a run.

All processes call them in the same order, from the main thread.
"""

from __future__ import annotations

import numpy as np

from fedms_jax.core.types import Tree


class SingleProcess:
  """The only process of a run; a `ProcessGroup` does the same for several."""

  process_id = 0
  processes = 1

  @property
  def primary(self) -> bool:
    """Whether this process writes what a run writes once."""
    return self.process_id == 0

  def gathered(self, tree: Tree) -> Tree:
    """Host values of all processes, numpy arrays [processes, ...]."""
    import jax

    return jax.tree.map(lambda x: np.asarray(x)[None], tree)

  def summed(self, tree: Tree) -> Tree:
    """Host values, added up over the processes."""
    import jax

    return jax.tree.map(lambda x: x.sum(axis=0), self.gathered(tree))

  def first(self, tree: Tree) -> Tree:
    """The values that process 0 has."""
    return tree


class ProcessGroup(SingleProcess):
  """One of several processes of a run."""

  def __init__(self, process_id: int, processes: int):
    self.process_id = process_id
    self.processes = processes

  def gathered(self, tree):
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree)

  def first(self, tree):
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)
