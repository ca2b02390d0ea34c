"""Scenarios of continual learning: tasks that clients meet one after another.

A task is a set of rows: of some classes, of a domain, or of a time in which
labels mean something else. Who meets which task when, which of its rows have
arrived in a round, and which of earlier ones a client still has, are pure
functions of the seed, the stage and the round; so a run that is resumed has the
same rows.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Partition, Table
from fedms_jax.data import draws

MOST_DOMAINS = 8
ALL = -1  # rows of earlier tasks that a client keeps
DOMAIN = 'domain'  # the column that says where a row is from
RANK = 'rank'  # the column that says how soon a client keeps a row


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A sequence of tasks.

  kind: 'class' (each has classes of its own), 'domain' (the same classes, other
  inputs), 'label' (the same inputs, two classes change places), or 'column'
  (some of the domains that a column of the data has). count: T, of tasks.
  order: 'same' for all clients; 'per_client' (each has its own), or 'staggered'
  (half of the clients are a task behind). known: whether the task of a row is
  told where it is scored. arrival: rounds over which the rows of a task arrive;
  0: all are there when it begins. window: rounds for which a row stays; 0: to
  the end of its task. blend: rounds in which a task takes the place of the one
  before, row by row. repeats: how often all tasks come in turn. memory: rows of
  earlier tasks that a client keeps; ALL: all of them. choice: which ones: at
  'random', or by 'herding', see `herding.py`.
  """

  kind: str
  count: int
  order: str = 'same'
  known: bool = False
  arrival: int = 0
  window: int = 0
  blend: int = 0
  repeats: int = 1
  memory: int = 0
  choice: str = 'random'
  seed: int = 0

  @property
  def steps(self) -> int:
    """Tasks that a client meets in all, S."""
    return self.count * self.repeats


class Tasks(NamedTuple):
  """A scenario on the rows of a table. of: the task of each row, int32 [M].
  classes: which ones a task has, bool [T, C]."""

  scenario: Scenario
  of: np.ndarray
  classes: np.ndarray


def made(
  scenario: Scenario, table: Table, public: np.ndarray | None = None
) -> tuple[Tasks, Table]:
  """(the tasks of a table's rows, the table with its column 'task', and with
  inputs or labels as their task has them). public: rows of the server, which
  become rows of the first domain where images are changed; None: there are
  none. Domains of a column are dealt to tasks in the order in which the data
  has them.

  Raises:
    ValueError: the table has no so many tasks.
  """
  labels, size = table.columns['labels'], len(table.label_names)
  rng = draws.generator(scenario.seed, Stream.TASKS, 0)
  count = scenario.count
  classes = np.ones((count, size), bool)
  if scenario.kind == 'class':
    if count > size:
      raise ValueError(
        f'`Scenario.count`={count} tasks of classes of their own is too many; '
        f'allowed: at most {size}, the classes of the data.'
      )
    groups = np.array_split(rng.permutation(size), count)
    classes = np.zeros((count, size), bool)
    for task, group in enumerate(groups):
      classes[task, group] = True
    of = classes.argmax(axis=0)[labels]
  elif scenario.kind == 'column':
    of = _of_column(table.columns.get(DOMAIN), count)
  else:
    of = rng.permutation(len(labels)) % count
    if public is not None:
      of[public] = 0
  of = of.astype(np.int32)
  columns = {k: x for k, x in table.columns.items() if k != DOMAIN}
  if scenario.kind == 'domain':
    columns['inputs'] = _in_domain(columns['inputs'], of, count)
  if scenario.kind == 'label':
    columns['labels'] = _swapped(labels, of, size, scenario.seed)
  table = table._replace(columns=columns | {'task': of})
  return Tasks(scenario, of, classes), table


