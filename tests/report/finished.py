"""Folders as finished runs leave them, without a run."""

import json

import numpy as np

from fedms_jax.persistence import files, writers
from fedms_jax.shell import config, flags

CLIENTS, CLASSES = 12, 4
IDS = list(range(0, 3 * CLIENTS, 3))  # not all clients were evaluated
# Nothing of the last class was there to be right.
CONFUSION = [[9, 1, 0, 0], [2, 8, 0, 0], [0, 5, 15, 0], [0, 0, 0, 0]]


def run(root, accuracy=0.7, volume=1000.0, seed=0, values=None, **more):
  """Writes a run of FedMS. accuracy: mean of the mixture over clients; a
  client's share of luck is the same in all runs of a seed. volume: bytes up,
  and a hundred times the FLOPs. values: flags. more: of the summary."""
  values = {'seed': seed} | (values or {})
  full = config.from_values(values)
  root.mkdir(parents=True, exist_ok=True)
  (root / 'flags.txt').write_text(flags.to_text(full))
  luck = np.random.default_rng(seed).normal(0, 0.05, CLIENTS)
  noise = np.random.default_rng([seed, int(1e6 * accuracy)])
  own = accuracy + luck + noise.normal(0, 0.01, CLIENTS)
  gate = noise.uniform(0.3, 0.6, (CLASSES, CLIENTS))
  writers.write_summary(
    root / 'summary.json', summary(own, gate, volume) | more
  )
  with open(root / 'metrics.jsonl', 'w') as file:
    for stage, rounds in enumerate((4, 2)):
      for t in range(rounds):
        line = {'stage': stage, 'round': t, 'depth': 1.0 + t // 2,
                'capability': accuracy * (t + 1) / rounds,
                'score': accuracy * (t + 1) / rounds,
                'validation_loss': 2.0 - t / 4,
                'train_loss': 2.0 - t / 4, 'bytes_up': volume / 6,
                'eval_own': accuracy * (t + 1) / rounds,
                'eval_pooled': 0.5, 'eval_unseen': 0.4}  # fmt: skip
        file.write(json.dumps(line) + '\n')
  stages = [
    {'name': 'global', 'rounds': 4, 'served': 'global'},
    {'name': 'personal', 'rounds': 2, 'served': 'mixture'},
  ]
  (root / 'stages.json').write_text(json.dumps(stages))
  counts = noise.integers(0, 30, (CLIENTS, CLASSES))
  counts[0, 0] = 0
  outline = {
    'classes': [f'class <{c}>' for c in 'abcd'],
    'clients': CLIENTS,
    'dealt': 'classes',
    'train': counts.tolist(),
    'test': counts.tolist(),
  }
  files.write_atomic(root / 'partition.json', json.dumps(outline))
  return root


def summary(own, gate, volume):
  """A summary: `own` [n] of the mixture, `gate` [C][n]."""
  entry = {
    'bytes_up': volume,
    'bytes_down': volume,
    'client_flops': 100.0 * volume,
    'simulator_flops': 50.0 * volume,
    'client_rounds': 60,
    'examples': 600.0,
    'peak_client_memory': 1e5,
    'peak_client_bytes_up': 10.0,
  }
  return {
    'score': 'accuracy',
    'perplexity': False,
    'models': {
      name: {
        'own_mean': float(np.mean(own)) - less,
        'own_worst_decile': float(np.min(own)) - less,
        'own_std': float(np.std(own)),
        'own_loss': 1.0,
        'pooled': 0.5 - less,
        'pooled_loss': 1.0,
        'unseen': None,
      }
      for name, less in (('global', 0.1), ('mixture', 0.0))
    },
    'per_client': {
      'global': (own - 0.1).tolist(),
      'mixture': own.tolist(),
      'gate_weight': gate.mean(0).tolist(),
      'f1/mixture': (own - 0.05).tolist(),
      'gate_weight_by_class': {
        f'class <{c}>': row.tolist()
        for c, row in zip('abcd', gate, strict=True)
      },
    },
    'client_ids': IDS,
    'metrics': {
      'f1': {
        'mixture': {'own_mean': 0.5, 'own': 0.5, 'pooled': 0.5, 'unseen': None}
      },
      'confusion': {'mixture': {'own': CONFUSION, 'pooled': CONFUSION}},
    },
    'gate_weight': float(gate.mean()),
    'gate_entropy': 0.6,
    'clients': len(own),
    'pooled_rows': 100,
    'unseen_clients': 0,
    'depth': {'global': [1, 1, 2, 2], 'personal': [2, 2]},
    'ledger': {'global': entry, 'personal': entry},
    'total': entry,
    'base_model_bytes': 1,
    'columns_scope': 'run',
    'compile_seconds': 3.0,
    'run_seconds': volume / 100,
  }


# Rows of a comparison: (accuracy, bytes, flags).
ROWS = {
  'good': (0.80, 1000.0, {'schedule.name': 'dense'}),
  'as good': (0.798, 2000.0, {'schedule.name': 'linear'}),
  'cheap': (0.60, 100.0, {'schedule.name': 'fixed', 'schedule.interval': 3}),
  'bad <b>': (0.50, 5000.0, {'schedule.score': 'train_loss'}),
}


def comparison(root, seeds=(0, 1, 2), rows=None, **told):
  """The folder of a benchmark with rows; None: `ROWS`."""
  points, labels = {}, {}
  rows = rows or ROWS
  for i, (label, (accuracy, volume, values)) in enumerate(rows.items()):
    for seed in seeds:
      folder = f'runs/{i},seed={seed}'
      run(root / folder, accuracy, volume, seed, values)
      points[folder] = {k: str(v) for k, v in values.items()}
      points[folder]['seed'] = str(seed)
      labels[folder] = label
  told = {
    'labels': labels,
    'title': 'A comparison',
    'reference': next(iter(rows)),
  } | told
  record = {'flags': [], 'points': points, 'benchmark': told}
  (root / 'sweep.json').write_text(json.dumps(record))
  return root
