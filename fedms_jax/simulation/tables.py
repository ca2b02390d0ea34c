"""The example table on the device, with its derived columns.

Rows are handled in blocks of consecutive rows. A block is always computed as
a whole, in the same company, so that a value does not depend on when, or by
which run, it was computed: resumed runs stay bitwise equal.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax import columns, programs, tree
from fedms_jax.base import Algorithm, Plan, Roles

TableDict = dict[str, jax.Array]


@programs.jit(static=(0, 5), donate=(4,))
def _fill(algorithm: Algorithm, roles: Roles, raw, start, derived, plan: Plan):
  """Derives one block of raw rows and writes it at row `start`."""
  new = algorithm.columns(roles, raw, plan)
  return {
    name: jax.lax.dynamic_update_slice_in_dim(
      derived[name], new[name].astype(derived[name].dtype), start, axis=0
    )
    for name in derived
  }


class Tables:
  """Gives each round the table it needs, in the scope that fits the budget.

  scope `run`: raw and derived columns stay on the device, and a block is
  derived when a round first needs it. `round`: the cohort's blocks are sent
  and derived each round. `step`: nothing is derived ahead. `derived_rows`
  counts the rows derived so far, `scope` is what the last round used.
  """

  def __init__(
    self,
    raw: dict[str, np.ndarray],
    *,
    scope: str = 'auto',
    budget: float = 4e9,
    block: int = 256,
    on_block: Callable[[int, int], None] | None = None,
  ):
    rows = len(raw['labels'])
    self.block = min(block, rows)
    self.blocks = -(-rows // self.block)
    self._raw = raw
    self._rows = rows
    self._wanted = scope
    self._budget = budget
    self._on_block = on_block
    self._resident: TableDict | None = None
    self._derived: TableDict = {}
    self._filled = np.zeros(self.blocks, bool)
    self._key = None
    # Blocks that this run, before a resume too, has derived for `_key`.
    self._counted: tuple = (None, set())
    self._widest = 0
    self.derived_rows = 0
    self.scope = scope

  def view(self, algorithm: Algorithm, roles: Roles, rows, plan: Plan):
    """(table, translate) for row numbers of any shape; negatives are padding.

    `translate` maps row numbers to rows of this table.
    """
    shapes = self._shapes(algorithm, roles, plan)
    needed = np.unique(rows[rows >= 0] // self.block)
    self.scope = self._pick(shapes, len(needed))
    if self.scope == 'run' or (
      self.scope == 'step' and tree.nbytes(self._raw) <= self._budget
    ):
      table = self._whole()
      if self.scope == 'run':
        table = table | self._lookup(algorithm, roles, needed, plan, shapes)
      return table, lambda r: r
    return self._gathered(algorithm, roles, needed, plan, shapes)

  def forget(self) -> None:
    """Drops derived columns: another stage begins."""
    self._key, self._derived = None, {}

  def counted(self) -> list:
    """What `derived_rows` has counted for the present prefix, as JSON: a
    resumed run derives it again, but an uninterrupted one would not."""
    key, blocks = self._counted
    return [key, sorted(blocks)]

  def count_as_done(self, counted: list) -> None:
    """Does not count these blocks again; inverts `counted`."""
    self._counted = (counted[0] and tuple(counted[0]), set(counted[1]))

  def _block(self, number: int) -> dict[str, np.ndarray]:
    """Raw rows of a block; the last one is filled up with its last row."""
    start = number * self.block
    stop = min(start + self.block, self._rows)
    rows = np.minimum(np.arange(start, start + self.block), stop - 1)
    return {name: column[rows] for name, column in self._raw.items()}

  def _shapes(self, algorithm, roles, plan):
    raw = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((self.block, *x.shape[1:]), x.dtype),
      self._raw,
    )
    return columns.shapes(algorithm, roles, raw, plan)

  def _pick(self, shapes, needed: int) -> str:
    per_block = tree.nbytes(shapes)
    raw = tree.nbytes(self._raw)
    return columns.pick_scope(
      self._wanted,
      per_block * self.blocks + raw,
      needed * (per_block + raw // self.blocks),
      int(self._budget),
    )

  def _whole(self) -> TableDict:
    if self._resident is None:
      self._resident = jax.tree.map(jnp.asarray, self._raw)
    return self._resident

  def _empty(self, shapes, blocks: int) -> TableDict:
    return {
      name: jnp.zeros((blocks * self.block, *x.shape[1:]), x.dtype)
      for name, x in shapes.items()
    }

  def _lookup(self, algorithm, roles, needed, plan, shapes) -> TableDict:
    """The resident derived columns, with the needed blocks filled."""
    key = (algorithm.name, plan.boundary)
    if key != self._key:
      self._derived = {}  # free the old columns before the new ones exist
      self._derived = self._empty(shapes, self.blocks)
      self._filled[:] = False
      self._key = key
    if key != self._counted[0]:
      self._counted = (key, set())
    new = set(map(int, needed)) - self._counted[1]
    self._counted[1].update(new)
    self.derived_rows += len(new) * self.block
    missing = needed[~self._filled[needed]]
    self._derived = self._fill_blocks(
      algorithm, roles, self._derived, missing, missing, plan
    )
    self._filled[missing] = True
    return self._derived

  def _fill_blocks(self, algorithm, roles, derived, blocks, places, plan):
    """Derives blocks into their places of the derived columns."""
    shared = Roles(roles.frozen, roles.shared, None)
    plan = Plan((True,) * len(plan.active), plan.boundary)
    for done, (number, place) in enumerate(zip(blocks, places, strict=True)):
      raw = self._block(int(number))
      derived = _fill(
        algorithm, shared, raw, int(place) * self.block, derived, plan
      )
      if self._on_block:
        self._on_block(done + 1, len(blocks))
    return derived

  def _gathered(self, algorithm, roles, needed, plan, shapes):
    """A table of the needed blocks only, as wide as the widest so far."""
    self._widest = max(self._widest, len(needed))
    places = np.arange(len(needed))
    raw = {
      name: np.zeros((self._widest * self.block, *x.shape[1:]), x.dtype)
      for name, x in self._raw.items()
    }
    for place, number in zip(places, needed, strict=True):
      for name, values in self._block(int(number)).items():
        raw[name][place * self.block : (place + 1) * self.block] = values
    table = jax.tree.map(jnp.asarray, raw)
    if self.scope == 'round':
      derived = self._empty(shapes, self._widest)
      self.derived_rows += len(needed) * self.block
      table |= self._fill_blocks(
        algorithm, roles, derived, needed, places, plan
      )
    place_of = np.zeros(self.blocks, np.int32)
    place_of[needed] = places

    def translate(rows):
      moved = place_of[rows // self.block] * self.block + rows % self.block
      return np.where(rows >= 0, moved, -1).astype(np.int32)

    return table, translate
