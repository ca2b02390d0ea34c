"""The report of one run."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping

from fedms_jax.report import (
  attacked,
  audited,
  curves,
  details,
  page,
  private,
  tasks,
  timed,
  views,
)
from fedms_jax.report.printed import (
  COLUMNS,
  METRIC_COLUMNS,
  MODELS,
  perplexities,
  perplexity,
)
from fedms_jax.report.runs import Row, Run, command

_CLASSES = {
  'own_classes': "pooled: client's classes",
  'other_classes': "others' classes",
  'harmonic': 'harmonic mean of both',
  'base_classes': "anybody's classes",
  'new_classes': "nobody's classes",
  'base_new_harmonic': 'harmonic mean of these',
}


def report(run: Run, defaults: Mapping[str, str]) -> str:
  """The page of a run. defaults: values of flags that need not be said."""
  row = Row(run.flags.get('algorithm.name', 'run'), [run])
  summary, score = run.summary, run.summary['score']
  models = _ordered(summary['models'], run.served)
  per_client = [
    (MODELS.get(m, m), views.named([run], m))
    for m in models
    if run.per_client(m)
  ]
  return page.document(
    f'{run.flags.get("algorithm.name")} on {run.flags.get("data.source")}',
    page.paragraph(f'{views.world([run])} Seed {run.seed}.', 'lead'),
    _scores(run, models),
    _metrics(run, models),
    page.section(
      'Costs',
      _costs(run),
      page.paragraph(
        'Bytes, FLOPs and memory are analytic: they follow from what was '
        'active. Seconds are those of the simulator, without compilation.',
        'quiet',
      ),
    ),
    curves.section(run.records, score),
    tasks.section(summary.get('tasks')),
    _said(run, 'privacy', private.lines),
    _said(run, 'time', timed.lines),
    _attack(run),
    _audit(run),
    page.section('Rounds', *_rounds(row)),
    page.beside(
      page.section(
        'Clients', page.charts([views.accuracies(per_client, score)])
      ),
      views.gates([row]),
      *details.confusion(run),
      views.partition(run),
      details.settings(run, defaults),
    ),
    details.clients(run, models),
    page.section(
      'The same again',
      page.code('Flags that repeat this run', command([run], defaults)),
    ),
  )


def _said(run: Run, name: str, lines: Callable) -> str:
  """What `lines` says of a part of the summary; '' of a run without it."""
  found = run.summary.get(name)
  if found is None:
    return ''
  return page.section(name.capitalize(), *map(page.paragraph, lines(found)))


def _attack(run: Run) -> str:
  """What an attack on a run has come to; '' of a run without one."""
  found = run.summary.get('attack')
  if found is None:
    return ''
  head, *body = [[*map(html.escape, row)] for row in attacked.rows(found)]
  note = (
    'Success: rows that get the label which the attacker wants, of those that '
    'the attack changes.'
  )
  return page.section(
    'Attack',
    page.paragraph(attacked.title(found)),
    page.table(head, body, 'attack'),
    page.paragraph(note, 'quiet'),
  )


def _audit(run: Run) -> str:
  """What audits of a run have found; '' of a run without one."""
  if not run.audits:
    return ''
  said = [audited.lines(found) for found in run.audits.values()]
  return page.section(
    'Audit', *(page.code(first, '\n'.join(rest)) for first, *rest in said)
  )


def _ordered(models, served: str) -> list[str]:
  """Names as the summary's table has them, the served one last."""
  known = [m for m in MODELS if m in models]
  rest = [m for m in models if m not in MODELS]
  return [m for m in [*known, *rest] if m != served] + [served]


def _scores(run: Run, models: list[str]) -> str:
  summary = run.summary
  text = (
    f'{summary["clients"]} clients on their own test rows, '
    f'{summary["pooled_rows"]} pooled test rows, '
    f'{summary["unseen_clients"]} clients that never trained.'
  )
  parts = [_table(run, models, summary), page.paragraph(text, 'quiet')]
  if 'adapted' in summary:
    found = summary['adapted']
    parts += [
      page.paragraph(
        'After every client, those that never trained on a part of their rows, '
        f'has adapted for {found["epochs"]} epochs:'
      ),
      _table(run, models, summary | found, {'unseen_as_left': 'before'}),
    ]
  return page.section(f'{summary["score"].capitalize()} in %', *parts)


def _table(run: Run, models: list[str], summary, more=None) -> str:
  """The scores of models. more: titles of further columns."""
  columns = COLUMNS | (more or {})
  for key, title in _CLASSES.items():
    if any(summary['models'][m].get(key) is not None for m in models):
      columns[key] = title
  losses = perplexities(summary)
  columns |= losses
  rows = []
  for model in models:
    found = summary['models'][model]
    cells = [html.escape(MODELS.get(model, model))]
    if model == run.served:
      cells[0] += ' <span class="chip first">served</span>'
    for key in columns:
      value = found.get(key)
      if key in losses:
        cells.append(perplexity(value))
      else:
        cells.append(views.percent(value))
    rows.append(cells)
  head = ['model', *map(html.escape, columns.values())]
  return page.table(head, rows, 'scores')


def _metrics(run: Run, models: list[str]) -> str:
  """The metrics beside the score, '' if there are none; of tables none."""
  rows = []
  for metric, found in run.summary.get('metrics', {}).items():
    for model in models:
      told = found.get(model, {})
      if 'own_mean' in told:
        cells = [told[key] for key in METRIC_COLUMNS]
        cells = ['–' if value is None else f'{value:.4g}' for value in cells]
        name = f'{metric}, {MODELS.get(model, model)}'
        rows.append([html.escape(name), *cells])
  if not rows:
    return ''
  head = ['metric', *map(html.escape, METRIC_COLUMNS.values())]
  return page.section('Metrics', page.table(head, rows, 'metrics'))


def _costs(run: Run) -> str:
  entries = run.summary['ledger'] | {'in all': run.summary['total']}
  rows = []
  for name, entry in entries.items():
    depth = run.summary['depth'].get(name)
    rows.append(
      [
        html.escape(name),
        f'{depth[0]:g} to {depth[-1]:g}' if depth else '–',
        views.size(entry['bytes_up']),
        views.size(entry['bytes_down']),
        views.flops(entry['client_flops']),
        views.size(entry['peak_client_memory']),
        views.flops(entry['simulator_flops']),
      ]
    )
  rows[-1].append(views.seconds(run.summary['run_seconds']))
  for row in rows[:-1]:
    row.append('–')
  head = ['stage', 'active blocks', 'up', 'down', 'client FLOPs',
          'client memory', 'simulator FLOPs', 'simulator']  # fmt: skip
  return page.table(head, rows, 'costs')


def _rounds(row: Row) -> list[str]:
  """Small charts of the metrics by round."""
  fields = {
    'depth': ('active blocks', {'floor': 0, 'also': (0, 1)}),
    'capability': ('capability', {'floor': 0}),
    'score': ("cohort's validation score", {'floor': 0, 'roof': 1}),
    'train_loss': ('training loss', {'floor': 0}),
    'gate_weight': ('weight of the global expert', {'floor': 0, 'roof': 1}),
  }
  found = []
  for field, (title, bounds) in fields.items():
    found += views.courses([row._replace(label=title)], field, **bounds)
  return [
    page.charts(found, 'small'),
    page.paragraph(
      'By round; a dashed line is where a stage begins. The capability is the '
      'score that the schedule watches.',
      'quiet',
    ),
  ]
