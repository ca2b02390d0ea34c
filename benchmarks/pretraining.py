"""What federated pre-training costs in perplexity, and saves in bytes.

    python -m benchmarks.pretraining [--quick] [--steps=500] \\
      [--every=10,50,250] [--rows=central,mean,...] [--seeds=0] \\
      [--out=FILE] -- <fedms flags>

Every row trains one model from random weights for as many steps in a row: the
server alone on public rows (central), or clients, whose updates meet every H
local steps, under an outer optimizer, with inner optimizers that are kept or
reset; or both in turn (two_phases). Flags are of a language model on texts,
such as

    --data.source=<texts> --data.group_column=document \\
      --partition.name=natural --data.pack --data.max_tokens=128 \\
      --model.name=gpt --model.head=causal_lm

--quick makes texts of its own. Prints a line of JSON for each row and appends
it to --out; rows that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.persistence import run_store
from fedms_jax.shell import flags, language, program_cache
from fedms_jax.shell import run as runner
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.simulation import evaluation, observer

OUTER = {
  'mean': ('--server.optimizer=mean', '--server.learning_rate=1'),
  'nesterov': (
    '--server.optimizer=nesterov',
    '--server.learning_rate=0.7',
    '--server.momentum=0.9',
  ),
  'adam': ('--server.optimizer=adam', '--server.learning_rate=0.003'),
}
INNER = (
  '--client.optimizer=adamw', '--client.beta2=0.95', '--client.schedule=cosine',
  '--client.weight_decay=0.1', '--client.learning_rate=1e-3',
  '--pretrain.learning_rate=1e-3', '--pretrain.weight_decay=0.1',
)  # fmt: skip
QUICK = (
  '--data.train_split=test', '--data.input_column=text',
  '--data.group_column=document', '--data.max_tokens=32',
  '--partition.name=natural', '--partition.num_clients=6',
  '--partition.unseen_clients=2', '--cohort.size=4', '--model.name=gpt',
  '--model.head=causal_lm', '--model.width=16', '--model.heads=2',
  '--model.blocks=2', '--client.batch_size=4', '--pretrain.batch_size=16',
)  # fmt: skip


class Row(NamedTuple):
  """A row of the table. every: local steps between meetings, 0: there are
  none. words: the flags that make it."""

  name: str
  every: int
  state: str
  words: tuple[str, ...]


def rows(steps: int, every: Sequence[int]) -> Iterator[Row]:
  """All rows, for a budget of steps in a row."""
  yield Row('central', 0, 'kept', (f'--stages=S{steps}',))
  for h in every:
    rounds = max(1, steps // h)
    federated = f'--stages=F{rounds}x{h}'
    for state in ('reset', 'kept'):
      for outer, words in OUTER.items():
        own = (federated, f'--client.state={state}', *words)
        yield Row(outer, h, state, own)
    one = (federated, '--cohort.size=1', *OUTER['nesterov'])
    yield Row('one_client', h, 'reset', one)
    half = f'--stages=S{steps // 2},F{max(1, rounds // 2)}x{h}'
    yield Row('two_phases', h, 'reset', (half, *OUTER['nesterov']))


def measured(config: Config, like: worlds.World | None):
  """(the numbers of a run, its world)."""
  start = time.perf_counter()
  world = worlds.world(config, like)
  records = observer.Recorder()
  watch = observer.Observers(records)
  keep = run_store.Memory()
  simulation = runner.simulated(config, world, keep, watch)
  state = simulation.run()
  scores = evaluation.evaluate(
    simulation, state, evaluation.Scope(config.eval.clients)
  )
  language.add_bits(config, world, simulation.federation.pooled, scores)
  (found,) = scores['models'].values()
  last = records.records[-1]
  sent = sum(entry.bytes_up for entry in simulation.ledgers.values())
  return {
    'own_perplexity': float(np.exp(found['own_token_loss'])),
    'worst_decile_perplexity': float(np.exp(found['own_loss_worst_decile'])),
    'pooled_perplexity': float(np.exp(found['pooled_loss'])),
    'unseen_perplexity': float(np.exp(found['unseen_token_loss'] or 0.0)),
    'bits_per_byte': found.get('bits_per_byte'),
    'megabytes_up': sent / 1e6,
    'tokens': sum(r.get('tokens', 0.0) for r in records.records),
    'last_drift': last.get('drift'),
    'last_cosine': last.get('cosine'),
    'seconds': time.perf_counter() - start,
  }, world


def texts(folder: pathlib.Path) -> None:
  """Documents of sentences, each document with words that it prefers."""
  import datasets

  rng = np.random.default_rng(0)
  words = [''.join(rng.choice(list('aeioubdklmnrst'), 4)) for _ in range(40)]
  lines, documents = [], []
  for document in range(8):
    likely = rng.dirichlet(np.full(len(words), 0.2))
    for _ in range(40):
      lines.append(' '.join(rng.choice(words, 6, p=likely)))
      documents.append(f'd{document}')
  found = {'text': lines, 'document': documents}
  datasets.Dataset.from_dict(found).to_parquet(folder / 'test.parquet')


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  words = list(argv)
  cut = words.index('--') if '--' in words else len(words)
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--steps', type=int, default=500)
  parser.add_argument('--every', default='10,50,250')
  parser.add_argument('--rows', default='')
  parser.add_argument('--seeds', default='0')
  parser.add_argument('--out', default='')
  return parser.parse_args(words[:cut]), words[cut + 1 :]


def _known(out: str) -> set[tuple[Any, ...]]:
  """Rows that a file has already."""
  if not out or not pathlib.Path(out).is_file():
    return set()
  lines = pathlib.Path(out).read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {(r['row'], r['every'], r['state'], r['seed']) for r in found}


def main(argv: Sequence[str]) -> int:
  options, own = _options(argv)
  steps, every = options.steps, [int(h) for h in options.every.split(',')]
  wanted = [name for name in options.rows.split(',') if name]
  with tempfile.TemporaryDirectory() as folder:
    if options.quick:
      texts(pathlib.Path(folder))
      steps, every = 4, [2]
      own = [*QUICK, f'--data.source={folder}', *own]
      wanted = wanted or ['central', 'nesterov']
    known = _known(options.out)
    for seed in map(int, options.seeds.split(',')):
      like = None
      for row in rows(steps, every):
        key = (row.name, row.every, row.state, seed)
        if (wanted and row.name not in wanted) or key in known:
          continue
        words = [*INNER, '--noprogress', *own, *row.words, f'--seed={seed}']
        config = flags.parse(['fedms', *words])
        found, like = measured(config, like)
        line = dict(zip(('row', 'every', 'state', 'seed'), key, strict=True))
        text = json.dumps(line | {'steps': steps} | found)
        print(text, flush=True)
        if options.out:
          with open(options.out, 'a') as file:
            file.write(text + '\n')
  return 0


if __name__ == '__main__':
  program_cache.begin()
  raise SystemExit(main(sys.argv[1:]))
