"""A sequence of tasks from flags: its data, its stages, what a run finds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from fedms_jax.algorithms import analytic, continual, fisher, stacked_lora
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.types import Federation
from fedms_jax.data import tasks as scenarios
from fedms_jax.schedules import orders, schedule, triggers
from fedms_jax.shell import build
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.tasks import KEEPING, TAUGHT, TasksConfig
from fedms_jax.shell.config.time import UNIFORM
from fedms_jax.simulation.state import Stage

SERIES, MEASURED = 'tasks', 'fisher-'
STACKED = 'orthogonal_lora'
# Methods whose steps are no gradient of a loss plus what an optimizer adds.
UNANCHORED = {
  'scaffold': 'its steps follow control variates',
  'koala': 'its server trains on public rows, too',
}
_COMPUTED = ('ncm', 'ridge')  # heads that no step trains


def scenario(config: Config) -> scenarios.Scenario:
  """What --tasks says of the data."""
  t = config.tasks
  memory = t.memory if t.method in KEEPING else 0
  return scenarios.Scenario(
    kind=t.name,
    count=t.count,
    order=t.order,
    known=t.identity == 'known',
    arrival=t.arrival,
    window=t.window,
    blend=t.blend,
    repeats=t.repeats,
    memory=scenarios.ALL if t.method == 'joint' else memory,
    seed=config.seed,
  )


def check(config: Config) -> None:
  """Raises `ValueError` for what does not go with a sequence of tasks."""
  t, name = config.tasks, config.algorithm.name
  if not t.on:
    return
  wrong = {
    f'--stages={config.stages}': config.stages and 'its phases have no tasks',
    f'--privacy.mode={config.privacy.mode}': config.privacy.on
    and 'who meets a row in several tasks is not accounted',
    f'--eval.adapt={config.eval.adapt}': config.eval.adapt
    and 'clients would adapt to rows of all tasks at once',
    f'--model.head={config.model.head}': config.model.head != 'classification'
    and 'a task is some of its classes',
    f'--partition.load={config.partition.load}': config.partition.load
    and t.name != 'class'
    and 'rows are given to tasks after they are dealt',
  }
  c, alone = config, 'it is not followed over several tasks'
  wrong |= {
    f'--attack.data={c.attack.data}': c.attack.data != 'none' and alone,
    f'--attack.update={c.attack.update}': c.attack.update != 'none' and alone,
    f'--time.policy={c.time.policy}': c.time.on and alone,
    f'--select.name={c.select.name}': c.select.name != UNIFORM and alone,
    f'--secagg.mode={c.secagg.mode}': c.secagg.on and alone,
    f'--compression.up={c.compression.up}': c.compression.on and alone,
  }
  for flag, why in wrong.items():
    if why:
      raise ValueError(
        f'{flag} does not go with --tasks.count={t.count}: {why}. Leave it out.'
      )
  if t.method in ('ewc', STACKED) and name in UNANCHORED:
    raise ValueError(
      f'--tasks.method={t.method} does not go with --algorithm.name={name}: '
      f'{UNANCHORED[name]}; allowed: finetune, joint, replay, lwf, glfc.'
    )
  if name in _COMPUTED:
    _check_once(config)


def _check_once(config: Config) -> None:
  """Raises `ValueError` where a head that is a sum over rows would miss some
  of them, or count some twice."""
  t, plain = config.tasks, TasksConfig()
  for name in ('method', 'order', 'arrival', 'window', 'blend', 'repeats'):
    value = getattr(t, name)
    if (name, value) == ('order', 'per_client'):
      continue
    if value != getattr(plain, name):
      raise ValueError(
        f'--tasks.{name}={value} does not go with --algorithm.name='
        f'{config.algorithm.name}, whose head is a sum over all rows, each '
        f'once; allowed: {getattr(plain, name)}.'
      )


def dealt(config: Config, data: Federation) -> Federation:
  """The federation with its rows' tasks; the same without a sequence."""
  if not config.tasks.on:
    return data
  _, table = scenarios.made(scenario(config), data.table, data.public)
  return data._replace(table=table)


def sequence(config: Config, data: Federation) -> scenarios.Tasks:
  """The tasks of rows that `dealt` has given such."""
  bare = data.table._replace(columns={'labels': data.table.columns['labels']})
  found = scenario(config)
  size = len(data.table.label_names)
  if found.kind != 'class':
    of = data.table.columns[continual.TASK]
    return scenarios.Tasks(found, of, np.ones((found.count, size), bool))
  return scenarios.made(found, bare)[0]


def setting(config: Config, plain: Setting) -> Setting:
  """What a method learns by in a sequence of tasks; the same without one."""
  t = config.tasks
  if not t.on:
    return plain
  teacher = t.method if t.method in TAUGHT else ''
  lesson = continual.Lesson(teacher, t.weight, t.temperature)
  optimizer = plain.optimizer
  if t.method == 'ewc':
    optimizer = optax.chain(continual.anchoring(t.weight), optimizer)
  if t.method == STACKED:
    optimizer = optax.chain(stacked_lora.orthogonal(t.weight), optimizer)
  return plain._replace(
    task=continual.learning(plain.task, lesson), optimizer=optimizer
  )


def identity(config: Config) -> tuple[Any, ...]:
  """What of --tasks algorithms are made of."""
  t = config.tasks
  return (t.on, t.method, t.weight, t.temperature, t.head)


