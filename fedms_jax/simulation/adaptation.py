"""Serving after adaptation: each client adapts, and is evaluated then.

As training leaves them, some clients were never met and newcomers never are:
they have what the server has. Adaptation gives all of them the same: local
training from there, by the method's own local update, be it personal or global
(then this is fine-tuning). Nothing is sent, and nothing of the run changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.cluster import memory
from fedms_jax.core import arrays, seeds, tree
from fedms_jax.core.alone import alone, personal
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Plan, Roles, Tree
from fedms_jax.data.federation import newcomers
from fedms_jax.simulation import cohorts, evaluation, execution, handover
from fedms_jax.simulation.accounting import fresh_rows
from fedms_jax.simulation.state import StageState
from fedms_jax.systems.arrivals import synchronous
from fedms_jax.systems.ledger import Entry, Meter
from fedms_jax.systems.units import in_bytes

NAME = 'adaptation'  # in the ledger
_STAGE = 1 << 20  # beyond those of a run, for what is drawn

Measure = Callable[[Any, StageState, evaluation.Scope], dict[str, Any]]


class Adaptation(NamedTuple):
  """epochs: of each client on its training rows. validation, test: shares of a
  newcomer's rows that it does not train on."""

  epochs: int
  validation: float
  test: float


class _Group(NamedTuple):
  """Clients that adapt. data: in which they are those that train. ids: in it.
  first: is added to the ids where a budget is drawn. begin: store of what they
  begin with. draw: a number of their draws."""

  data: Federation
  ids: np.ndarray
  first: int
  begin: Any
  draw: int


def evaluate(
  simulation,
  state: StageState,
  scope: evaluation.Scope,
  how: Adaptation,
  measure: Measure = evaluation.evaluate,
) -> dict[str, Any]:
  """Scores of the last stage's models, each client's after it has adapted.

  measure: how a simulation is evaluated, in which clients are as they are.

  Returns:
    as `evaluation.evaluate`, and 'epochs'; 'unseen' of a model is the mean of
    newcomers on rows that they have not adapted on, 'unseen_as_left' that of
    what they began with, on the same rows. The costs are `simulation.ledgers`
    of `NAME`.

  Raises:
    ValueError: the adapted models do not fit into host memory.
  """
  data = simulation.federation
  most, seed = scope.clients, simulation.options.seed
  ids = evaluation.some(data.test.num_clients, most, seed)
  _check_memory(state.roles, len(ids) + data.unseen.num_clients)
  met = _Group(data, ids, 0, simulation.store(state), 0)
  own, whole, cost = _adapted(simulation, state, met, how)
  found = measure(own, whole, scope)
  models = found['models']
  for scores in models.values():
    scores['unseen'] = scores['unseen_as_left'] = None
  if data.unseen.num_clients:
    split = newcomers(data, how.validation, how.test)
    those = np.arange(split.train.num_clients)
    begin = _Store({}, state.roles.personal)
    new = _Group(split, those, data.train.num_clients, begin, 1)
    made, whole, more = _adapted(simulation, state, new, how)
    cost = cost.plus(more)
    left = _of(simulation, split, begin)
    everyone = scope._replace(clients=len(those), mixed=0.0)
    after = measure(made, whole, everyone)['models']
    before = measure(left, state, everyone)['models']
    for name, scores in models.items():
      scores['unseen'] = after[name]['own_mean']
      scores['unseen_as_left'] = before[name]['own_mean']
  simulation.ledgers[NAME] = cost
  return found | {'epochs': how.epochs}


def _check_memory(roles: Roles, clients: int) -> None:
  each = tree.nbytes((roles.shared, roles.personal))
  free = memory.host() / 2
  if clients * each > free:
    raise ValueError(
      f'`Adaptation.epochs` keeps the adapted models of {clients} clients, '
      f'{in_bytes(clients * each)}; allowed: {in_bytes(free)}, half of the '
      'free memory. Lower `Scope.clients`.'
    )


class _Store:
  """The states of some clients; of others, what all begin with."""

  version = -1

  def __init__(self, found: dict[int, Tree], start: Tree):
    self._found, self._start = found, start

  def gather(self, ids: np.ndarray) -> Tree:
    """The states of K clients [K, ...]."""
    each = [self._found.get(int(i), self._start) for i in ids]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *each)


