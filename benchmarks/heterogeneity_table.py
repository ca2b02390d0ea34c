"""The tables of `benchmarks.heterogeneity`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import contest
from benchmarks.rules import Rules
from fedms_jax.persistence import files
from fedms_jax.report import curves, runs, statistics
from fedms_jax.report.runs import Run
from fedms_jax.simulation import adaptation, shares
from fedms_jax.systems.units import in_bytes, in_flops

# What a device meets comes first: rows are tested and ordered by it.
SCORES = {
  'mixed': 'mixed',
  'own_mean': 'own',
  'pooled': 'pooled',
  'own_worst_decile': 'worst decile',
  'unseen': 'unseen',
}
_RATE = 'client.learning_rate'
_FOLLOWS = 'client.personal_learning_rate'  # what has a ratio to the rate
COSTS = {'bytes': ('bytes_up', 'bytes_down'), 'FLOPs': ('client_flops',)}


class Row(NamedTuple):
  """A method: its runs by seed, the flags that were searched, and how many
  tries that took."""

  label: str
  runs: list[Run]
  rate: Mapping[str, str]
  tries: int


class Setting(NamedTuple):
  """A setting: its rows, and why others have no result."""

  name: str
  note: str
  rows: list[Row]
  missing: Mapping[str, str]


class View(NamedTuple):
  """A line of a table: scores by seed and measure, and mean costs."""

  label: str
  scores: dict[int, dict[str, float | None]]
  bytes: float
  flops: float

  def mean(self, key: str) -> float | None:
    """The mean over seeds; None if it is missing in one."""
    found = statistics.measure([x[key] for x in self.scores.values()])
    return None if found is None else found.mean


def finished(root: pathlib.Path) -> tuple[Setting, Rules]:
  """The rows of a folder of `benchmarks.methods`, and the rules they ran by.

  Raises:
    ValueError: it is none, nothing in it is finished, or no mixed stream was
      scored.
  """
  rules = root / contest.RULES
  if not rules.exists():
    raise ValueError(
      f'--of has {root}, which holds no benchmark: it has no {contest.RULES}. '
      'Give the --out of `benchmarks.methods`.'
    )
  told = files.read_json(rules)
  compared = runs.comparison(root)
  rows = []
  for row in compared.rows:
    if row.runs[0].scores.get('mixed') is None:
      raise ValueError(
        f'--of has {root}, where {row.label} has no score on a mixed stream. '
        'Give `--eval.mixed` to `benchmarks.methods`.'
      )
    rate = {_RATE: row.runs[0].flags[_RATE]} if told['search'] else {}
    tries = _tries(row.label, compared.search)
    rows.append(Row(row.label, row.runs, rate, tries))
  budget = told.get('budget', 'passes')
  note = compared.title
  if budget != 'passes':
    note += f', at the {budget} of {told["reference"]}'
  found = Rules(
    [], told['search'], told.get('search_share', 1.0), budget,
    told.get('reference', ''), search_seed=told.get('search_seed', '0'),
  )  # fmt: skip
  return Setting(root.name, note, rows, compared.missing), found


def _tries(label: str, search: Mapping[str, Mapping]) -> int:
  """How many runs the search of a row took; along its own axis the run of its
  own value had been there."""
  own = [k for k in search if k.startswith(f'{label}: ')]
  both = [search[label]] if label in search else []
  count = sum(map(len, [*both, *(search[k] for k in own)]))
  return count - (len(own) if both else 0)


def views(row: Row, reference: str) -> list[View]:
  """The lines of a row: what its method serves; after adaptation, where it was
  measured; of the reference also the controls with class shares."""
  served = _served(row)
  found = [_view(row.label, row.runs, served)]
  if all('adapted' in run.summary for run in row.runs):
    name = f'{row.label} + adaptation'
    found.append(_view(name, row.runs, served, adapted=True))
  known = row.runs[0].summary['models']
  if row.label == reference and served + shares.SUFFIX in known:
    label = f'{row.label} + shares'
    found.append(_view(label, row.runs, served + shares.SUFFIX))
    pre = _view('pre-trained + shares', row.runs, 'pretrained_shares')
    found.append(pre._replace(bytes=0.0, flops=0.0))
  return found


def _served(row: Row) -> str:
  """What the method itself serves, without class shares."""
  return row.runs[0].served.removesuffix(shares.SUFFIX)


def _view(
  label: str, several: Sequence[Run], model: str, adapted: bool = False
) -> View:
  scores = {}
  for run in several:
    block = run.summary['adapted'] if adapted else run.summary
    told = {key: block['models'][model].get(key) for key in SCORES}
    ece = block.get('metrics', {}).get('ece', {}).get(model, {})
    scores[run.seed] = told | {'ece': ece.get('mixed')}
  spent = [_spent(run, adapted) for run in several]
  return View(label, scores, *np.mean(spent, axis=0).tolist())


def _spent(run: Run, adapted: bool) -> tuple[float, float]:
  """(bytes, client FLOPs); without those of adaptation, which is evaluation."""
  total = run.summary['total']
  rest = run.summary.get('ledger', {}).get(adaptation.NAME, {})
  rest = {} if adapted else rest

  def of(*names: str) -> float:
    return sum(total[name] - rest.get(name, 0.0) for name in names)

  return of('bytes_up', 'bytes_down'), of('client_flops')


def text(
  settings: Sequence[Setting], reference: str, told: Any, share: float
) -> str:
  """All tables, as Markdown."""
  return '\n'.join(
    _setting(setting, reference, told, share) for setting in settings
  )


def _setting(setting: Setting, reference: str, told: Any, share: float) -> str:
  lines = [v for row in setting.rows for v in views(row, reference)]
  lines.sort(key=lambda view: -(view.mean('mixed') or 0.0))
  parts = [f'### {setting.name}: {setting.note}\n', _main(lines, reference)]
  parts += [_experts(setting, reference), _at_equal_costs(setting, reference)]
  parts.append(_search(setting, told))
  parts += [f'{k}: {x}\n' for k, x in setting.missing.items()]
  parts.append(f'Mixed streams have {100 * share:g} % of pooled rows.\n')
  return '\n'.join(part for part in parts if part)


def _main(lines: Sequence[View], reference: str) -> str:
  """Scores in %, differences of the mixed stream to the reference."""
  base = next((v for v in lines if v.label == reference), None)
  gaps = [None if base is None else _gap(v, base) for v in lines]
  ps = statistics.holm([gap and gap.p for gap in gaps])
  points = [(v.mean('own_mean') or 0.0, v.mean('pooled') or 0.0) for v in lines]
  front = statistics.undominated(points)
  whole = statistics.volume_under(points)
  body = []
  for i, view in enumerate(lines):
    others = points[:i] + points[i + 1 :]
    added = whole - statistics.volume_under(others)
    body.append([
      view.label, *(_score(view, key) for key in SCORES), _ece(view),
      _told(gaps[i], ps[i], view is base),
      ('front' if i in front else '') + f' {1e4 * added:.0f}',
      in_bytes(view.bytes), in_flops(view.flops),
    ])  # fmt: skip
  head = ['', *SCORES.values(), 'ECE, mixed', f'mixed: beyond {reference}',
          'front, area added', 'bytes', 'client FLOPs']  # fmt: skip
  return _table(head, body)


def _gap(view: View, base: View) -> statistics.Difference | None:
  """The paired difference on the mixed stream."""
  seeds = [s for s in view.scores if s in base.scores]
  pairs = [(view.scores[s]['mixed'], base.scores[s]['mixed']) for s in seeds]
  pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
  if view is base or not pairs:
    return None
  mine, other = zip(*pairs, strict=True)
  return statistics.difference(mine, other)


def _told(gap, p: float | None, is_base: bool) -> str:
  if gap is None:
    return '-' if is_base else '?'
  shown = f'{100 * gap.mean:+.1f} [{100 * gap.low:.1f}, {100 * gap.high:.1f}]'
  return shown if p is None else f'{shown}, p {p:.3f}'


def _score(view: View, key: str) -> str:
  values = [x[key] for x in view.scores.values()]
  found = statistics.measure(values)
  if found is None:
    return '-'
  if found.deviation is None:
    return f'{100 * found.mean:.1f}'
  return f'{100 * found.mean:.1f} ± {100 * found.deviation:.1f}'


def _ece(view: View) -> str:
  mean = view.mean('ece')
  return '-' if mean is None else f'{mean:.3f}'


def _experts(setting: Setting, reference: str) -> str:
  """Whether the mixture is better than both of its experts: differences over
  seeds, and in how many of these it is above."""
  rows = [row for row in setting.rows if row.label == reference]
  if not rows or 'local' not in rows[0].runs[0].summary['models']:
    return ''
  body = []
  for expert in ('global', 'local'):
    cells = []
    for key in ('mixed', 'own_mean', 'pooled'):
      mine, other = ([run.summary['models'][name][key] for run in rows[0].runs]
                     for name in (_served(rows[0]), expert))  # fmt: skip
      gap = statistics.difference(mine, other)
      above = sum(x > y for x, y in zip(mine, other, strict=True))
      cells.append(f'{_told(gap, None, False)}, {above} of {len(mine)} seeds')
    body.append([f'{reference} beyond its {expert} expert', *cells])
  return _table(['', 'mixed', 'own', 'pooled'], body)


def _at_equal_costs(setting: Setting, reference: str) -> str:
  """Scores at the last look before the costs of the reference are spent; ''
  if nobody looked."""
  rows = [row for row in setting.rows if row.label == reference]
  if not any('eval_own' in x for row in rows for x in row.runs[0].records):
    return ''
  heads, columns = [], []
  for cost, names in COSTS.items():
    budgets = [curves.spent(run.records, names)[-1] for run in rows[0].runs]
    budget = float(np.mean(budgets))
    for key in ('own', 'pooled', 'mixed'):
      heads.append(f'{key}, at its {cost}')
      columns.append(
        [_at(row.runs, names, f'eval_{key}', budget) for row in setting.rows]
      )
  body = [
    [row.label, *(column[i] for column in columns)]
    for i, row in enumerate(setting.rows)
  ]
  return _table([f'at the costs of {reference}', *heads], body)


def _at(
  several: Sequence[Run], names: Sequence[str], key: str, budget: float
) -> str:
  """The mean over seeds of the last value within a budget; '-' if some run had
  been looked at by then in no round."""
  found = []
  for run in several:
    held = curves.points(run.records, names, key)
    within = [y for x, y in held if x <= budget * (1 + 1e-9)]
    if not within:
      return '-'
    found.append(within[-1])
  return f'{100 * np.mean(found):.1f}'


def _search(setting: Setting, told: Any) -> str:
  """What was searched, for whom, and what it took."""
  if not told.search:
    return 'No learning rate was searched.\n'
  chosen = '; '.join(
    ' '.join([row.label, *(x for k, x in row.rate.items() if k != _FOLLOWS)])
    for row in setting.rows
  )
  tries = sum(row.tries for row in setting.rows)
  reported = [run.seed for row in setting.rows for run in row.runs]
  whose = 'one of' if int(told.seed) in reported else 'not among'
  return (
    f'Learning rates {", ".join(told.search)} were tried on validation rows of '
    f'seed {told.seed}, which is {whose} those reported, in runs of '
    f'{100 * told.share:g} % of the rounds, {tries} runs in all; the reported '
    f'ones are {len(reported)}. Chosen: {chosen}.\n'
  )


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
  lines = [head, ['---'] * len(head), *body]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'
