"""`fedms profile`: where a round's time goes, and a trace of it.

A few rounds of every stage run as the flags say, after others that compile
and fill what is filled once. Each part of a round is waited for, so that its
time is its own; what a run overlaps, such as the host's work on the next
round, is therefore not overlapped here, and a round takes longer than in a run.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

from fedms_jax.persistence import run_store
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import printed
from fedms_jax.shell import flags, program_cache, simulated
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import observer, timeline


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints a table per stage; the traces lie in --out."""
  config, values = flags.parse_command(words, extra)
  out = _folder(config.workdir, values['out'])
  for name, least in (('rounds', 1), ('warmup', 1)):
    if values[name] < least:
      raise ValueError(
        f'--{name}={values[name]} is not allowed; allowed: at least {least}.'
      )
  program_cache.begin()
  world = worlds.world(config)
  many = values['warmup'] + values['rounds']
  stages = [s._replace(rounds=many) for s in world.stages if s.rounds]
  records = observer.Recorder()
  watch = observer.Observers(records, observer.Notes())
  if config.progress:
    watch.add(observer.Progress())
  line = timeline.Timeline(
    values['warmup'],
    lambda stage: jax.profiler.trace(
      str(out / stage), create_perfetto_trace=True
    ),
  )
  with contextlib.ExitStack() as stack:
    stack.callback(watch.close)
    keep = _run_store(config, out, stack)
    world = world._replace(stages=stages)
    simulation = simulated.simulation(config, world, keep, watch)
    with line.measuring():
      simulation.run()
  for name, rounds in line.seconds.items():
    depths = [r['depth'] for r in records.records if r['stage'] == name]
    print('\n'.join([*text(name, rounds, depths[-len(rounds) :]), '']))
  print(
    f'traces: {out}/<stage>; open them with `tensorboard --logdir={out}` '
    '(profile plugin), or perfetto_trace.json.gz at ui.perfetto.dev'
  )
  return 0


def _folder(workdir: str, out: str) -> pathlib.Path:
  if not (workdir or out):
    raise ValueError(
      'fedms profile writes a trace; give --out=<folder>, or --workdir for a '
      'folder `profile` in it.'
    )
  folder = pathlib.Path(out) if out else pathlib.Path(workdir, 'profile')
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise ValueError(
      f'--out={folder} cannot be made: {e}. Choose another folder.'
    ) from e
  return folder


def _run_store(config, out: pathlib.Path, stack: contextlib.ExitStack):
  """What keeps as a run with these flags would, in a folder of its own."""
  if not config.workdir:
    keep = run_store.Memory()
  else:
    scratch = tempfile.TemporaryDirectory(dir=out, prefix='run-')
    folder = stack.enter_context(scratch)
    workdir = Workdir.open(folder, flags.to_text(config))
    stack.enter_context(workdir)
    keep = run_store.Disk(
      workdir,
      config.checkpoint.keep,
      every=config.checkpoint.every,
      seconds=config.checkpoint.seconds,
    )
  stack.callback(keep.close)
  return keep


def text(
  stage: str, rounds: Sequence[dict[str, float]], depths: Sequence[float]
) -> list[str]:
  """The lines of a stage: mean milliseconds of each span in its rounds.

  What lies in no span (planning, metrics, the ledger) is `other`.
  """
  count = len(rounds)
  mean = {
    name: sum(r.get(name, 0.0) for r in rounds) / count
    for name in (*timeline.NAMES, 'round')
  }
  total = mean.pop('round')
  mean['other'] = total - sum(mean.values())
  shown = ', '.join(f'{d:g}' for d in dict.fromkeys(depths))
  rows = [['', 'ms a round', 'share']]
  rows += [
    [name, f'{1e3 * seconds:.2f}', f'{seconds / total:.1%}']
    for name, seconds in (mean | {'round': total}).items()
  ]
  title = f'{stage} stage: {count} rounds at depth {shown}'
  return [title, *printed.grid(rows)]