class _Beginning:
  """The store of what clients have before they train alone.

  shared: the server's tree, which each has a copy of. own: their store.
  """

  def __init__(self, shared: Tree, own: Any):
    self._shared, self._own = shared, own

  def gather(self, ids: np.ndarray) -> Tree:
    copies = arrays.repeated(self._shared, len(ids))
    return personal(copies, self._own.gather(ids))


def _of(simulation, data: Federation, store: Any, stages=None):
  """The simulation with other clients, whose states are in a store."""
  made = copy.copy(simulation)
  made.federation, made.stages = data, stages or simulation.stages
  made.store = lambda state: store
  return made


def _adapted(simulation, state: StageState, group: _Group, how: Adaptation):
  """(a simulation of these clients, who have adapted; the state that goes with
  it; what that cost)."""
  stage, roles = simulation.stages[state.stage], state.roles
  algorithm = alone(stage.algorithm)
  start = personal(roles.shared, roles.personal)
  ever, plans = handover.plans(
    simulation, state, state.round, group.ids + group.first
  )
  state = state._replace(
    roles=Roles(roles.frozen, {}, start), memory=(), channel=(), ever=ever
  )
  stages = [*simulation.stages]
  stages[state.stage] = stage._replace(algorithm=algorithm)
  begin = _Beginning(roles.shared, group.begin)
  found: dict[int, Tree] = {}
  made = _of(simulation, group.data, _Store(found, start), stages)
  meter = Meter(
    stage.algorithm,
    roles,
    batch=simulation.options.batch_size,
    slots=simulation.options.slots,
  )
  cost, size = Entry(), simulation.options.cohort
  made.tables.count_anew()
  for at in range(0, len(group.ids), size):
    some = slice(at, at + size)
    cohort = _cohort(made, state, group.ids[some], group.draw, how)
    kept = dict(zip(group.ids[some].tolist(), plans[some], strict=True))
    mine = [kept[int(i)] for i in cohort.ids]
    derived = made.tables.derived_rows
    found.update(_trained(made, state, cohort, mine, begin))
    derived = made.tables.derived_rows - derived
    derived = float(made.place.peers.summed(np.float64(derived)))
    cost = cost.plus(_cost(made, meter, ever, cohort, mine, derived))
  return made, state, cost


def _cohort(made, state: StageState, ids, number: int, how: Adaptation):
  """Some clients, with the rows that they adapt on."""
  options = made.options._replace(epochs=how.epochs, steps=0)
  everyone = synchronous(lambda step: ids)
  fresh = made.stages[state.stage].fresh
  sample = cohorts.sampler(made.federation, everyone, options, _STAGE, fresh)
  return sample(everyone.init, number)


def _trained(made, state: StageState, cohort, plans: list[Plan], begin):
  """The trees of clients after adaptation, by id."""
  algorithm = made.stages[state.stage].algorithm
  key = seeds.stream(made.options.seed, Stream.CLIENT, _STAGE, cohort.round)
  task = cohorts.Round(
    algorithm, state.roles, (), (), cohort, plans, key, state.clock,
    rates=made.local(state.stage).rates,
  )  # fmt: skip
  here, _, how = made.here(task, made.plan(state), begin)
  after = execution.train(task, here, how)
  out = {}
  for chunk in after.chunks:
    trees = jax.device_get(chunk.personal)
    for place, number in enumerate(cohort.ids[chunk.places]):
      out[int(number)] = tree.rows(trees, place)
  return out


def _cost(made, meter: Meter, ever, cohort, plans, derived: float) -> Entry:
  """What the clients of a cohort spend: they receive the model, and send
  nothing."""
  entry = Entry()
  for plan in dict.fromkeys(plans):
    places = [i for i, p in enumerate(plans) if p == plan]
    one = meter.group(
      plan,
      ever,
      clients=len(places),
      newcomers=len(places),
      cohort=len(cohort.ids),
      examples=float((cohort.rows[places] >= 0).sum()),
      steps=float(cohort.steps[places].sum()),
      derived=derived,
      scope=made.tables.scope,
      fresh=fresh_rows(cohort, places),
    )
    entry = entry.plus(one._replace(bytes_up=0.0, peak_client_bytes_up=0.0))
    derived = 0.0  # counted once
  return entry
