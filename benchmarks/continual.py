"""What is forgotten, and what is done against it.

    python -m benchmarks.continual [--quick] [--settings=class,task,domain] \
      [--rows=finetune,...] [--seeds=0] [--data=FOLDER] [--out=FILE] \
      -- <fedms flags>

Every row meets the tasks of a setting one after another. Of the embedded digits
these are classes two by two (`class`; `task`: the task of a test row is known)
or images changed (`domain`). Others are of data in a folder, as Parquet:
`cifar_class` and `cifar_task` of cifar10/, `writers` of mnist/ and then the
embedded digits, `genres` of brown/, whose texts have a column of genres, for a
language model. Rows beside `finetune` and `joint` remember in some way; `ncm`
and `ridge` compute their head from sums; `fedms`, `fedcaf` and `local` have
models of their own on each client, so look at their scores on clients' own
rows. --quick makes data of its own. Prints a line of JSON for each row
and appends it to --out; rows that are there already are not run again. Scores
are in shares of 1, of the served model, or for a language model minus the nats
of a token; `intransigence` is the mean over tasks
of what `joint` of the same seed has beyond it when a task is met, null without
such a row.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shared_runs import SharedRuns
from fedms_jax.persistence import run_store
from fedms_jax.shell import flags, program_cache, simulated, task_run
from fedms_jax.shell.config import Config
from fedms_jax.simulation import observer, task_scores

LORA = '--algorithm.name=fedit'
ROWS: dict[str, tuple[str, ...]] = {
  'joint': (LORA, '--tasks.method=joint'),
  'finetune': (LORA,),
  'replay_10': (LORA, '--tasks.method=replay', '--tasks.memory=10'),
  'replay_50': (LORA, '--tasks.method=replay', '--tasks.memory=50'),
  'ewc': (LORA, '--tasks.method=ewc', '--tasks.weight=100'),
  'lwf': (LORA, '--tasks.method=lwf', '--tasks.weight=3'),
  'herding_10': (LORA, '--tasks.method=replay', '--tasks.memory=10',
                 '--tasks.choice=herding'),
  'glfc_50': (LORA, '--tasks.method=glfc', '--tasks.memory=50'),
  'orthogonal_lora': (LORA, '--tasks.method=orthogonal_lora'),
  'fot': (LORA, '--tasks.method=fot'),
  'ncm': ('--algorithm.name=ncm',),
  'ridge': ('--algorithm.name=ridge',),
  'local': ('--algorithm.name=local',),
  'fedcaf': ('--algorithm.name=fedcaf',),
  'fedweit': ('--algorithm.name=fedweit',),
  'fedms': ('--algorithm.name=fedms',),
}  # fmt: skip
USUAL = (
  '--data.public_fraction=0.3',
  '--partition.num_clients=10', '--partition.unseen_clients=1',
  '--cohort.size=5', '--model.blocks=3', '--model.width=32', '--model.heads=2',
  '--pretrain.epochs=20', '--client.epochs=2', '--schedule.name=dense',
  '--algorithm.stage1_rounds=4', '--algorithm.stage2_rounds=4',
)  # fmt: skip
DIGITS = ('--data.source=digits', '--partition.name=dirichlet')
CLASSES = ('--tasks.count=5',)
KNOWN = (*CLASSES, '--tasks.identity=known')
CIFAR = (
  '--data.max_rows=2000', '--model.patch=8', '--client.epochs=1',
  '--eval.pooled_rows=500', '--partition.alpha=1',
)  # fmt: skip
WRITERS = (
  '--tasks.count=2', '--tasks.name=column', '--tasks.column=writers',
  '--data.image_size=16', '--model.patch=4', '--data.max_rows=2400',
  '--client.epochs=1', '--partition.alpha=1',
)  # fmt: skip
GENRES = (
  '--tasks.count=3', '--tasks.name=column', '--tasks.column=genre',
  '--tasks.head=kept', '--data.input_column=text', '--data.max_rows=3000',
  '--data.pack', '--data.max_tokens=64', '--model.name=gpt',
  '--model.head=causal_lm', '--partition.name=iid', '--client.epochs=1',
  '--pretrain.learning_rate=3e-3', '--pretrain.batch_size=16',
  '--pretrain.epochs=40', '--client.learning_rate=1e-2',
  '--lora.rank=8', '--lora.targets=attn/q,attn/v,mlp/up,mlp/down',
  '--eval.pooled_rows=300',
)  # fmt: skip


class Setting(NamedTuple):
  """A sequence of tasks. words: its flags. folder: of its data; '': embedded.
  lacks: rows that it cannot have."""

  words: tuple[str, ...]
  folder: str = ''
  lacks: tuple[str, ...] = ()


KNOWING = ('fedweit',)  # rows that must know the task of a test row
HEADS = ('lwf', 'glfc_50', 'ncm', 'ridge')  # rows that are of classes
SETTINGS = {
  'class': Setting((*DIGITS, *CLASSES), '', KNOWING),
  'task': Setting((*DIGITS, *KNOWN)),
  'domain': Setting(
    (*DIGITS, '--tasks.count=4', '--tasks.name=domain'), '', KNOWING
  ),
  'cifar_class': Setting((*CLASSES, *CIFAR), 'cifar10', KNOWING),
  'cifar_task': Setting((*KNOWN, *CIFAR), 'cifar10'),
  'writers': Setting(WRITERS, 'mnist', KNOWING),
  'genres': Setting(GENRES, 'brown', (*HEADS, *KNOWING)),
}
QUICK = (
  '--model.blocks=2', '--model.width=8', '--pretrain.epochs=1',
  '--partition.num_clients=4', '--cohort.size=2', '--client.epochs=1',
  '--algorithm.stage1_rounds=1', '--algorithm.stage2_rounds=1',
  '--tasks.count=2', '--data.max_rows=200', '--data.max_tokens=32',
)  # fmt: skip


def measured(config: Config, source: Any) -> tuple[dict[str, Any], Any]:
  """(the numbers of a run, its matrix of pooled scores)."""
  source.prepare(config)
  start = time.perf_counter()
  world = source.world(config)
  watch = observer.Observers(observer.Recorder())
  keep = run_store.Memory()
  simulation = simulated.simulation(config, world, keep, watch, source)
  simulation.run()
  told = task_run.summary(config, world.data, simulation)['tasks']
  served = told['served']
  found = dict(told['scores']['pooled'][served])
  own = told['scores']['own'][served]
  found |= {f'own_{key}': own[key] for key in ('acc', 'forgetting', 'learning')}
  matrix = [step['pooled'][served] for step in told['steps']]
  sent = sum(entry.bytes_up for entry in simulation.ledgers.values())
  return found | {
    'kept_bytes': told['kept_bytes'],
    'megabytes_up': sent / 1e6,
    'seconds': time.perf_counter() - start,
  }, matrix


def prepared(setting: str, data: pathlib.Path, folder: pathlib.Path):
  """The flags of a setting's data. data: where it is. folder: of what is made
  of it."""
  name = SETTINGS[setting].folder
  if setting == 'writers':
    return (f'--data.source={_writers(data / name, folder)}',)
  return (f'--data.source={data / name}',) if name else ()


def _writers(mnist: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """A folder of as many rows of MNIST as there are embedded digits, and these,
  of which the column 'writers' tells them apart."""
  import datasets
  from PIL import Image
  from sklearn import datasets as embedded

  flat, labels = map(np.asarray, embedded.load_digits(return_X_y=True))
  pixels = (flat.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
  rows = datasets.load_dataset(str(mnist), split=f'train[:{len(pixels)}]')
  found = {
    'image': [*rows['image'], *map(Image.fromarray, pixels)],
    'label': [int(x) for x in (*rows['label'], *labels)],
    'writers': ['mnist'] * len(rows) + ['digits'] * len(pixels),
  }
  out = folder / 'writers'
  out.mkdir(exist_ok=True)
  columns = {'image': datasets.Image(), 'label': datasets.Value('int64'),
             'writers': datasets.Value('string')}  # fmt: skip
  made = datasets.Dataset.from_dict(found, datasets.Features(columns))
  made.to_parquet(out / 'train.parquet')
  return out


def made_up(folder: pathlib.Path) -> pathlib.Path:
  """A folder of little data for all settings."""
  import datasets
  from PIL import Image

  rng = np.random.default_rng(0)

  def images(side: int, shape: tuple[int, ...], name: str):
    pixels = rng.integers(0, 256, (200, side, side, *shape)).astype(np.uint8)
    found = {name: list(map(Image.fromarray, pixels)),
             'label': [i % 10 for i in range(200)]}  # fmt: skip
    columns = {name: datasets.Image(), 'label': datasets.Value('int64')}
    return datasets.Dataset.from_dict(found, datasets.Features(columns))

  words = [''.join(rng.choice(list('aeioubdklmnrst'), 4)) for _ in range(40)]
  lines = [' '.join(rng.choice(words, 6)) for _ in range(120)]
  texts = {'text': lines, 'genre': [f'g{i // 40}' for i in range(120)]}
  whole = {'cifar10': images(32, (3,), 'img'), 'mnist': images(28, (), 'image'),
           'brown': datasets.Dataset.from_dict(texts)}  # fmt: skip
  for name, data in whole.items():
    (folder / name).mkdir()
    data.to_parquet(folder / name / 'train.parquet')
  return folder


def _known(out: str) -> dict[tuple[str, str, int], dict[str, Any]]:
  """Rows that a file has already."""
  if not out or not pathlib.Path(out).is_file():
    return {}
  lines = pathlib.Path(out).read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {(r['row'], r['setting'], r['seed']): r for r in found}


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  words = list(argv)
  cut = words.index('--') if '--' in words else len(words)
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--settings', default='class,task,domain')
  parser.add_argument('--rows', default='')
  parser.add_argument('--seeds', default='0')
  parser.add_argument('--data', default='data', type=pathlib.Path)
  parser.add_argument('--out', default='')
  return parser.parse_args(words[:cut]), words[cut + 1 :]


def _line(key: tuple[str, str, int], found, matrix, joint) -> dict[str, Any]:
  """The line of a row. joint: what each task scored when it was met, by row;
  this one's is added."""
  name, setting, seed = key
  joint[key] = np.diag(matrix).tolist()
  best, lost = joint.get(('joint', setting, seed)), None
  if best is not None:
    lost = float(task_scores.intransigence(matrix, best).mean())
  line = {'row': name, 'setting': setting, 'seed': seed, **found}
  return line | {'intransigence': lost, 'diagonal': joint[key]}


