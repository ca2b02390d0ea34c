"""How a cohort is executed: wide vmaps, chunks of clients, or one by one.

The numbers agree to float32 rounding; what differs is speed and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.cluster.placement import Placement
from fedms_jax.core import reduction, rounds, scoring, tree
from fedms_jax.core.compile import Program
from fedms_jax.core.contract import Algorithm, Clients, Moment, Received, Work
from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import Plan, Roles
from fedms_jax.core.wire import Opening
from fedms_jax.data.cohorts import chunks as chunks_of
from fedms_jax.simulation import timeline
from fedms_jax.simulation.cohorts import Began, Cohort, Round
from fedms_jax.simulation.planner import Execution


class Chunk(NamedTuple):
  """Clients computed together. places: their places in the cohort [k];
  personal, sums: [width, ...] on the device, of which the first k count."""

  places: np.ndarray
  plan: Plan
  personal: Any
  sums: dict[str, jax.Array]


def layout(
  plans: Sequence[Plan],
  steps: np.ndarray,
  how: Execution,
  least: int = 1,
  versions: np.ndarray | None = None,
) -> list[tuple[np.ndarray, int]]:
  """Chunks of clients of one plan, of like length: their places, and lanes for
  them, at least `least`. Where all have the same plan, all chunks have the same
  lanes, so that a plan is compiled once; of several plans each may have a few
  clients, who are not to wait in many lanes. versions: steps whose models
  clients began with, [K], one in a chunk; None: all began with one."""
  if not plans:
    return []
  began = [0] * len(plans) if versions is None else versions.tolist()
  pairs = list(zip(plans, began, strict=True))
  kinds = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
  kind = np.array([kinds[pair] for pair in pairs])
  order = np.lexsort((-steps, kind))
  cuts = [
    i for i in range(1, len(order)) if kind[order[i]] != kind[order[i - 1]]
  ]
  groups = np.split(order, cuts)
  if how.mode == 'chunk':
    least = max(least, how.width) if len(set(plans)) == 1 else least
    return [
      (group[places], lanes)
      for group in groups
      for places, lanes in chunks_of(steps[group], how.width, int, least)
    ]
  if how.mode == 'loop':
    groups = np.split(order, len(order))
  return [(group, len(group)) for group in groups]


class Here(NamedTuple):
  """A cohort as this process sees it: the table that it reads, the cohort's
  rows as rows of that table, the places of the clients that are its own and
  report, and their personal states [k, ...]. fresh: as the rows are."""

  place: Placement
  table: dict[str, jax.Array]
  rows: np.ndarray
  places: np.ndarray
  personal: Any
  fresh: np.ndarray | None = None


class Outcome(NamedTuple):
  """What a round ends with."""

  roles: Roles
  memory: Any
  channel: Any
  chunks: list[Chunk]
  measured: dict[str, jax.Array]


def train(task: Round, here: Here, how: Execution) -> Outcome:
  """One round: clients train, and the server takes its step."""
  algorithm, place = task.algorithm, here.place
  none = reduction.empty(algorithm, task.roles)
  summing = algorithm.server.reduction == 'sum'
  totals = place.empty(none) if summing else None
  chunks, apart = [], []
  task, seen = _opened(task, none)
  mine = [task.plans[i] for i in here.places]
  steps = task.cohort.steps[here.places]
  timing = task.cohort.timing
  began = None if timing is None else timing.versions[here.places]
  for chosen, lanes in layout(mine, steps, how, place.width, began):
    places = here.places[chosen]
    clients = _padded(task.cohort, here, chosen, lanes)
    plan = task.plans[places[0]]
    version = -1 if began is None else int(began[chosen[0]])
    totals, new, sums = _chunk(seen, plan, clients, here, totals, how, version)
    chunks.append(Chunk(places, plan, new, sums))
    if not summing:
      apart.append((places, totals))
      totals = None
  with timeline.span('train') as done:
    done((totals, apart))
  with timeline.span('reduce') as done:
    if summing:
      totals = place.reduce(totals)
    else:
      totals = _apart(none, apart, len(task.plans), place)
    roles, memory, channel, measured = reduction.close(
      algorithm,
      task.roles,
      task.memory,
      task.channel,
      totals,
      task.key,
      np.int32(task.cohort.round),
      task.noise,
      task.public,
      task.rows,
    )
    return done(Outcome(roles, memory, channel, chunks, measured))


def _opened(task: Round, none: Received) -> tuple[Round, Round]:
  """(the round with the channel's state when it begins, the same as clients see
  it).

  Raises:
    ValueError: the channel needs clients that train the same blocks.
  """
  wire = task.algorithm.channel.wire
  if wire.open is None and wire.receive is None:
    return task, task
  if wire.open is not None and len(set(task.plans)) > 1:
    raise ValueError(
      'the channel adds up what is hidden, for which all clients of a round '
      'train the same blocks, and these do not. Take another schedule.'
    )
  opening = _opening(task, none)
  key = task.key if task.noise is None else task.noise
  shared, channel = reduction.opened(
    task.algorithm, task.roles, task.channel, opening, key
  )
  task = task._replace(channel=channel)
  return task, task._replace(roles=task.roles._replace(shared=shared))


def _opening(task: Round, none: Received) -> Opening:
  """What everybody knows of the cohort. none: what nobody sends."""
  algorithm, cohort = task.algorithm, task.cohort
  plan = task.plans[0] if task.plans else None
  mask = algorithm.masks(plan)[0] if plan else {}

  def held(key: str) -> np.ndarray:
    here = tree.trained(mask, key) if plan else False
    if tree.is_stacked(key):
      here = np.broadcast_to(here, algorithm.backbone.blocks)
    return np.asarray(here, bool)

  names = set(none.update).union(*none.extras.values())
  there = ~cohort.lost & (cohort.weights > 0)
  found = {key: held(key) for key in sorted(names)}
  return Opening(cohort.ids.astype(np.uint32), there, found)


def _chunk(
  task: Round,
  plan,
  clients: Clients,
  here: Here,
  totals,
  how,
  version: int = -1,
):
  """Trains one chunk on the devices of this process. version: the step that its
  clients began in; -1: this one."""
  zero = np.int32(0)
  began = Began(task.roles, task.key, task.cohort.round, task.clock)
  if version in task.began:
    began = task.began[version]
    late = task.cohort.round - began.round
    stale = np.full(len(clients.rows), late, np.float32)
    clients = clients._replace(stale=here.place.split(stale))
  rates = {name: np.float32(rate) for name, rate in task.rates.items()}
  when = np.int32(began.round), zero, zero, np.int32(began.clock)
  moment = Moment(*when, rates)
  work = Work(here.table, began.key, moment, task.channel)
  return rounds.train(
    task.algorithm,
    plan,
    began.roles,
    work,
    totals,
    clients,
    together=how.steps,
    mesh=here.place.mesh,
  )


def _padded(cohort: Cohort, here: Here, chosen, lanes: int) -> Clients:
  """The clients of a chunk, filled up to its lanes.

  chosen: of `here.places`. Rows stay on the host, which runs the steps."""
  place, places = here.place, here.places[chosen]
  fill = -(-lanes // place.width) * place.width - len(places)
  padded = np.concatenate([places, np.repeat(places[:1], fill)])
  chunk_rows = here.rows[padded]
  weights = cohort.weights[padded]
  if fill:
    chunk_rows[-fill:], weights[-fill:] = -1, 0.0
  ids = cohort.ids[padded].astype(np.uint32)
  chosen = np.concatenate([chosen, np.repeat(chosen[:1], fill)])
  personal = tree.rows(here.personal, chosen)
  fresh = None if here.fresh is None else here.fresh[padded]
  ids, personal, weights, fresh = place.split((ids, personal, weights, fresh))
  return Clients(ids, personal, chunk_rows, weights, fresh)


def _apart(none: Received, parts, count: int, place: Placement) -> Received:
  """Messages [K, ...] in the order of the cohort, of all processes; what a
  client did not send is zero and weighs nothing.

  parts: (places, messages of a chunk) each.
  """

  def stacked(empty, found) -> Any:
    if empty is None:
      return None
    if isinstance(empty, dict):
      return {
        key: stacked(value, [(at, x[key]) for at, x in found if key in x])
        for key, value in empty.items()
      }
    # An empty cohort is one client that sends nothing.
    whole = jnp.zeros((max(count, 1), *empty.shape), empty.dtype)
    if not found:
      return whole
    places = np.concatenate([at for at, _ in found])
    held = jnp.concatenate([x[: len(at)] for at, x in found])
    return whole.at[places].set(held)

  out = Received(
    *(
      stacked(empty, [(at, getattr(part, name)) for at, part in parts])
      for name, empty in none._asdict().items()
    )
  )
  if place.peers.processes == 1:
    return out
  return place.whole(place.peers.summed(jax.device_get(out)))


def validate(
  algorithm: Algorithm,
  roles: Roles,
  chunks: Sequence[Chunk],
  here: Here,
  rows: np.ndarray,
  plan: Plan,
  at_once: int = 0,
  asked: tuple[Metric, ...] = (),
) -> list[tuple[np.ndarray, dict[str, jax.Array]]]:
  """Scores of the served model on validation rows [K, V]: (places, sums).

  roles: after the round. at_once: clients scored together where nothing is
  personal; 0: all. asked: metrics of the model, beside its score.
  """
  look = scoring.Look(algorithm, plan, (algorithm.served,), asked)

  def scored(personal, places, lanes=0):
    held = np.full((max(lanes, len(places)), rows.shape[1]), -1, np.int32)
    held[: len(places)] = rows[places]
    return places, score(look, roles, personal, here.table, held, here.place)

  if not len(here.places):
    return []
  if not jax.tree.leaves(chunks[0].personal):
    lanes = at_once or len(here.places)
    return [
      scored({}, here.places[i : i + lanes], lanes)
      for i in range(0, len(here.places), lanes)
    ]
  return [scored(chunk.personal, chunk.places) for chunk in chunks]


def score(*args) -> dict[str, jax.Array]:
  """What `reading` of the same arguments gives. The first k of it count; that
  of one client stands for all where nothing is personal."""
  program, given = reading(*args)
  return program(*given)


def reading(
  look: scoring.Look,
  roles: Roles,
  personal: Any,
  table: dict[str, jax.Array],
  rows: np.ndarray,
  place: Placement,
) -> Program:
  """`scoring.evaluate_chunk` on the devices of this process, and what it is
  called with. On one device roles, personal and table may be shapes.

  personal: of as many clients as `rows` [k, V], or of more, as a chunk has
  them. rows [V]: of all clients.
  """
  leaves = jax.tree.leaves(personal)
  if not leaves and rows.ndim == 1:
    rows = rows[None]
  width = len(leaves[0]) if leaves else len(rows)
  width = -(-width // place.width) * place.width
  if rows.ndim == 2:
    filled = np.full((width, rows.shape[1]), -1, np.int32)
    filled[: len(rows)] = rows
    rows = filled
  if leaves and len(leaves[0]) < width:
    at = np.minimum(np.arange(width), len(leaves[0]) - 1)
    personal = tree.rows(personal, at)
  roles = roles._replace(personal=None)
  if place.mesh is None:
    return scoring.evaluate_chunk, (look, roles, table, personal, rows)
  personal = place.split(personal)
  rows = place.split(rows) if rows.ndim == 2 else place.whole(rows)
  args = look, roles, table, personal, rows, place.mesh
  return scoring.evaluate_spread, args
