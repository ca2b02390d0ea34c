"""The table at the end of a run, and the summary that it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedms_jax.core import tree
from fedms_jax.core.types import Task
from fedms_jax.report import private, tasks, timed
from fedms_jax.report.lines import grid
from fedms_jax.systems import units
from fedms_jax.systems.ledger import Entry

MODELS = {
  'pretrained': 'pre-trained model',
  'global': 'global expert',
  'local': 'local expert alone',
  'mixture': 'mixture',
}
MODELS |= {
  f'{name}_shares': f'{title} + class shares' for name, title in MODELS.items()
}
METRIC_COLUMNS = {
  'own_mean': 'own test: mean',
  'own': 'own rows together',
  'pooled': 'pooled test',
  'unseen': 'unseen clients',
}
COLUMNS = {
  'own_mean': 'own test: mean',
  'own_worst_decile': 'worst decile',
  'own_std': 'spread',
  'pooled': 'pooled test',
  'unseen': 'unseen clients',
}
_PERPLEXITIES = {
  'own_loss': 'own perplexity',
  'pooled_loss': 'pooled perplexity',
  'mixed_loss': 'mixed perplexity',
}


def summary(
  simulation, state, evaluation: dict[str, Any], records, clock
) -> dict[str, Any]:
  """Everything that summary.json holds; its keys are in the README.

  Only entries that end in `seconds` depend on the machine's mood.
  """
  rounds = [r for r in records if 'depth' in r]
  ledgers = simulation.ledgers
  total = Entry()
  central = {stage.name for stage in simulation.stages if stage.central}
  for name, entry in ledgers.items():
    if name not in central:  # what the server does by itself costs no client
      total = total.plus(entry)
  return {
    **reading(simulation.stages[-1].algorithm.task),
    **_listed(evaluation),
    'depth': {
      stage.name: [r['depth'] for r in rounds if r['stage'] == stage.name]
      for stage in simulation.stages
    },
    'ledger': {name: entry._asdict() for name, entry in ledgers.items()},
    'total': total._asdict(),
    'base_model_bytes': tree.nbytes(state.roles.frozen.get('base', {})),
    'columns_scope': simulation.tables.usual.scope,
    'columns_place': simulation.tables.usual.place,
    'padding_efficiency': _mean(
      [r['padding_efficiency'] for r in rounds if 'padding_efficiency' in r]
    ),
    'compile_seconds': clock.compile_seconds,
    'run_seconds': clock.run_seconds,
  }


def _listed(evaluation: dict[str, Any]) -> dict[str, Any]:
  """Without the values of very many clients: a file of their own has them."""
  if isinstance(evaluation['client_ids'], list):
    return evaluation
  return evaluation | {'client_ids': [], 'per_client': {}}


def text(result: dict[str, Any]) -> str:
  """The summary as a person reads it."""
  total, clients = result['total'], max(result['total']['client_rounds'], 1)
  lines = [*scores(result), '', *_target(result)]
  for name, depths in result['depth'].items():
    if depths:
      lines.append(f'active blocks, {name} stage: {_runs(depths)}')
  up, down = total['bytes_up'], total['bytes_down']
  where = ' in host memory' if result['columns_place'] == 'host' else ''
  lines += [
    f'bytes per client and round: {units.in_bytes(up / clients)} up, '
    f'{units.in_bytes(down / clients)} down; in total {units.in_bytes(up)} up, '
    f'{units.in_bytes(down)} down (once per client: base model '
    f'{units.in_bytes(result["base_model_bytes"])})',
    f"a client's device: {units.in_flops(total['client_flops'] / clients)} per "
    f'round, at most {units.in_bytes(total["peak_client_memory"])} of memory; '
    f'all clients: {units.in_flops(total["client_flops"])}',
    f'the simulator: {units.in_flops(total["simulator_flops"])} (columns scope '
    f'{result["columns_scope"]}{where}, padding efficiency '
    f'{result["padding_efficiency"]:.1%}), '
    f'{result["compile_seconds"]:.1f} s compiling, '
    f'{result["run_seconds"]:.1f} s running',
  ]
  if messages := total.get('step_messages'):
    lines.append(f'messages within local steps: {messages:,.0f}')
  if keys := total.get('secagg_bytes'):
    lines.append(f'of the bytes, keys and shares: {units.in_bytes(keys)}')
  if queries := total.get('queries'):
    lines.append(f'losses asked of the model: {queries:,.0f} rows')
  if 'tasks' in result:
    lines += tasks.lines(result['tasks'])
  if 'privacy' in result:
    lines += private.lines(result['privacy'])
  if 'time' in result:
    lines += timed.lines(result['time'])
  return '\n'.join(lines)


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values) if values else 1.0


def reading(task: Task) -> dict[str, Any]:
  """How the figures of a task are to be read."""
  return {'score': task.name, 'perplexity': task.perplexity}


def scores(result: dict[str, Any]) -> list[str]:
  """The lines that say how good the models are, from an evaluation and
  `reading`."""
  lines = [*_models(result), *_metrics(result)]
  if 'share_weights' in result:
    weights = _in_order(result['share_weights'])
    told = ', '.join(f'{MODELS.get(n, n)} {w:g}' for n, w in weights)
    lines += ['', f'weight of the class shares: {told}']
  if 'adapted' in result:
    lines += ['', *_adapted(result)]
  if 'gate_weight' in result:
    lines += [
      '',
      f'gate: mean weight of the global expert {result["gate_weight"]:.2f}, '
      f'mean entropy {result["gate_entropy"]:.2f} nats',
    ]
  return lines


def _models(
  result: dict[str, Any], more: dict[str, str] | None = None
) -> list[str]:
  titles = COLUMNS | (more or {}) | _mixed(result)
  columns = {name: share for name in titles}
  head = ['', *titles.values()]
  if result['perplexity']:
    asked = perplexities(result)
    columns |= dict.fromkeys(asked, perplexity)
    head += asked.values()
    if all('bits_per_byte' in found for found in result['models'].values()):
      columns |= {'bits_per_byte': lambda bits: f'{bits:.3f}'}
      head += ['bits per byte']
  body = [
    [MODELS.get(name, name), *(show(found[c]) for c, show in columns.items())]
    for name, found in _in_order(result['models'])
  ]
  title = (
    f'{result["score"]} in % ({result["clients"]} clients, '
    f'{result["pooled_rows"]} pooled test rows, '
    f'{result["unseen_clients"]} unseen clients)'
  )
  return [title, *grid([head, *body])]


def _mixed(result: dict[str, Any]) -> dict[str, str]:
  """The column of a mixed stream, where it was scored."""
  if 'mixed_share' not in result:
    return {}
  return {'mixed': f'mixed, {100 * result["mixed_share"]:g} % pooled'}


def _adapted(result: dict[str, Any]) -> list[str]:
  """The same after adaptation; of newcomers only what is not adapted on."""
  found = result['adapted']
  count = found['epochs']
  epochs = f'{count} epoch{"s" * (count > 1)}'
  more = {'unseen_as_left': 'before'}
  title, *rows = _models(result | found, more)
  return [f'after every client has adapted for {epochs}, {title}', *rows]


def _metrics(result: dict[str, Any]) -> list[str]:
  """A line for each metric and model; of tables none."""
  rows, columns = [], METRIC_COLUMNS | _mixed(result)
  for metric, models in result.get('metrics', {}).items():
    for name, found in _in_order(models):
      if 'own_mean' in found:
        told = [found.get(key) for key in columns]
        rows.append([metric, MODELS.get(name, name), *map(_number, told)])
  if not rows:
    return []
  return ['', *grid([['metric', '', *columns.values()], *rows])]


def _target(result: dict[str, Any]) -> list[str]:
  """What it took to reach the target, if there was one."""
  told = result.get('target')
  if not told:
    return []
  aim = f'{told["metric"]} {told["value"]:g}'
  if not told['reached']:
    return [f'{aim} was not reached']
  return [
    f'{aim} was reached after {told["rounds"]} rounds ({told["stage"]} stage), '
    f'{units.in_bytes(told["bytes_up"])} up, '
    f'{units.in_bytes(told["bytes_down"])} down, '
    f'{units.in_flops(told["client_flops"])} of clients, '
    + (
      f'{told["virtual_time"]:.4g} virtual s, '
      if 'virtual_time' in told
      else ''
    )
    + f'{result["target_seconds"]:.1f} s'
  ]


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.4g}'


def ordered(models: dict[str, Any]) -> list[str]:
  """Names of models in the order in which they are told."""
  known = [name for name in MODELS if name in models]
  return [*known, *(set(models) - set(known))]


def _in_order(models: dict[str, Any]):
  return [(name, models[name]) for name in ordered(models)]


def perplexities(result: dict[str, Any]) -> dict[str, str]:
  """Titles of the perplexities of a language model's result by the mean loss of
  a token that each is made of; of another task none."""
  if not result['perplexity']:
    return {}
  return {
    loss: title
    for loss, title in _PERPLEXITIES.items()
    if all(loss in found for found in result['models'].values())
  }


def perplexity(loss: float | None) -> str:
  """As people read it; what has diverged stays a number."""
  if loss is None:
    return '-'
  return f'{math.exp(min(loss, 99.0)):.4g}'


def share(value: float | None) -> str:
  """A share as people read it, in %."""
  return '-' if value is None else f'{100 * value:.1f}'


def _runs(depths: Sequence[float]) -> str:
  """1 x12, 2 x5: how many rounds each depth lasted."""
  runs: list[list[float]] = []
  for depth in depths:
    if runs and runs[-1][0] == depth:
      runs[-1][1] += 1
    else:
      runs.append([depth, 1])
  return ', '.join(f'{depth:g} x{count:g}' for depth, count in runs)
