"""A run from its config: in a workdir or without, whole or resumed."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import sys
from typing import Any

import numpy as np

from fedms_jax.cluster import distributed, host, signals
from fedms_jax.cluster.placement import Placement
from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.core.types import Federation
from fedms_jax.data import partition
from fedms_jax.models import attention
from fedms_jax.persistence import client_table, files, run_store, writers
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import attacked, printed
from fedms_jax.shell import (
  attack_report,
  flags,
  language,
  outline,
  privacy_report,
  program_cache,
  simulated,
  task_run,
  time_report,
  written,
)
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.shell.finished import Finished
from fedms_jax.simulation import (
  adaptation,
  clock,
  evaluation,
  mixed,
  observer,
  shares,
  stopping,
)
from fedms_jax.simulation.state import Preempted

# Stopped by a signal, with nothing to go on from (as a shell reports SIGTERM).
EXIT_STOPPED = 143


def run(config: Config, source=worlds) -> int:
  """Runs the config and prints its table; gives the exit code.

  source: where data, model and what the server pre-trained come from: the
  module `shell.world`, or something with its functions, by which several runs
  of one process share what is equal.
  """
  d = config.distributed
  member = host.membership(d.coordinator, d.processes, d.process_id, os.environ)
  program_cache.begin()
  timer = clock.Clock()
  try:
    return _entered(config, source, member, timer)
  except signals.Stopped as stopped:
    if member.processes > 1:  # an orderly end would wait for the others
      _leave(config, str(stopped))
    return _told(config, str(stopped))


def _entered(config: Config, source, member, timer) -> int:
  """Runs the config as one of its processes, in its workdir."""
  d = config.distributed
  with contextlib.ExitStack() as stack:
    request = stack.enter_context(signals.StopRequest())
    stack.enter_context(request.at_once(functools.partial(_leave, config)))
    peers = stack.enter_context(distributed.joined(member, d.timeout))
    workdir = None
    if config.workdir:
      workdir = stack.enter_context(_opened(config, peers))
      stack.push(functools.partial(_refused, workdir))
    try:
      return _run(config, workdir, request, timer, stack, source, peers)
    except Preempted as stopped:
      how = request.requested() or 'a signal to another process'
      return _stopped(f'{how} after {stopped}', workdir)


def _opened(config: Config, peers: SingleProcess) -> Workdir:
  """The workdir, which the first of several processes locks and checks."""
  text = flags.to_text(config)
  workdir, refusal = None, None
  if peers.primary:
    try:
      kept = flags.as_kept(text, pathlib.Path(config.workdir, 'flags.txt'))
      workdir = Workdir.open(
        config.workdir, kept, config.resume, config.break_lock
      )
    except ValueError as e:
      refusal = e
  found = -1 if workdir is None else int(workdir.existed)
  existed = int(peers.first(np.int32(found)))
  if refusal is not None:
    raise refusal
  if existed < 0:
    raise ValueError(
      f'--workdir={config.workdir} was refused to process 0, whose message '
      'says why.'
    )
  return workdir or Workdir(pathlib.Path(config.workdir), bool(existed), None)


def _closing(close):
  """What closes at the end; its error does not hide the one before."""

  def leave(kind, error, trace) -> None:
    try:
      close()
    except Exception as later:
      if error is None:
        raise
      error.add_note(f'and then: {later}')

  return leave


def _refused(workdir: Workdir, kind, error, trace) -> None:
  """Leaves the folder free for corrected flags."""
  del kind, trace
  if isinstance(error, ValueError) and files.limit(error) is None:
    workdir.abandon()


def _told(config: Config, name: str) -> int:
  """Tells that a signal ended a run that had nothing new to save."""
  if not config.workdir:
    return _stopped(name, None)
  print(
    f'fedms: stopped by {name}; what was saved before is there. Go on with '
    '--resume.',
    file=sys.stderr,
  )
  return signals.EXIT_SAVED


def _leave(config: Config, name: str) -> None:
  signals.leave(_told(config, name))


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


def _printed(finished: Finished) -> None:
  print(printed.text(finished.summary))
  print(attacked.text(finished.summary), end='')


def _run(
  config: Config, workdir, request, timer, stack, source, peers, then=_printed
) -> int:
  e = config.engine
  place = Placement(e.devices, e.model_axis, peers)
  if e.model_axis > 1:
    attention.leave_to_compiler()
  world = _dealt(config, source, peers)
  records, shown = observer.Recorder(), written.shown(config)
  loggers = []
  watch = observer.Observers(records, observer.Signals(request))
  stack.push(_closing(watch.close))
  if peers.primary:
    for one in written.watching(config, shown):
      watch.add(one)
  keep = _store(config, workdir, peers)
  if workdir is not None and peers.primary:
    outline.write(workdir, world, bool(config.algorithm.label_prior))
    loggers = written.loggers_of(config, workdir, stack)
  stack.push(_closing(keep.close))
  simulation = simulated.simulation(config, world, keep, watch, source, place)
  state = keep.restore(simulation)
  if workdir is not None and peers.primary:
    files_of = written.attach(workdir, loggers, simulation, state, records)
    watch.add(files_of)
    watch.add(observer.Activity(workdir.say))
    keep.before_saving(files_of.sync)
  with request.between_rounds():
    try:
      state = simulation.run(state)
    except Preempted:
      keep.wait()  # or nothing is saved
      raise
    keep.wait()
  shown.close()
  scores = evaluated(config, world, simulation, state)
  language.add_bits(config, world, simulation.federation.pooled, scores)
  if not peers.primary:
    return 0
  result = printed.summary(simulation, state, scores, records.records, timer)
  result |= _aims(config, world, state, records.records, result)
  result |= task_run.summary(config, world.data, simulation)
  columns = evaluation.table(simulation, scores)
  if workdir is not None:
    _write(config, workdir, result, columns)
    files_of.finish(result)
  then(Finished(config, world, simulation, state, result, columns, records))
  return 0


def _store(config: Config, workdir, peers) -> run_store.Memory:
  """Where a run is kept: in its workdir, or nowhere."""
  if workdir is None:
    return run_store.Memory(peers)
  return run_store.Disk(
    workdir,
    config.checkpoint.keep,
    peers,
    every=config.checkpoint.every,
    seconds=config.checkpoint.seconds,
  )


def _write(config: Config, workdir, result, columns) -> None:
  client_table.write(workdir.root, columns, config.eval.table)
  writers.write_summary(workdir.summary, result)


def _dealt(config: Config, source, peers) -> worlds.World:
  """The world of a run, checked and told of."""
  written.check(config)
  world = source.world(config)
  check_shares(config, world)
  if peers.primary:
    describe(world.data)
  return world


def _aims(config: Config, world: worlds.World, state, records, result):
  """What a summary says of a target, of privacy and of time. result: what it
  says of costs and scores."""
  found = stopping.to_target(world.watched.stop, records)
  private = privacy_report.summary(
    config, world.stages, state.spent, records, world.data.train.sizes()
  )
  timed = time_report.summary(
    config,
    world.data.train.num_clients,
    state.arrivals,
    records,
    result | {'served': world.stages[-1].algorithm.served},
  )
  more = {'privacy': private, 'time': timed}
  return found | {name: x for name, x in more.items() if x is not None}


def evaluated(
  config: Config, world: worlds.World, simulation, state
) -> dict[str, Any]:
  """The scores of the models of a state; with --eval.adapt also those after
  adaptation, as 'adapted'."""
  e, scope = config.eval, simulated.scope(config, world, state.stage)
  measure = evaluation.evaluate
  if config.algorithm.label_prior:
    prior = shares.Shares(config.algorithm.prior)
    measure = functools.partial(shares.evaluate, how=prior)
  scores = measure(simulation, state, scope)
  if e.adapt:
    p = config.partition
    how = adaptation.Adaptation(e.adapt, p.validation, p.test)
    scores['adapted'] = adaptation.evaluate(
      simulation, state, scope, how, measure
    )
  attack = attack_report.summary(
    config, world, simulation, state, scope, scores
  )
  return scores if attack is None else scores | {'attack': attack}


def check_shares(config: Config, world: worlds.World) -> None:
  """Raises `ValueError` for class shares where there are no classes, and mixed
  rows where none stands for itself."""
  task = world.stages[-1].algorithm.task
  if config.eval.mixed:
    mixed.check(task)
  if config.algorithm.label_prior and task.kind != 'classes':
    raise ValueError(
      f'--algorithm.label_prior={config.algorithm.label_prior} is of classes, '
      f'which --model.head={config.model.head} has not. Leave it out.'
    )


def describe(data: Federation) -> None:
  """Prints the statistics of the partition."""
  labels = data.table.columns['labels']
  found = partition.describe(data.train, labels, len(data.table.label_names))
  print(
    f'{len(labels)} rows, {len(data.public)} public; training rows of '
    f'clients: {partition.sentence(found)}'
  )
