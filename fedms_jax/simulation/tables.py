"""The example table on the device, with its derived columns.

Rows are handled in blocks of consecutive rows. A block is always computed as
a whole, in the same company and by the same program, so that a value does not
depend on when, where or by which run it was computed: resumed runs stay
bitwise equal.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import arrays, columns, tree
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Plan, Roles, Tree
from fedms_jax.data import lazy
from fedms_jax.data.cohorts import bucket
from fedms_jax.simulation import boundaries, derivation, timeline
from fedms_jax.simulation.host_columns import UNDER_WAY, HostColumns, TableDict
from fedms_jax.simulation.room import Room
from fedms_jax.simulation.row_blocks import RowBlocks


class Tables:
  """Gives each round the table it needs, in the scope that fits the budget.

  scope `run`: a block is derived when a round first needs it, and then kept;
  place `device`: there, with the raw columns; place `host`: in host memory,
  and the cohort's blocks are sent each round, while the device is busy with
  the round before. scope `round`: the cohort's blocks are sent and derived
  each round. `step`: nothing is derived ahead.

  `scope` and `place` are what the last view used, `sent` the bytes that it
  sent. `derived_rows` counts the rows derived so far.
  """

  def __init__(
    self,
    raw: lazy.Columns,
    *,
    scope: str = 'auto',
    place: str = 'device',
    budget: float = 0.0,
    host_budget: float = 0.0,
    device_memory: float = 0.0,
    block: int = 256,
    on_block: Callable[[int, int], None] | None = None,
    put: Callable[[Tree], Tree] = lambda table: table,
    split: Callable[[Tree], Tree] = lambda table: table,
    devices: int = 1,
    only: np.ndarray | None = None,
  ):
    """Holds raw columns [M, ...] in host memory.

    Args:
      raw: the columns of the example table; of lazy ones only the rows that
        will be asked for are read.
      scope: 'auto', 'run', 'round' or 'step'.
      place: 'auto', 'device' or 'host', see `columns.choose`.
      budget: bytes for tables on the device; 0: a share of what is free when
        the first table is asked for, see `memory.for_tables`.
      host_budget: bytes for derived columns in host memory; 0: half of what
        is free.
      device_memory: bytes that a device is to be taken to have; 0: what it
        has.
      block: rows of a block.
      on_block: is called with (done, total) blocks of a pass.
      put: brings columns to the devices that read them, if those are several.
      split: spreads the rows of a block over the `devices` that derive it.
      only: sorted numbers of the rows that will be asked for, and kept; None:
        all. Other numbers may occur, and mean nothing.
    """
    self._raw = RowBlocks(raw, block, devices, only)
    self.block, self.blocks = self._raw.block, self._raw.blocks
    wanted = scope, place
    self._room = Room(self._raw, wanted, budget, host_budget, device_memory)
    self._on_block = on_block or (lambda done, total: None)
    self._put = put
    self._split = split
    self._resident: TableDict | None = None
    self._widths: set[int] = set()
    self._counted = boundaries.Counted()
    self._left = boundaries.Left()
    self.derived_rows = self.sent = 0
    self.scope, self.place = scope, place
    self._used: collections.Counter = collections.Counter()
    self.forget()

  def settle(self, roles: Roles) -> None:
    """Fixes what fits, see `Room.settle`."""
    self._room.settle(roles)

  def view(
    self, algorithm: Algorithm, roles: Roles, rows, plan: Plan, usual=True
  ):
    """(table, translate) for row numbers of any shape; negative ones are
    padding.

    `translate` maps row numbers to rows of this table. usual: whether it is
    one of those that `self.usual` is about, whose derived rows are counted,
    and whose widths others may take.
    """
    self.settle(roles)
    shapes = self._shapes(algorithm, roles, plan)
    needed = self._needed(rows)
    chosen = self._room.choose(shapes, len(needed))
    self.scope, self.place = chosen
    self._used[chosen] += usual
    key = (algorithm.name, plan.boundary)
    if self.scope == 'run':
      self._begin(key, needed if usual else needed[:0])
      room = self._beside(algorithm, roles, plan, self.place)
      self._left.settle(algorithm, roles, self._raw.shapes(), plan, room)
    if self._room.of_all(chosen):
      table = self._whole()
      if self.scope == 'run':
        table |= self._on_device(algorithm, roles, needed, plan, shapes)
      self.sent = 0
      return table, self._raw.kept
    table, translate = self._gathered(
      algorithm, roles, needed, plan, shapes, usual
    )
    self.sent = tree.nbytes(table)
    return table, lambda r: translate(self._raw.kept(r))

  def foreseen(
    self, algorithm: Algorithm, roles: Roles, rows, plan: Plan
  ) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Shapes of the table that a view gives; None: it holds the rows of this
    view alone. roles: arrays or shapes."""
    shapes = self._shapes(algorithm, roles, plan)
    chosen = self._room.choose(shapes, len(self._needed(rows)))
    if not self._room.of_all(chosen):
      return None
    derived = self._several(shapes, self.blocks)
    return self._raw.sent() | (derived if chosen.scope == 'run' else {})

  def rows(self, rows: np.ndarray) -> TableDict:
    """A batch of the raw columns of row numbers [B], on the device; negative
    ones are padding, whose 'mask' is False."""
    return self._sent(self._raw.batch(rows))

  @property
  def usual(self) -> columns.Choice:
    """The scope and place of most views so far."""
    unused = columns.Choice(self.scope, self.place)
    return next((c for c, _ in self._used.most_common(1)), unused)

  def forget(self) -> None:
    """Drops derived columns: another stage begins."""
    self._key = None
    self._derived: TableDict = {}
    self._left.tables.clear()
    self._filled = np.zeros(self.blocks, bool)
    self._host: HostColumns | None = None
    self._known: dict[tuple, dict] = {}

  def ahead(
    self, algorithm: Algorithm, roles: Roles, now: Plan | None, plan: Plan
  ):
    """What will derive columns after `now`, or first of a stage, by `plan`, to
    compile it before: pairs of a function and its arguments. Raises
    `ValueError` if a table will then have other shapes."""
    derived = self._shapes(algorithm, roles, plan)
    if now and self._shapes(algorithm, roles, now) != derived:
      raise ValueError('The columns of the next plan have other shapes.')
    key = algorithm.name, plan.boundary
    chosen = self._room.choose(derived, self.blocks)
    scope, place = (self.scope, self.place) if now else chosen
    if scope == 'step' or not derived or self._left.known(key):
      return []
    shared, raw = Roles(roles.frozen, roles.shared, None), self._raw.shapes()
    room = self._beside(algorithm, shared, plan, place)
    way = boundaries.passing(algorithm, shared, raw, plan, room)
    args = algorithm, shared, raw, way.plan(plan), way.lower
    return [(derivation.derive, args)]

  def count_anew(self) -> None:
    """Counts all that will be needed as derived, for an account apart."""
    self._counted = boundaries.Counted()

  def counted(self) -> list:
    """What `derived_rows` has counted for the present prefix, as JSON: a
    resumed run derives it again, but an uninterrupted one would not; and by
    which pass."""
    return [*self._counted.as_json(), self._left.as_json()]

  def count_as_done(self, counted: list) -> None:
    """Does not count these blocks again; inverts `counted`."""
    *blocks, way = counted
    self._counted.read(*blocks)
    self._left.read(way)

  def _shapes(self, algorithm, roles, plan):
    """Shapes of a block's derived columns. Finding them traces the model,
    which takes longer than a small model's round."""
    key = (algorithm, plan.boundary)
    if key not in self._known:
      self._known[key] = columns.shapes(
        algorithm, roles, self._raw.shapes(), plan
      )
    return self._known[key]

  def _needed(self, rows) -> np.ndarray:
    """The blocks that hold these rows."""
    rows = self._raw.kept(rows)
    return np.unique(rows[rows >= 0] // self.block)

  def _begin(self, key: boundaries.Key, needed) -> None:
    """Drops the columns of another prefix, unless the pass to it has left
    those of this one; counts the blocks as derived."""
    if key != self._key:
      left = self._left.take(self._key, key)
      if left is None:
        self.forget()
      self._derived = self._derived | (left or {})
      self._key = key
    self.derived_rows += self._counted.add(key, needed, self._left) * self.block

  def _beside(self, algorithm: Algorithm, roles: Roles, plan: Plan, place):
    """Bytes for what passes leave of a block."""
    if place != 'device':
      return 0.0
    return self._room.beside(self._shapes(algorithm, roles, plan))

  def _whole(self) -> TableDict:
    """All raw columns, on the device."""
    resident = self._resident
    if resident is None:
      with timeline.span('transfer') as done:
        resident = self._resident = done(self._sent(self._raw.columns))
    return dict(resident)

  def _on_device(self, algorithm, roles, needed, plan, shapes) -> TableDict:
    """All derived columns, with the needed blocks filled."""
    if not self._derived:
      self._derived = self._empty(shapes, self.blocks)
    missing = needed[~self._filled[needed]]
    self._derived = self._fill(
      algorithm, roles, self._derived, missing, missing, plan
    )
    self._filled[missing] = True
    return self._derived

  def _gathered(self, algorithm, roles, needed, plan, shapes, usual):
    """A table of the needed blocks only."""
    width = self._width(len(needed), usual)
    with timeline.span('load'):
      staged = self._raw.several(needed, width)
    with timeline.span('transfer') as done:
      table = done(self._sent(staged))
    places = np.arange(len(needed))
    if self.scope == 'round':
      self.derived_rows += len(needed) * self.block * usual
      empty = self._empty(shapes, width)
      table |= self._fill(algorithm, roles, empty, needed, places, plan)
    elif self.scope == 'run':
      table |= self._from_host(algorithm, roles, needed, plan, shapes, width)
    place_of = np.zeros(self.blocks, np.int32)
    place_of[needed] = places

    def translate(rows):
      moved = place_of[rows // self.block] * self.block + rows % self.block
      return np.where(rows >= 0, moved, -1).astype(np.int32)

    return table, translate

  def _width(self, needed: int, usual: bool) -> int:
    """Blocks of a gathered table: as many as some table before has had, for
    each width is compiled apart, unless none fits within a factor of two."""
    fitting = [w for w in self._widths if needed <= w <= max(2 * needed, 1)]
    width = min(fitting, default=min(bucket(max(needed, 1)), self.blocks))
    if usual:
      self._widths.add(width)
    return width

  def _from_host(self, algorithm, roles, needed, plan, shapes, width):
    """The derived columns of the needed blocks, from host memory; those that
    are new are derived, and kept there."""
    if not shapes:
      return {}
    if self._host is None:
      self._host = HostColumns(shapes, self.blocks)
    with timeline.span('load'):
      read = {name: self._host.read(name, needed, width) for name in shapes}
    with timeline.span('transfer') as done:
      derived = done(self._sent(read))
    new = np.flatnonzero(~self._host.filled[needed])
    return self._fill(
      algorithm, roles, derived, needed[new], new, plan, self._host.put
    )

  def _sent(self, table) -> TableDict:
    return jax.tree.map(jnp.asarray, self._put(table))

  def _several(self, shapes, blocks: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the columns of so many blocks."""
    return {
      name: jax.ShapeDtypeStruct((blocks * self.block, *x.shape[1:]), x.dtype)
      for name, x in shapes.items()
    }

  def _empty(self, shapes, blocks: int) -> TableDict:
    return self._sent(arrays.zeros(self._several(shapes, blocks)))

  def _fill(self, algorithm, roles, derived, blocks, places, plan, keep=None):
    """Derives blocks into their places of the derived columns."""
    if not derived:
      return {}
    shared = Roles(roles.frozen, roles.shared, None)
    way = self._left.by((algorithm.name, plan.boundary))
    under_way: collections.deque = collections.deque()
    with timeline.span('columns') as done:
      for count, (number, place) in enumerate(zip(blocks, places, strict=True)):
        raw = self._split(self._raw.one(int(number)))
        new, others = self._put(
          derivation.derive(algorithm, shared, raw, way.plan(plan), way.lower)
        )
        new = new | others.get(plan.boundary, {})
        derived = derivation.write(derived, new, int(place) * self.block)
        if keep:
          keep(int(number), new)
        elif self.scope == 'run':
          self._leave(others, plan.boundary, int(place))
        under_way.append(new)
        if len(under_way) > UNDER_WAY:
          jax.block_until_ready(under_way.popleft())
          self._on_block(count - UNDER_WAY + 1, len(blocks))
      self._on_block(len(blocks), len(blocks))
      return done(derived)

  def _leave(self, others, boundary: int, place: int) -> None:
    """Keeps a block's columns at boundaries below this one."""
    lower = {b: x for b, x in others.items() if b < boundary}
    self._left.write(
      lower, place * self.block, lambda x: self._empty(x, self.blocks)
    )