def frozen(config: Config, data: Federation) -> dict[str, Any]:
  """What frozen has before the first task; {} without a sequence.

  Where the task of a row is not known, all classes that somebody has met
  compete for it. LwF learns new classes among themselves (Li and Hoiem, arXiv
  1606.09282); others learn them among all.
  """
  t = config.tasks
  if not t.on:
    return {}
  tasks, n = sequence(config, data), data.train.num_clients
  met, now = (f(tasks.scenario, n) for f in (scenarios.met, scenarios.learned))
  before = np.concatenate([np.zeros_like(met[:1]), met[:-1]])

  def classes(of):  # [S, T] -> [S, T, C], the same for all rows
    some = (of.astype(int) @ tasks.classes.astype(int)) > 0
    return np.repeat(some[:, None], t.count, axis=1)

  own = np.broadcast_to(tasks.classes[None], classes(met).shape)
  visible, old = classes(met), classes(before)
  learned = classes(now) if t.method == 'lwf' else visible
  if t.method == 'glfc':
    learned = classes(now)
  if t.identity == 'known':
    visible = learned = own
  return continual.start(visible, learned, old)


def stages(
  config: Config, made: Sequence[Stage], data: Federation
) -> list[Stage]:
  """The stages of a method, for each task of a sequence in turn.

  Raises:
    ValueError: the method does not remember in this way.
  """
  t = config.tasks
  if not t.on:
    return list(made)
  _check_stages(config, made)
  tasks, out = sequence(config, data), []
  for step in range(tasks.scenario.steps):
    for index, stage in enumerate(made):
      how = continual.How(
        taught=t.method in TAUGHT,
        anchored=t.method == 'ewc',
        fresh=t.head == 'fresh',
        index=index,
        of=len(made),
      )
      some = stage._replace(
        name=f'{stage.name}-{step + 1}',
        algorithm=continual.through(stage.algorithm, how),
        probe=stage.probe and continual.through(stage.probe, how),
        view=functools.partial(_view, tasks, step, stage.view),
        series=f'{SERIES}-{stage.name}' if len(made) > 1 else SERIES,
      )
      if t.method == STACKED:
        made_of = build.lora_spec(config.lora)
        stack = functools.partial(stacked_lora.stacked, spec=made_of)
        some = some._replace(
          algorithm=stack(some.algorithm),
          probe=some.probe and stack(some.probe),
          rebased=step > 0,
        )
      out.append(some)
    last = step + 1 == tasks.scenario.steps
    if t.method == 'ewc' and t.weight and not last:
      out.append(_measuring(config, out[-1], tasks, step))
  return out


def _view(tasks, step: int, inner, data: Federation) -> Federation:
  """The rows of a step, of those that a stage looks at."""
  found = scenarios.seen(tasks, data, step)
  return found if inner is None else inner(found)


def _measuring(
  config: Config, stage: Stage, tasks: scenarios.Tasks, step: int
) -> Stage:
  """The stage of one round that measures what a task depends on, by all of its
  rows, whenever they arrived."""
  whole = dataclasses.replace(tasks.scenario, arrival=0, window=0, blend=0)
  rows = tasks._replace(scenario=whole)
  blocks = stage.algorithm.backbone.blocks
  where = orders.order('top_down', blocks, 0)

  def dense(handover):
    return schedule(triggers.dense(blocks), where)

  assert stage.probe is not None
  return Stage(
    f'{MEASURED}{step + 1}',
    fisher.measured(stage.algorithm, stage.probe, config.tasks.decay),
    1,
    dense,
    view=functools.partial(_view, rows, step, None),
    series=stage.series,
    local=_everybody(config) | {'slots': 0},
  )


def _everybody(config: Config) -> dict[str, Any]:
  """Options of a round in which all clients see each row once."""
  return {
    'cohort': config.partition.num_clients,
    'sampling': 'fixed',
    'cap': 0,
    'groups': 1,
    'epochs': 1,
    'steps': 0,
  }


def computed(stage: Stage, config: Config) -> Stage:
  """A stage that takes the sums of all rows once."""
  return stage._replace(local=_everybody(config) | {'slots': 0})


def _check_stages(config: Config, made: Sequence[Stage]) -> None:
  t, name = config.tasks, config.algorithm.name
  why = ''
  taught = t.method in (*TAUGHT, 'ewc', STACKED)
  if taught and len(made) > 1:
    why = 'has stages of several models'
  elif taught and made[0].algorithm.variant is not None:
    why = 'has clients of several kinds'
  elif taught and made[0].algorithm.passes.queries:
    why = 'takes no gradients'
  elif t.method == 'ewc' and made[0].probe is None:
    why = 'has no plain gradient'
  if why:
    raise ValueError(
      f'--tasks.method={t.method} does not go with --algorithm.name={name}, '
      f'which {why}; allowed: finetune, joint, replay.'
    )
  if any(s.open for s in made) or any(s.algorithm.public for s in made):
    raise ValueError(
      f'--algorithm.name={name} has stages whose length is not known, or whose '
      f'server trains on public rows, and --tasks.count={t.count} has not; '
      'change one of them.'
    )


def head(config: Config) -> analytic.Head:
  """The head that --algorithm.name computes."""
  if config.algorithm.name == 'ncm':
    return analytic.nearest(config.methods.ncm.temperature)
  own = config.methods.ridge
  return analytic.ridge(own.strength, own.width, config.seed)
