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

from fedms_jax.cluster import memory
from fedms_jax.core import columns, tree
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Plan, Roles, Tree
from fedms_jax.data import lazy
from fedms_jax.data.cohorts import bucket
from fedms_jax.simulation import derivation, timeline
from fedms_jax.simulation.host_columns import UNDER_WAY, HostColumns, TableDict


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
    self._place_of = None  # of rows in what is kept
    if only is not None:
      self._place_of = np.zeros(raw['labels'].shape[0], np.int32)
      self._place_of[only] = np.arange(len(only))
      raw = lazy.take(raw, only)
    else:
      raw = lazy.whole(raw)
    rows = raw['labels'].shape[0]
    self.block = -(-min(block, rows) // devices) * devices
    self.blocks = -(-rows // self.block)
    self._raw = raw
    self._rows = rows
    self._wanted = scope, place
    self._budget = budget
    self._device_memory = device_memory
    self._host_budget = host_budget or memory.host() / 2
    self._on_block = on_block or (lambda done, total: None)
    self._put = put
    self._split = split
    self._resident: TableDict | None = None
    self._widths: set[int] = set()
    # Blocks that this run, before a resume too, has derived for `_key`.
    self._counted: tuple = (None, set())
    self.derived_rows = self.sent = 0
    self.scope, self.place = scope, place
    self._used: collections.Counter = collections.Counter()
    self.forget()

  def view(
    self, algorithm: Algorithm, roles: Roles, rows, plan: Plan, usual=True
  ):
    """(table, translate) for row numbers of any shape; negative ones are
    padding.

    `translate` maps row numbers to rows of this table. usual: whether it is
    one of those that `self.usual` is about, whose derived rows are counted,
    and whose widths others may take.
    """
    rows = self._kept(rows)
    self._set_budget(roles)
    shapes = self._shapes(algorithm, roles, plan)
    needed = np.unique(rows[rows >= 0] // self.block)
    chosen = self._choose(shapes, len(needed))
    self.scope, self.place = chosen
    self._used[chosen] += usual
    everything = self.scope == 'step' and tree.nbytes(self._raw) <= self._budget
    key = (algorithm.name, plan.boundary)
    if self.scope == 'run':
      self._begin(key, needed if usual else needed[:0])
    if everything or self.scope == 'run' and self.place == 'device':
      table = self._whole()
      if self.scope == 'run':
        table |= self._on_device(algorithm, roles, needed, plan, shapes)
      self.sent = 0
      return table, self._kept
    table, translate = self._gathered(
      algorithm, roles, needed, plan, shapes, usual
    )
    self.sent = tree.nbytes(table)
    return table, lambda r: translate(self._kept(r))

  def rows(self, rows: np.ndarray) -> TableDict:
    """A batch of the raw columns of row numbers [B], on the device; negative
    ones are padding, whose 'mask' is False."""
    safe = np.maximum(self._kept(rows), 0)
    table = {name: column[safe] for name, column in self._raw.items()}
    return self._sent(table | {'mask': rows >= 0})

  def _kept(self, rows: np.ndarray) -> np.ndarray:
    """Row numbers among the rows that are kept; negatives stay."""
    if self._place_of is None:
      return rows
    return np.where(rows >= 0, self._place_of[rows], -1).astype(np.int32)

  @property
  def usual(self) -> columns.Choice:
    """The scope and place of most views so far."""
    unused = columns.Choice(self.scope, self.place)
    return next((c for c, _ in self._used.most_common(1)), unused)

  def forget(self) -> None:
    """Drops derived columns: another stage begins."""
    self._key = None
    self._derived: TableDict = {}
    self._filled = np.zeros(self.blocks, bool)
    self._host: HostColumns | None = None
    self._known: dict[tuple, dict] = {}

  def ahead(self, algorithm: Algorithm, roles: Roles, now: Plan, plan: Plan):
    """What will derive columns after `now`, by `plan`, to compile it before:
    pairs of a function and its arguments. Raises `ValueError` if a table will
    then have other shapes."""
    derived = self._shapes(algorithm, roles, plan)
    if self._shapes(algorithm, roles, now) != derived:
      raise ValueError('The columns of the next plan have other shapes.')
    if self.scope == 'step' or not derived:
      return []
    shared = Roles(roles.frozen, roles.shared, None)
    plan = Plan((True,) * len(plan.active), plan.boundary)
    return [(derivation.derive, (algorithm, shared, self._raw_shapes(), plan))]

  def counted(self) -> list:
    """What `derived_rows` has counted for the present prefix, as JSON: a
    resumed run derives it again, but an uninterrupted one would not."""
    key, blocks = self._counted
    return [key, sorted(blocks)]

  def count_as_done(self, counted: list) -> None:
    """Does not count these blocks again; inverts `counted`."""
    self._counted = (counted[0] and tuple(counted[0]), set(counted[1]))

  def _shapes(self, algorithm, roles, plan):
    """Shapes of a block's derived columns. Finding them traces the model,
    which takes longer than a small model's round."""
    key = (algorithm, plan.boundary)
    if key not in self._known:
      self._known[key] = columns.shapes(
        algorithm, roles, self._raw_shapes(), plan
      )
    return self._known[key]

  def _raw_shapes(self):
    """Shapes of the raw columns of a block."""

    def of(x):
      return jax.ShapeDtypeStruct((self.block, *x.shape[1:]), x.dtype)

    return jax.tree.map(of, self._raw)

  def _set_budget(self, roles: Roles) -> None:
    """Fixes the budget, once the roles are on the device, and before anything
    else of the run is."""
    if self._budget:
      return
    free = 0.0
    if self._device_memory:
      free = max(1.0, self._device_memory - tree.nbytes(roles))
    jax.block_until_ready(roles)
    self._budget = memory.for_tables(free)

  def _choose(self, shapes, needed: int) -> columns.Choice:
    derived, raw = tree.nbytes(shapes), tree.nbytes(self._raw)
    sizes = columns.Sizes(
      derived * self.blocks, raw, needed * (derived + raw // self.blocks)
    )
    return columns.choose(*self._wanted, sizes, self._budget, self._host_budget)

  def _begin(self, key, needed) -> None:
    """Drops the columns of another prefix; counts the blocks as derived."""
    if key != self._key:
      self.forget()
      self._key = key
    if key != self._counted[0]:
      self._counted = (key, set())
    new = set(map(int, needed)) - self._counted[1]
    self._counted[1].update(new)
    self.derived_rows += len(new) * self.block

  def _whole(self) -> TableDict:
    """All raw columns, on the device."""
    resident = self._resident
    if resident is None:
      with timeline.span('transfer') as done:
        resident = self._resident = done(self._sent(self._raw))
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
      staged = self._raw_blocks(needed, width)
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

  def _raw_blocks(self, needed, width: int) -> dict[str, np.ndarray]:
    staged = {
      name: np.zeros((width * self.block, *x.shape[1:]), x.dtype)
      for name, x in self._raw.items()
    }
    for place, number in enumerate(needed):
      at = slice(place * self.block, (place + 1) * self.block)
      for name, values in self._block(int(number)).items():
        staged[name][at] = values
    return staged

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

  def _empty(self, shapes, blocks: int) -> TableDict:
    return self._sent(
      {
        name: jnp.zeros((blocks * self.block, *x.shape[1:]), x.dtype)
        for name, x in shapes.items()
      }
    )

  def _fill(self, algorithm, roles, derived, blocks, places, plan, keep=None):
    """Derives blocks into their places of the derived columns."""
    if not derived:
      return {}
    shared = Roles(roles.frozen, roles.shared, None)
    plan = Plan((True,) * len(plan.active), plan.boundary)
    under_way: collections.deque = collections.deque()
    with timeline.span('columns') as done:
      for count, (number, place) in enumerate(zip(blocks, places, strict=True)):
        raw = self._split(self._block(int(number)))
        new = self._put(derivation.derive(algorithm, shared, raw, plan))
        derived = derivation.write(derived, new, int(place) * self.block)
        if keep:
          keep(int(number), new)
        under_way.append(new)
        if len(under_way) > UNDER_WAY:
          jax.block_until_ready(under_way.popleft())
          self._on_block(count - UNDER_WAY + 1, len(blocks))
      self._on_block(len(blocks), len(blocks))
      return done(derived)

  def _block(self, number: int) -> dict[str, np.ndarray]:
    """Raw rows of a block; the last one is filled up with its last row."""
    start = number * self.block
    stop = min(start + self.block, self._rows)
    rows = np.minimum(np.arange(start, start + self.block), stop - 1)
    return {name: column[rows] for name, column in self._raw.items()}
