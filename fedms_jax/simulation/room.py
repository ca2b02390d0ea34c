"""What of the example table fits where: on the device, or in host memory."""

from __future__ import annotations

import jax

from fedms_jax.cluster import memory
from fedms_jax.core import columns, tree
from fedms_jax.core.types import Roles, Tree
from fedms_jax.simulation.row_blocks import RowBlocks


class Room:
  """The budgets of the tables of a run, see `Tables` for the arguments."""

  def __init__(
    self,
    raw: RowBlocks,
    wanted: tuple[str, str],
    budget: float,
    host_budget: float,
    device_memory: float,
  ):
    self._raw, self._wanted = raw, wanted
    self._budget = budget
    self._host_budget = host_budget or memory.host() / 2
    self._device_memory = device_memory

  def settle(self, roles: Roles) -> None:
    """Fixes the budget, once the roles are on the device, and before anything
    else of the run is."""
    if self._budget:
      return
    free = 0.0
    if self._device_memory:
      free = max(1.0, self._device_memory - tree.nbytes(roles))
    jax.block_until_ready(roles)
    self._budget = memory.for_tables(free)

  def choose(self, shapes: Tree, needed: int) -> columns.Choice:
    """The scope and place of derived columns, of which a block has `shapes`,
    where a round needs so many blocks; as far as is known before the budget
    is settled."""
    derived, raw = tree.nbytes(shapes), tree.nbytes(self._raw.columns)
    blocks = self._raw.blocks
    each = derived + raw // blocks
    sizes = columns.Sizes(derived * blocks, raw, needed * each)
    return columns.choose(
      *self._wanted, sizes, self._known(), self._host_budget
    )

  def of_all(self, chosen: columns.Choice) -> bool:
    """Whether a table by this choice holds all rows."""
    if chosen.scope == 'step':
      return tree.nbytes(self._raw.columns) <= self._known()
    return chosen == ('run', 'device')

  def beside(self, shapes: Tree) -> float:
    """Bytes for what passes leave of a block beside its columns: of the budget,
    half of what is left."""
    held = shapes, self._raw.shapes()
    return (self._known() / self._raw.blocks - tree.nbytes(held)) / 2

  def _known(self) -> float:
    return self._budget or memory.for_tables(self._device_memory)
