"""Derived columns at lower boundaries than the one in use.

A schedule that goes deeper asks for the columns of one boundary after another,
and the pass to the first one went through all the others. So a pass leaves
what enters the blocks below its own boundary, too, as far as it fits, and who
goes deeper finds it.

A number may depend on the program that has made it, and this one depends on
what it leaves. So a `Pass` is part of a checkpoint: a resumed run derives by
the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax

from fedms_jax.core import columns, tree
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Plan, Roles
from fedms_jax.simulation import derivation
from fedms_jax.simulation.host_columns import TableDict

Key = tuple[str, int]  # the name of an algorithm, and a boundary


class Pass(NamedTuple):
  """How columns are derived: up to the boundary of `key`, and what is left of
  the way there, at the boundaries `lower`, ascending."""

  key: Key
  lower: tuple[int, ...] = ()

  def serves(self, key: Key | None) -> bool:
    """Whether it gives the columns of a key."""
    if key is None or key[0] != self.key[0]:
      return False
    return key == self.key or key[1] in self.lower

  def plan(self, plan: Plan) -> Plan:
    """The plan of it, to derive what another plan of its key asks for."""
    return Plan((True,) * len(plan.active), self.key[1])


def differing(algorithm: Algorithm, roles: Roles, raw, plan: Plan) -> TableDict:
  """Shapes of a block's columns that are others at each boundary."""
  assert algorithm.deeper is not None
  deeper = algorithm.deeper
  found = columns.shapes(algorithm, roles, raw, plan)
  top = plan.boundary
  return jax.eval_shape(lambda r, b: deeper(r, b, top, top), roles, raw | found)


class Counted:
  """Blocks that a run, before a resume too, has derived for a key."""

  def __init__(self):
    self._key: Key | None = None
    self._blocks: set[int] = set()

  def add(self, key: Key, blocks, left: Left) -> int:
    """Counts blocks; gives how many are new. Not new are those that the pass
    of a boundary above has gone through."""
    before = self._key
    if key != before:
      down = before is not None and before[1] > key[1]
      if not (down and left.known(before, key)):
        self._blocks = set()
      self._key = key
    new = set(map(int, blocks)) - self._blocks
    self._blocks |= new
    return len(new)

  def as_json(self) -> list:
    return [self._key, sorted(self._blocks)]

  def read(self, key, blocks) -> None:
    """Inverts what JSON makes of `as_json`."""
    self._key, self._blocks = key and tuple(key), set(blocks)


class Left:
  """By which pass columns are derived, and what it has left on the device."""

  def __init__(self):
    self._pass: Pass | None = None
    self.tables: dict[int, TableDict] = {}

  def known(self, *keys: Key | None) -> bool:
    """Whether one pass, that of now, gives the columns of all these keys."""
    return self._pass is not None and all(map(self._pass.serves, keys))

  def by(self, key: Key) -> Pass:
    """The pass that gives the columns of a key."""
    if self._pass is not None and self._pass.serves(key):
      return self._pass
    return Pass(key)

  def take(self, before: Key | None, key: Key) -> TableDict | None:
    """The columns that are others at this key, if they are left from before;
    what is above them is dropped."""
    if before is None or before[0] != key[0] or key[1] not in self.tables:
      return None
    found = self.tables[key[1]]
    self.tables = {b: x for b, x in self.tables.items() if b < key[1]}
    return found

  def settle(
    self, algorithm: Algorithm, roles: Roles, raw, plan: Plan, room: float
  ) -> Pass:
    """The pass by which a key's columns will be derived from now on; see
    `passing`."""
    key = algorithm.name, plan.boundary
    if not self.known(key):
      self._pass = passing(algorithm, roles, raw, plan, room)
    return self.by(key)

  def write(self, found: dict[int, TableDict], at: int, empty) -> None:
    """Keeps what a pass has found of a block, from row `at` on; empty: makes
    a table for columns like these."""
    for boundary, new in found.items():
      held = self.tables.get(boundary) or empty(new)
      self.tables[boundary] = derivation.write(held, new, at)

  def as_json(self) -> Pass | None:
    return self._pass

  def read(self, written: Sequence | None) -> None:
    """Inverts what JSON makes of `as_json`."""
    self._pass = None
    if written is not None:
      (name, boundary), lower = written
      self._pass = Pass((name, boundary), tuple(lower))


def passing(
  algorithm: Algorithm, roles: Roles, raw, plan: Plan, room: float
) -> Pass:
  """The pass to the boundary of a plan: it leaves as many of the next lower
  ones as there is room for.

  raw: shapes of a block's raw columns. room: bytes, for a block's rows.
  """
  key = algorithm.name, plan.boundary
  if algorithm.deeper is None or plan.boundary == 0:
    return Pass(key)
  size = tree.nbytes(differing(algorithm, roles, raw, plan))
  count = min(plan.boundary, int(max(room, 0.0) // max(size, 1)))
  return Pass(key, tuple(range(plan.boundary - count, plan.boundary)))
