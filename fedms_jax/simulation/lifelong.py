"""A run over a sequence of tasks: the driver, and what it looks at beside it.

After each task every model is scored on the rows of every task. Looking changes
no number of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.core import metrics
from fedms_jax.data.tasks import kept
from fedms_jax.simulation import cohorts, driver, evaluation, task_scores
from fedms_jax.simulation.scores import Collector
from fedms_jax.simulation.state import StageState

WINDOW = 10  # rounds that the sliding mean of a stream is of


class TaskList(NamedTuple):
  """What a run knows of its tasks.

  of: the task of each row, int [M]. count: T. first: the step in which each
  task is met first, [T]. after: the numbers of the stages that end a step.
  stream: whether rows arrive during a task. read: what was found before the
  run was resumed, {} of a new one. write: keeps what is found.
  """

  of: np.ndarray
  count: int
  first: Sequence[int]
  after: Sequence[int]
  stream: bool
  read: Callable[[], dict[str, Any]] = dict
  write: Callable[[dict[str, Any]], None] = lambda found: None


class Lifelong(driver.Simulation):
  """The driver of a sequence of tasks.

  found: 'before' and, for each step that is over, 'steps': {'pooled', 'own'},
  scores of each model on each task [T], of pooled rows, and the mean over
  clients that have such rows of those on their own (of language models minus
  the nats of a token, so that more is better); 'arriving': of each round
  of a stream [stage, round, sum of scores, rows], of the rows that arrive in
  it, before anybody has trained on them.
  """

  def __init__(self, *args, tasks: TaskList, scope, **kwargs):
    super().__init__(*args, **kwargs)
    self.tasks, self._scope = tasks, scope
    self.found: dict[str, Any] = {'before': None, 'steps': [], 'arriving': []}

  def run(self, state: StageState | None = None) -> StageState:
    if state is not None:
      self.found |= self.tasks.read()
      at = [state.stage, state.round]
      was = self.found['arriving']
      self.found['arriving'] = [line for line in was if line[:2] < at]
    return super().run(state)

  def _run_stage(self, state: StageState) -> StageState:
    if self.found['before'] is None:
      self._keep('before', scored(self, state))
    state = super()._run_stage(state)
    if state.stage in self.tasks.after:
      step = list(self.tasks.after).index(state.stage)
      self._keep('steps', [*self.found['steps'][:step], scored(self, state)])
    return state

  def _dispatch(self, state: StageState, schedule, store, cohort):
    if self.tasks.stream:
      line = self._arriving(state)
      if line is not None:
        self._keep('arriving', [*self.found['arriving'], line])
    return super()._dispatch(state, schedule, store, cohort)

  def _arriving(self, state: StageState):
    """How the model does on rows that nobody has trained on yet."""
    stage = self.stages[state.stage]
    train = cohorts.seen(stage, self.federation).train
    if train.since is None:
      return None
    rows = evaluation.rows_of(
      kept(train, train.since == state.round),
      np.arange(train.num_clients),
    )
    served = stage.algorithm.served
    scope = self._scope._replace(names=(served,))
    ids = np.arange(train.num_clients)
    total, count = _own(self, state, scope, ids, rows)[served].sum(0).tolist()
    return [state.stage, state.round, total, count] if count else None

  def _keep(self, name: str, value: Any) -> None:
    self.found[name] = value
    if self.place.peers.primary:
      self.tasks.write(self.found)

  def told(self) -> dict[str, Any]:
    """What a summary says of the tasks: what was found, 'served', and under
    'scores' what the matrix of each model comes to, see `task_scores`."""
    found, made = self.found, {}
    nothing = [None] * self.tasks.count  # of models that there were not yet
    for kind in ('pooled', 'own'):
      made[kind] = {
        name: task_scores.scores(
          [step[kind][name] for step in found['steps']],
          found['before'][kind].get(name, nothing),
          self.tasks.first,
        )
        for name in found['steps'][-1][kind]
        if all(name in step[kind] for step in found['steps'])
      }
    told = {
      'tasks': self.tasks.count,
      'first': [int(x) for x in self.tasks.first],
      'served': self.stages[-1].algorithm.served,
      'formulas': task_scores.FORMULAS,
      'nats': self.stages[-1].algorithm.task.perplexity,
      'scores': made,
      **found,
    }
    if found['arriving']:
      sums = np.array([line[2:] for line in found['arriving']])
      told['prequential'] = float(sums[:, 0].sum() / sums[:, 1].sum())
      each = (sums[:, 0] / sums[:, 1]).tolist()
      told['prequential_sliding'] = task_scores.sliding(each, WINDOW)
    return told


def scored(simulation: Lifelong, state: StageState) -> dict[str, Any]:
  """{'pooled', 'own'}: the score of each model on each task, [T]."""
  data, tasks = simulation.federation, simulation.tasks
  seed = simulation.options.seed
  scope = simulation._scope
  ids = evaluation.some(data.test.num_clients, scope.clients, seed)
  among = evaluation.readers(state, scope, ids, seed)
  groups = _padded(
    [data.pooled[tasks.of[data.pooled] == t] for t in range(tasks.count)]
  )
  sums = _pooled(simulation, state, scope, among, groups)
  pooled = {
    name: [_mean(x[:, t]) for t in range(tasks.count)]
    for name, x in _models(simulation, sums).items()
  }
  own: dict[str, list[float | None]] = {}
  for task in range(tasks.count):
    some = kept(data.test, tasks.of[data.test.rows] == task)
    rows = evaluation.rows_of(some, ids)
    for name, each in _own(simulation, state, scope, ids, rows).items():
      own.setdefault(name, []).append(_mean(each))
  return {'pooled': pooled, 'own': own}


def _pooled(simulation, state, scope, ids, groups) -> dict[str, np.ndarray]:
  """Sums of scores [n, G, 2] of each model on groups of rows [G, V]."""
  found = Collector(len(ids), (), len(groups))
  for chosen, parts in evaluation.pooled_parts(
    simulation, state, scope, ids, groups
  ):
    found.add(chosen, jax.device_get(parts))
  return found.scores(simulation.place.peers).sums


def _own(simulation, state, scope, ids, rows) -> dict[str, np.ndarray]:
  """Sums of scores [n, 2] of each model of clients on rows [n, V]."""
  found = Collector(len(ids), ())
  for chosen, sums in evaluation.own_parts(simulation, state, scope, ids, rows):
    found.add(chosen, [jax.device_get(sums)])
  return _models(simulation, found.scores(simulation.place.peers).sums)


def _mean(sums) -> float | None:
  """The mean over clients that have such rows; None: there are none."""
  found = metrics.mean_over_clients(sums)
  return found if np.isfinite(found) else None


def _models(simulation, sums) -> dict[str, np.ndarray]:
  """The scores of models, by their names; of language models the losses, as
  less than nothing."""
  losses = simulation.stages[-1].algorithm.task.perplexity
  start = 'loss/' if losses else 'score/'
  sign = np.array([-1, 1] if losses else [1, 1], np.float32)
  return {
    k[len(start) :]: v * sign for k, v in sums.items() if k.startswith(start)
  }


def _padded(groups: Sequence[np.ndarray]) -> np.ndarray:
  """Rows of several lengths as one array [G, V], -1 is padding."""
  out = np.full((len(groups), max(1, *map(len, groups))), -1, np.int32)
  for row, group in zip(out, groups, strict=True):
    row[: len(group)] = group
  return out
