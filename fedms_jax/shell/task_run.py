"""The driver of a run with a sequence of tasks, and what it tells."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import compile
from fedms_jax.core.types import Federation
from fedms_jax.data import herding, lazy
from fedms_jax.data import tasks as scenarios
from fedms_jax.models import pretrained
from fedms_jax.models.family import Model
from fedms_jax.persistence import files, run_store
from fedms_jax.shell import tasks
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.tasks import KEEPING
from fedms_jax.simulation import driver as simulations
from fedms_jax.simulation import evaluation, lifelong
from fedms_jax.simulation.state import Stage

FILE = 'tasks.json'
_AT_A_TIME = 256  # rows of which the base model makes features


def driver(config: Config, data: Federation, made: Sequence[Stage], keep):
  """What makes the simulation of a run. keep: where it is saved, as its
  tasks.json is."""
  if not config.tasks.on:
    return simulations.Simulation
  found = task_list(config, data, made)
  if isinstance(keep, run_store.Disk):
    path = keep.root / FILE

    def read() -> dict[str, Any]:
      return files.read_json(path) if path.exists() else {}

    def write(lines: dict[str, Any]) -> None:
      files.write_atomic(path, json.dumps(lines) + '\n')

    found = found._replace(read=read, write=write)
  scope = evaluation.Scope(config.eval.clients, readers=config.eval.readers)
  return functools.partial(lifelong.Lifelong, tasks=found, scope=scope)


def task_list(
  config: Config, data: Federation, made: Sequence[Stage]
) -> lifelong.TaskList:
  """What the driver of a sequence is told."""
  found, t = tasks.sequence(config, data), config.tasks
  met = scenarios.met(found.scenario, data.train.num_clients)
  names = [stage.name for stage in made]
  ends = [n for n in names if not n.startswith(tasks.MEASURED)]
  per = len(ends) // found.scenario.steps
  return lifelong.TaskList(
    of=found.of,
    count=t.count,
    first=met.argmax(axis=0).tolist(),
    after=[names.index(n) for n in ends[per - 1 :: per]],
    stream=bool(t.arrival or t.blend or t.window),
  )


def herded(
  config: Config, data: Federation, model: Model, frozen: Mapping[str, Any]
) -> Federation:
  """The federation in which a client knows which of its rows to keep, by what
  the base model makes of them; the same where it keeps none, or any."""
  t = config.tasks
  if not t.on or t.choice != 'herding':
    return data
  found, backbone = tasks.sequence(config, data), model.backbone

  @compile.jit(light=True)
  def features(base, inputs):  # [n, ...] -> [n, D], of tokens the mean
    x = pretrained.encode(backbone, base, inputs).astype(jnp.float32)
    if x.ndim == 2:
      return x
    held = backbone.mask(inputs)
    held = jnp.ones(x.shape[:2]) if held is None else held
    return jnp.sum(x * held[..., None].astype(x.dtype), axis=1)

  column, rows = {'inputs': data.table.columns['inputs']}, data.train.rows
  read = [
    features(frozen['base'], lazy.take(column, part)['inputs'])
    for part in np.array_split(rows, -(-len(rows) // _AT_A_TIME))
  ]
  return herding.ranked(
    found, data, np.concatenate(jax.device_get(read)), t.memory
  )


def summary(config: Config, data: Federation, simulation) -> dict[str, Any]:
  """What summary.json says of a sequence of tasks; {} without one."""
  if not isinstance(simulation, lifelong.Lifelong):
    return {}
  kept = {'kept_bytes': kept_bytes(config, data)}
  return {'tasks': simulation.told() | kept}


def kept_bytes(config: Config, data: Federation) -> int:
  """Bytes of the rows of earlier tasks that a client keeps at most."""
  t, width = config.tasks, 0
  for name in ('inputs', 'labels'):
    column = data.table.columns[name]
    width += int(np.prod(column.shape[1:])) * column.dtype.itemsize
  if t.method == 'joint':
    return int(data.train.sizes().max(initial=0)) * width
  return (t.memory if t.method in KEEPING else 0) * width