def _of_column(domains: np.ndarray | None, count: int) -> np.ndarray:
  """The task of each row [M], of the number of its domain [M]."""
  if domains is None:
    raise ValueError(
      '`Scenario.kind`=column needs a column of domains, and this source has '
      'none; allowed: class, domain, label.'
    )
  values = int(domains.max(initial=-1)) + 1
  if count > values:
    raise ValueError(
      f'`Scenario.count`={count} tasks of domains of their own is too many; '
      f'allowed: at most {values}, the values of the column.'
    )
  group = np.zeros(values, int)
  for task, some in enumerate(np.array_split(np.arange(values), count)):
    group[some] = task
  return group[domains]


def _in_domain(images, of: np.ndarray, count: int) -> np.ndarray:
  """Images [M, H, W, C] as domain d shows them: inverted if d is odd, and
  turned by d // 2 quarters."""
  whole = isinstance(images, np.ndarray) and images.ndim == 4
  if not whole or images.shape[1] != images.shape[2]:
    raise ValueError(
      '`Scenario.kind`=domain turns square images that are in memory, and '
      'these inputs are none; allowed: class, label.'
    )
  if count > MOST_DOMAINS:
    raise ValueError(
      f'`Scenario.count`={count} domains is not allowed; allowed: at most '
      f'{MOST_DOMAINS}.'
    )
  out = images.copy()
  for domain in range(1, count):
    rows = of == domain
    some = np.rot90(images[rows], domain // 2, axes=(1, 2))
    out[rows] = 255 - some if domain % 2 else some
  return out


def _swapped(labels, of: np.ndarray, size: int, seed: int) -> np.ndarray:
  """Labels [M], of which two change places in each task but the first."""
  out = labels.copy()
  for task in range(1, int(of.max(initial=0)) + 1):
    rng = draws.generator(seed, Stream.TASKS, 1, task)
    a, b = rng.choice(size, 2, replace=False)
    rows = of == task
    out[rows & (labels == a)], out[rows & (labels == b)] = b, a
  return out


def orders(scenario: Scenario, clients: int) -> np.ndarray:
  """Which task each client meets in each of S steps, int32 [N, S]."""
  s, steps = scenario, np.arange(scenario.steps)
  found = np.broadcast_to(steps % s.count, (clients, len(steps)))
  if s.order == 'per_client':
    own = [
      draws.generator(s.seed, Stream.TASKS, 2, k).permutation(s.count)
      for k in range(clients)
    ]
    found = np.stack(own)[:, steps % s.count]
  if s.order == 'staggered':
    late = np.maximum(steps - 1, 0) % s.count
    found = np.where((np.arange(clients) % 2 > 0)[:, None], late, found)
  return found.astype(np.int32)


def met(scenario: Scenario, clients: int) -> np.ndarray:
  """Which tasks some client has met up to each step, bool [S, T]."""
  found = np.zeros((scenario.steps, scenario.count), bool)
  for step, here in enumerate(orders(scenario, clients).T):
    found[step:, here] = True
  return found


def learned(scenario: Scenario, clients: int) -> np.ndarray:
  """Which tasks some client meets in each step, bool [S, T]."""
  found = np.zeros((scenario.steps, scenario.count), bool)
  for step, here in enumerate(orders(scenario, clients).T):
    found[step, here] = True
  return found


def seen(tasks: Tasks, data: Federation, step: int) -> Federation:
  """The rows that clients have in a step: those of its task, as they arrive,
  and those that they keep of earlier ones. They are validated on the tasks of
  which they have rows.

  T=1, without arrivals: the federation as it is.
  """
  s = tasks.scenario
  order = orders(s, data.train.num_clients)
  train = _rows(tasks, data.train, data.table.columns, order, step)
  now = _now(data.validation, order, tasks.of, step)
  if s.memory == ALL:
    now |= _before(data.validation, order, tasks.of, step)
  return data._replace(train=train, validation=kept(data.validation, now))


def _rows(
  tasks: Tasks, train: Partition, columns, order: np.ndarray, step: int
) -> Partition:
  """The training rows of a step, with the rounds in which they are there."""
  s, of = tasks.scenario, tasks.of
  now, old = (f(train, order, of, step) for f in (_now, _before))
  old &= ~now
  chance = _uniform(s.seed, Stream.ARRIVAL, train, step)
  since = np.zeros(len(now), np.int32)
  until = np.full(len(now), np.iinfo(np.int32).max, np.int32)
  if s.arrival:
    since[now] = (chance[now] * s.arrival).astype(np.int32)
  if s.window:
    until[now] = since[now] + s.window
  held = old & _memory(tasks, train, columns, old)
  if s.blend and step:
    since[now] = np.maximum(since, 1 + (chance * s.blend).astype(np.int32))[now]
    leaving = _now(train, order, of, step - 1) & ~now & ~held
    until[leaving] = 1 + (chance[leaving] * s.blend).astype(np.int32)
    held |= leaving
  found = kept(train, now | held)
  if not (s.arrival or s.window or s.blend):
    return found
  some = now | held
  return found._replace(since=since[some], until=until[some])


def owners(partition: Partition) -> np.ndarray:
  """Whose each of the rows of a partition is, int [n]."""
  return np.repeat(np.arange(partition.num_clients), partition.sizes())


def _now(partition: Partition, order, of, step: int) -> np.ndarray:
  """Whether a row is of the task that its client meets in a step."""
  return of[partition.rows] == order[owners(partition), step]


def _before(partition: Partition, order, of, step: int) -> np.ndarray:
  """Whether a row is of a task that its client has met before a step."""
  mine = order[owners(partition), :step]
  return (of[partition.rows][:, None] == mine).any(axis=1)


def _uniform(seed: int, stream: Stream, partition: Partition, step: int):
  """A number in [0, 1) for each row of a partition, of the row alone."""
  states = draws.state(seed, stream.number, step, partition.rows)
  numbers = draws.keys(states, np.zeros(len(states), np.uint64))
  found = (numbers >> np.uint64(11)) * 2.0**-53
  return found[: len(partition.rows)]


def groups(tasks: Tasks, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """What rows [n] of earlier tasks are kept of: of each class, or of each task
  where tasks share their classes; int [n]."""
  return (labels if tasks.scenario.kind == 'class' else tasks.of)[rows]


def _memory(tasks: Tasks, train: Partition, columns, old) -> np.ndarray:
  """Which of the old rows a client keeps: of each of its old classes, or of
  each old task where tasks share their classes, as many as fit.

  Each group keeps the first rows of an order that never changes, so that what
  is kept of a group later has always been kept.
  """
  memory = tasks.scenario.memory
  if memory in (0, ALL):
    return np.full(len(old), memory == ALL)
  group = groups(tasks, train.rows, columns['labels'])
  owner = owners(train)
  places = np.flatnonzero(old)
  if tasks.scenario.choice == 'herding':
    rank = columns[RANK][train.rows][places]
  else:
    rank = _uniform(tasks.scenario.seed, Stream.MEMORY, train, 0)[places]
  places = places[np.lexsort((rank, group[places], owner[places]))]
  pairs = np.stack([owner[places], group[places]])
  new = np.ones(len(places), bool)
  new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
  starts = np.flatnonzero(new)
  number = np.cumsum(new) - 1
  within = np.arange(len(places)) - starts[number] if len(places) else number
  of_each = np.bincount(pairs[0][starts], minlength=train.num_clients)
  share = memory // np.maximum(of_each, 1)
  out = np.zeros(len(old), bool)
  out[places] = within < share[pairs[0]]
  return out


def kept(partition: Partition, here: np.ndarray) -> Partition:
  """The rows of a partition for which `here` holds."""
  before = np.concatenate([[0], np.cumsum(here)])
  return Partition(
    before[partition.offsets].astype(partition.offsets.dtype),
    partition.rows[here],
  )