def main(argv: Sequence[str]) -> int:
  options, own = _options(argv)
  settings, data = options.settings.split(','), options.data
  wanted = [name for name in options.rows.split(',') if name]
  known = _known(options.out)
  joint = {key: r['diagonal'] for key, r in known.items() if r.get('diagonal')}
  with tempfile.TemporaryDirectory() as folder:
    if options.quick:
      settings, own = settings[:1], [*QUICK, *own]
      wanted = wanted or ['joint', 'finetune', 'fot']
      data = made_up(pathlib.Path(folder))
    source = SharedRuns(pathlib.Path(folder))
    for setting in settings:
      base = (*USUAL, *SETTINGS[setting].words)
      base += prepared(setting, data, pathlib.Path(folder))
      rows = [r for r in wanted or ROWS if r not in SETTINGS[setting].lacks]
      for seed in map(int, options.seeds.split(',')):
        for key in ((name, setting, seed) for name in rows):
          if key in known:
            continue
          words = (*base, *own, *ROWS[key[0]], f'--seed={seed}')
          config = flags.parse(['fedms', '--noprogress', *words])
          line = _line(key, *measured(config, source), joint)
          text = json.dumps(line)
          print(text, flush=True)
          if options.out:
            with open(options.out, 'a') as file:
              file.write(text + '\n')
  return 0


if __name__ == '__main__':
  program_cache.begin()
  raise SystemExit(main(sys.argv[1:]))
