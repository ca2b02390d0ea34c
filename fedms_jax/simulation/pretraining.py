"""Pre-training by the server on public rows, before a run (phase 1 of arXiv
2305.11414): one stage of the driver, whose one client is the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from fedms_jax import schedules
from fedms_jax.core import inner_state, seeds
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Partition, Roles, Tree
from fedms_jax.data import lazy
from fedms_jax.schedules import triggers
from fedms_jax.simulation import driver
from fedms_jax.simulation.ahead import Opening
from fedms_jax.simulation.observer import Silent
from fedms_jax.simulation.state import Options, Stage


def train(
  algorithm: Algorithm,
  federation: Federation,
  before: Roles,
  blocks: int,
  *,
  epochs: int,
  batch_size: int,
  seed: int,
  observer,
  after: Callable[[], Iterable[Opening]] | None = None,
) -> Tree:
  """The shared tree of an algorithm, trained by the server.

  algorithm: trains all weights, or a head (`algorithms/full.py`, `probe.py`).
  A round is an epoch, over which the optimizer goes on; derived columns are
  computed once. after: finds what will run then, see `coming.py`.
  """
  public = federation.public
  key = seeds.stream(seed, Stream.PRETRAIN)
  if not epochs or not len(public):
    return algorithm.begin(key, before).shared
  stage = Stage(
    'pretrain',
    inner_state.central(algorithm),
    epochs,
    lambda handover: schedules.schedule(triggers.dense(blocks), range(blocks)),
    central=True,
  )
  options = Options(
    seed=seed, cohort=1, batch_size=batch_size, scope='run', prefetch=False
  )
  simulation = driver.Simulation(
    _public(federation),
    before,
    [stage],
    options,
    run_store=_Nothing(),
    observer=_Told(observer),
  )
  simulation.after = after
  return simulation.run().roles.shared


def steps_per_epoch(rows: int, batch_size: int) -> int:
  return math.ceil(rows / batch_size)


def _public(federation: Federation) -> Federation:
  """The public rows alone: no others are read."""
  raw = lazy.take(federation.table.columns, federation.public)
  rows = np.arange(len(federation.public), dtype=np.int32)
  nobody = Partition(np.zeros(2, np.int64), rows[:0])
  table = federation.table._replace(columns=raw)
  return Federation(table, nobody, nobody, nobody, nobody, rows[:0], rows)


class _Told(Silent):
  """Tells an observer what it is to know of the server's rounds."""

  def __init__(self, observer: Any):
    self._observer = observer

  def stage(self, name, done, total):
    self._observer.stage(name, done, total)

  def note(self, text):
    self._observer.note(text)

  def derived(self, done, total):
    self._observer.derived(done, total)

  def round(self, record):
    self._observer.round(
      {
        'stage': record['stage'],
        'round': record['round'],
        'train_loss': record['train_loss'],
        'score': record['train_score'],
        'seconds': record['seconds'],
      }
    )


class _Nothing:
  """Keeps nothing: what the server makes is kept when it is whole, and it has
  no clients with a state."""

  def store(self, name: str, initial: Tree) -> _Nothing:
    del name
    self._initial = initial
    return self

  def gather(self, ids) -> Tree:
    return jax.tree.map(lambda x: np.stack([x] * len(ids)), self._initial)

  def scatter(self, ids, stacked, version) -> None:
    del ids, stacked, version

  def after_round(self, simulation, state, store) -> None:
    del simulation, state, store

  def due(self, rounds: int) -> bool:
    del rounds
    return False

  def save(self, simulation, state, store) -> None:
    del simulation, state, store
