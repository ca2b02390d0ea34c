"""A sequence of tasks from flags: its data, its stages, what a run finds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from fedms_jax.algorithms import (
  analytic,
  continual,
  fisher,
  stacked_lora,
  subspaces,
)
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Federation
from fedms_jax.data import tasks as scenarios
from fedms_jax.schedules import orders, schedule, triggers
from fedms_jax.shell import build, task_rules
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.tasks import (
  APART,
  KEEPING,
  SHIELDED,
  STACKED,
  TAUGHT,
)
from fedms_jax.simulation.state import Stage

SERIES, MEASURED = 'tasks', 'measured-'


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
    choice=t.choice,
    seed=config.seed,
  )


def dealt(config: Config, data: Federation) -> Federation:
  """The federation with its rows' tasks; the same without a sequence. The
  server has rows of the first domain alone."""
  if not config.tasks.on:
    return data
  made, table = scenarios.made(scenario(config), data.table, data.public)
  public = data.public
  if config.tasks.name == 'column':
    public = public[made.of[public] == 0]  # the others are nobody's
  return data._replace(table=table, public=public)


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
  return (t.count, t.method, t.weight, t.temperature, t.head, t.share)


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
  task_rules.check_stages(config, made)
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
      if t.method in APART:
        some = _apart(config, some)._replace(rebased=step > 0)
      out.append(some)
    last = step + 1 == tasks.scenario.steps
    if (t.method == 'ewc' and t.weight or t.method == SHIELDED) and not last:
      out.append(_measuring(config, out[-1], tasks, step))
  return out


def _apart(config: Config, stage: Stage) -> Stage:
  """The stage with a LoRA for each task."""
  spec = build.lora_spec(config.lora)

  def apart(algorithm: Algorithm) -> Algorithm:
    found = stacked_lora.stacked(algorithm, spec)
    shielded = config.tasks.method == SHIELDED
    return subspaces.shielded(found) if shielded else found

  probe = stage.probe and apart(stage.probe)
  return stage._replace(algorithm=apart(stage.algorithm), probe=probe)


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

  if config.tasks.method == SHIELDED:
    spec, share = build.lora_spec(config.lora), config.tasks.share
    found = subspaces.measured(stage.algorithm, spec, share)
  else:
    assert stage.probe is not None
    found = fisher.measured(stage.algorithm, stage.probe, config.tasks.decay)
  return Stage(
    f'{MEASURED}{step + 1}',
    found,
    1,
    dense,
    view=functools.partial(_view, rows, step, None),
    series=stage.series,
    local=_everybody(config) | {'slots': 0},
    rebased=stage.rebased,
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


def head(config: Config) -> analytic.Head:
  """The head that --algorithm.name computes."""
  if config.algorithm.name == 'ncm':
    return analytic.nearest(config.methods.ncm.temperature)
  own = config.methods.ridge
  return analytic.ridge(own.strength, own.width, config.seed)
