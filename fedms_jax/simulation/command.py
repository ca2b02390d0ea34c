"""A run from its config: in a workdir or without, whole or resumed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import sys

import jax

from fedms_jax import build, flags, foundation, origin
from fedms_jax.base import Federation, Roles
from fedms_jax.config import Config
from fedms_jax.data import partition
from fedms_jax.simulation import (
  clock,
  cluster,
  driver,
  evaluation,
  keeper,
  observer,
  report,
  signals,
  writers,
)
from fedms_jax.simulation.state import Preempted
from fedms_jax.simulation.workdir import Workdir, write_atomic

# Stopped by a signal, with nothing to go on from (as a shell reports SIGTERM).
EXIT_STOPPED = 143


def compilation_cache() -> None:
  """Keeps compiled programs in the user's cache folder, unless told where."""
  if jax.config.jax_compilation_cache_dir is None:
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(root) / 'fedms_jax' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def run(config: Config) -> int:
  """Runs the config and prints its table; gives the exit code."""
  _alone(config)
  compilation_cache()
  timer = clock.Clock()
  with contextlib.ExitStack() as stack:
    request = stack.enter_context(signals.StopRequest())
    workdir = None
    if config.workdir:
      workdir = stack.enter_context(
        Workdir.open(
          config.workdir,
          flags.to_text(config),
          config.resume,
          config.break_lock,
        )
      )
    try:
      return _run(config, workdir, request, timer, stack)
    except Preempted as stopped:
      return _stopped(f'{request.requested()} after {stopped}', workdir)


def _stopped(how: str, workdir) -> int:
  """Tells that a signal ended the run; gives the exit code."""
  if workdir is None:
    print(
      f'fedms: stopped by {how}; nothing is kept without --workdir.',
      file=sys.stderr,
    )
    return EXIT_STOPPED
  print(
    f'fedms: stopped by {how}; saved. Go on with --resume.', file=sys.stderr
  )
  return signals.EXIT_SAVED


def _alone(config: Config) -> None:
  """Refuses several processes, which the engine does not serve yet."""
  d = config.distributed
  member = cluster.membership(
    d.coordinator, d.processes, d.process_id, os.environ
  )
  if member.processes > 1:
    raise ValueError(
      f'this is process {member.process_id} of {member.processes}, but a run '
      'is one process so far. Start one process, or give '
      '--distributed.processes=1.'
    )


def _run(config: Config, workdir, request, timer, stack) -> int:
  world = origin.world(config)
  describe(world.data)
  records = observer.Recorder()
  watch = observer.Observers(records, observer.Signals(request))
  stack.callback(watch.close)
  if config.progress:
    watch.add(observer.Progress())
  keep = keeper.Memory()
  if workdir is not None:
    keep = keeper.Disk(workdir, config.checkpoint.keep)
    facts = foundation.facts(world.data)
    write_atomic(workdir.facts, json.dumps(facts._asdict()))
  stack.callback(keep.close)
  simulation = simulated(config, world, keep, watch)
  state = keep.restore(simulation)
  if workdir is not None:
    _attach(workdir, config.tensorboard, simulation, state, watch, records)
  state = simulation.run(state)
  watch.close()
  scope = evaluation.Scope(config.eval.clients, config.eval.pooled_rows)
  scores = evaluation.evaluate(simulation, state, scope)
  result = report.summary(simulation, state, scores, records.records, timer)
  if workdir is not None:
    writers.write_summary(workdir.summary, result)
  print(report.text(result))
  return 0


def simulated(config: Config, world: origin.World, keep, watch):
  """The simulation of a world. What its server trains ahead is kept, so that
  a resumed run need not; a base model that was only loaded is read again."""
  before = functools.cache(lambda: origin.initial(config, world))
  made = keep.pretrained(
    origin.pretrained_shapes(config, world),
    lambda: origin.pretrained(config, world, before(), watch),
  )
  loaded = {} if 'base' in made else before().frozen
  return driver.Simulation(
    world.model.backbone,
    world.data,
    Roles(loaded | made, {}, {}),
    world.stages,
    build.options(config),
    keeper=keep,
    observer=watch,
  )


def _attach(workdir, board: bool, simulation, state, watch, records) -> None:
  """Adds the workdir's files to the observers; a resumed run goes on where
  its checkpoint was, and has the records of the rounds before."""
  at = None if state is None else (state.stage, state.round - 1)
  metrics = writers.MetricsFile(workdir.metrics, at)
  names = [stage.name for stage in simulation.stages]
  events = writers.TensorBoard(workdir.tensorboard, at) if board else None
  watch.add(observer.Writers(metrics, events, names))
  records.records += [
    {**line, 'stage': names[line['stage']]}
    for line in writers.read_metrics(workdir.metrics)
  ]


def describe(data: Federation) -> None:
  """Prints the statistics of the partition."""
  labels = data.table.columns['labels']
  found = partition.describe(data.train, labels, len(data.table.label_names))
  print(
    f'{len(labels)} rows, {len(data.public)} public; training rows of '
    f'clients: {partition.sentence(found)}'
  )
