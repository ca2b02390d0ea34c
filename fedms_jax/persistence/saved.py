"""The state of a run as a checkpoint holds it: arrays, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedms_jax.core import reduction
from fedms_jax.core.types import Roles
from fedms_jax.simulation.state import Flying, Past, Stage, StageState
from fedms_jax.systems.ledger import Entry

# Of a state, those that JSON holds as they are; and all that JSON holds.
_NAMES = (
  'stage',
  'round',
  'clock',
  'progress',
  'arrivals',
  'ever',
  'inherited',
  'last',
  'importance',
  'watch',
  'done',
  'spent',
)


_FIELDS = (
  *_NAMES,
  'reports',
  'ledger',
  'clients',
  'derived',
  'ledgers',
  'stores',
  'clocks',
  'flying',
)


def arrays_of(state: StageState, stage: Stage) -> dict[str, Any]:
  """The arrays of a state in this stage."""
  # What the server shows is made of its memory, and the base does not change
  # in a stage: the run's own is read again, another one is kept.
  known = {reduction.SERVER} if stage.rebased else {reduction.SERVER, 'base'}
  there = state.roles.frozen.items()
  frozen = {k: v for k, v in there if k not in known}
  past = {name: p.memory for name, p in state.past.items() if name}
  return {
    'past': past,
    'frozen': frozen,
    'shared': state.roles.shared,
    'personal': state.roles.personal,
    'memory': state.memory,
    'channel': state.channel,
    'met': np.packbits(state.met),
    'flying': {
      str(version): {'shared': one.shared, 'seen': one.seen}
      for version, one in state.flying.items()
      if one.shared is not None
    },
  }


def plain(simulation, state: StageState) -> dict[str, Any]:
  """The part of the state that JSON holds."""
  return {name: getattr(state, name) for name in _NAMES} | {
    'reports': [[k, *v] for k, v in state.reports.items()],
    'ledger': state.ledger._asdict(),
    'clients': len(state.met),
    'derived': simulation.tables.counted(),
    'ledgers': {k: v._asdict() for k, v in simulation.ledgers.items()},
    'clocks': {name: past.clock for name, past in state.past.items()},
    'flying': [
      [v, one.clock, one.ever, list(one.plans.items()), one.shared is not None]
      for v, one in state.flying.items()
    ],
  }


def template(
  roles: Roles, stages: Sequence[Stage], plain: dict[str, Any]
) -> dict[str, Any]:
  """Shapes of what `_arrays` gave, found by running the stages' beginnings
  on shapes. roles: before the first stage, arrays or shapes.

  Raises:
    ValueError: the state lacks what this version needs.
  """
  check_fields(plain)
  past, memory, channel = {}, (), ()
  for number, stage in enumerate(stages[: plain['stage'] + 1]):
    algorithm = stage.algorithm
    roles = jax.eval_shape(algorithm.begin, jax.random.key(0), roles)
    if stage.series or number == plain['stage']:
      roles, memory, channel = reduction.begin_shapes(algorithm, roles)
    if number < plain['stage']:
      past[stage.series] = Past(0, memory if stage.series else ())
  state = StageState(
    stage=plain['stage'],
    round=0,
    clock=0,
    roles=roles,
    memory=memory,
    channel=channel,
    progress=None,
    arrivals=None,
    met=np.zeros(plain['clients'], bool),
    reports={},
    ever=(),
    inherited=None,
    last=None,
    importance=None,
    ledger=Entry(),
    watch=None,
    done=(),
    past=past,
    flying={
      v: Flying(0, (), {}, roles.shared, roles.frozen.get(reduction.SERVER))
      for v, *_, kept in plain['flying']
      if kept
    },
  )
  return arrays_of(state, stages[plain['stage']])


def check_fields(plain: dict[str, Any]) -> None:
  """Raises `ValueError` for a state of a version with other fields."""
  entries = [plain.get('ledger', {}), *plain.get('ledgers', {}).values()]
  odd = [name for name in _FIELDS if name not in plain]
  odd += [x for entry in entries for x in set(entry) ^ set(Entry._fields)]
  if odd:
    raise ValueError(
      f'the checkpoint is of another version: its state and this one differ in '
      f'{odd[0]!r}. End that run with the version that it was started with, or '
      'start it again in another folder.'
    )


def state(simulation, arrays: dict[str, Any], plain: dict[str, Any]):
  """The state that was saved; inverts `_arrays` and `_plain`."""
  arrays = jax.tree.map(jax.numpy.asarray, arrays)
  frozen = arrays['frozen']
  if not simulation.stages[plain['stage']].rebased:
    base = simulation.initial.frozen.get('base', {})
    frozen = {'base': base} | frozen
  simulation.ledgers.update(
    {name: Entry(**entry) for name, entry in plain['ledgers'].items()}
  )

  simulation.tables.count_as_done(plain['derived'])

  def active(bits):
    return None if bits is None else tuple(bits)

  roles = Roles(frozen, arrays['shared'], arrays['personal'])
  algorithm = simulation.stages[plain['stage']].algorithm
  count = plain['clients']
  return StageState(
    stage=plain['stage'],
    round=plain['round'],
    clock=plain['clock'],
    roles=reduction.broadcast(algorithm, roles, arrays['memory']),
    memory=arrays['memory'],
    channel=arrays['channel'],
    progress=plain['progress'],
    arrivals=plain['arrivals'],
    met=np.unpackbits(np.asarray(arrays['met']), count=count).astype(bool),
    reports={int(k): tuple(sums) for k, *sums in plain['reports']},
    ever=tuple(plain['ever']),
    inherited=active(plain['inherited']),
    last=active(plain['last']),
    importance=plain['importance'],
    ledger=Entry(**plain['ledger']),
    watch=plain['watch'],
    done=tuple(plain['done']),
    spent=plain['spent'],
    past={
      name: Past(clock, arrays['past'].get(name, ()))
      for name, clock in plain['clocks'].items()
    },
    flying=_flying(arrays['flying'], plain['flying']),
  )


def _flying(arrays: dict[str, Any], plain: list[Any]) -> dict[int, Flying]:
  """Who was in flight, of what `arrays_of` and `plain` gave."""
  return {
    v: Flying(
      clock,
      tuple(ever),
      {int(i): tuple(active) for i, active in plans},
      **arrays.get(str(v), {}),
    )
    for v, clock, ever, plans, _ in plain
  }
