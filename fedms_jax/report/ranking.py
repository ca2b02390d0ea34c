"""The table of a comparison: scores, who is best, and costs."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedms_jax.report import families, page, printed, statistics, views
from fedms_jax.report.runs import Comparison, Row, Run
from fedms_jax.report.statistics import LEVEL, Verdict

FRONT, SEARCHED = 'front', 'search: client FLOPs'
# What a row costs, and how it is written.
Cost = tuple[Callable[[Run], float], Callable[[float], str]]
COSTS: dict[str, Cost] = {
  'bytes of all clients, up and down': (statistics.volume, views.size),
  'FLOPs on the devices of all clients': (
    lambda run: run.summary['total']['client_flops'],
    views.flops,
  ),
  'seconds of the simulator': (
    lambda run: run.summary['run_seconds'],
    views.seconds,
  ),
}
# Of methods that take no gradient; see `costs`.
QUERIES: dict[str, Cost] = {
  'rows whose loss was asked for': (
    lambda run: run.summary['total'].get('queries') or 0.0,
    '{:,.0f}'.format,
  ),
}
# The costs of the table, by the titles of its columns.
BEHIND: dict[str, Cost] = {
  'bytes': COSTS['bytes of all clients, up and down'],
  'client FLOPs': COSTS['FLOPs on the devices of all clients'],
  'client memory': (
    lambda run: run.summary['total']['peak_client_memory'],
    views.size,
  ),
  'simulator': COSTS['seconds of the simulator'],
}
_SPLIT = {
  'own_classes': "client's classes",
  'other_classes': "others' classes",
  'harmonic': 'harmonic mean',
  'base_classes': "anybody's classes",
  'new_classes': "nobody's classes",
  'base_new_harmonic': 'harmonic mean',
}


def costs(rows: Sequence[Row]) -> dict[str, Cost]:
  """The costs that rows are drawn over: queries only if some row has any."""
  get, _ = next(iter(QUERIES.values()))
  asked = any(get(run) for row in rows for run in row.runs)
  return COSTS | QUERIES if asked else COSTS


def promises(rows: Sequence[Row]) -> dict[str, list[str]]:
  """Columns on privacy by title, where rows have any: the accounted epsilon,
  and what canaries show at least, of what is accounted for the audited run."""
  found = {
    'epsilon': [_epsilons(row.runs) for row in rows],
    'audit': [_audited(row.runs) for row in rows],
  }
  return {k: cells for k, cells in found.items() if set(cells) != {'–'}}


def _epsilons(found: Sequence[Run]) -> str:
  told = [r.summary['privacy'] for r in found if 'privacy' in r.summary]
  return _mean([x['epsilon'] for x in told]) if told else '–'


def _audited(found: Sequence[Run]) -> str:
  told = [r.audits['canaries'] for r in found if 'canaries' in r.audits]
  if not told:
    return '–'
  least = _mean([x['epsilon_lower_bound'] for x in told])
  return f'≥ {least} of {_mean([x["epsilon_accounted"] for x in told])}'


def _mean(values: Sequence[float | None]) -> str:
  """Null is no bound at all."""
  found = statistics.measure(values)
  return '∞' if found is None else f'{found.mean:.3g}'


def section(rows: Sequence[Row], compared: Comparison, score: str) -> str:
  """The table of rows, the best first. compared: what they are of. score: what
  it is called."""
  split = columns(rows)
  ahead = ['', 'own test: mean', 'worst decile', 'pooled test',
           'unseen clients', *split.values()]  # fmt: skip
  base = next((r for r in rows if r.label == compared.reference), None)
  verdicts = [statistics.verdict(rows[0], row) for row in rows]
  more = further(rows, compared)
  behind = [*more, 'active blocks', *BEHIND]
  body = [
    _cells(i, row, rows[0], verdicts[i], base, split, more)
    for i, row in enumerate(rows)
  ]
  return page.section(
    f'{score.capitalize()} in %, and what it costs',
    families.filters(rows),
    page.table([*ahead, *behind], body, 'comparison', families.marks(rows)),
    page.paragraph(_legend(verdicts, base) + _told(more), 'quiet'),
  )


def further(rows: Sequence[Row], compared: Comparison) -> dict[str, list[str]]:
  """Columns of a comparison by families, of one that has searched, of language
  models, and on privacy: a cell for each row, by title."""
  found: dict[str, list[str]] = {}
  if families.families(rows):
    best = families.front(rows)
    found['family'] = [row.group for row in rows]
    found[FRONT] = ['●' if row.label in best else '' for row in rows]
  if compared.search_costs:
    found[SEARCHED] = [_searched(compared, row) for row in rows]
  return found | _perplexities(rows) | promises(rows)


def _perplexities(rows: Sequence[Row]) -> dict[str, list[str]]:
  """Columns of language models by title: of the mean loss over seeds."""
  found = [run.summary for row in rows for run in row.runs]
  asked = [printed.perplexities(summary) for summary in found]
  return {
    title: [_perplexity(row, loss) for row in rows]
    for loss, title in asked[0].items()
    if all(loss in known for known in asked)
  }


def _perplexity(row: Row, loss: str) -> str:
  found = statistics.measure([run.scores[loss] for run in row.runs])
  return printed.perplexity(found and found.mean)


def _searched(compared: Comparison, row: Row) -> str:
  spent = compared.search_costs.get(row.label)
  return views.flops(spent['flops']) if spent else '–'


def _told(more: Mapping[str, Sequence[str]]) -> str:
  """What the further columns are."""
  text = ''
  if FRONT in more:
    text += (
      ' ● is on the Pareto front of own and pooled test rows against bytes: no '
      'other row has as much of both for as few.'
    )
  if SEARCHED in more:
    text += (
      ' The search of the learning rate has spent, once and beside the runs '
      'of the table, the client FLOPs of its column.'
    )
  return text


def columns(rows: Sequence[Row]) -> dict[str, str]:
  """Scores that not every comparison has: on a mixed stream, and by class,
  where classes are split among clients, or held out."""
  found = [run.scores for row in rows for run in row.runs]
  mixed = all(scores.get('mixed') is not None for scores in found)
  return ({'mixed': 'mixed stream'} if mixed else {}) | _by_class(rows, found)


def _by_class(rows: Sequence[Row], found) -> dict[str, str]:
  first = rows[0].runs[0]
  split = first.dealt == 'classes'
  new = found[0].get('new_classes') is not None
  if not (split or new or first.flags.get('data.public_classes')):
    return {}
  return {
    key: title
    for key, title in _SPLIT.items()
    if all(scores.get(key) is not None for scores in found)
  }


def _cells(i: int, row: Row, best: Row, verdict: Verdict, base, split, more):
  chip = ''
  if row is best:
    chip = ' <span class="chip first" title="best">1st</span>'
  elif not verdict.worse:
    hint = 'not significantly worse than the best' if verdict.p else 'too few'
    chip = f' <span class="chip tied" title="{hint}">≈</span>'
  top = ' class="top"' if row is best else ''
  scores = [
    _measure(row, key)
    for key in ('own_mean', 'own_worst_decile', 'pooled', 'unseen', *split)
  ]
  return [
    views.name(i + 1, row.label),
    f'<td{top}>{scores[0]}{chip}</td>',
    *scores[1:],
    *(html.escape(cells[i]) for cells in more.values()),
    html.escape(depths(row)),
    *(_cost_cell(row, base, *how) for how in BEHIND.values()),
  ]


def measured(row: Row, key: str) -> tuple[str, str]:
  """A score of a row in %, mean and spread over seeds; '' for no spread."""
  found = statistics.measure([run.scores.get(key) for run in row.runs])
  if found is None:
    return '–', ''
  spread = found.deviation
  return (
    f'{100 * found.mean:.1f}',
    '' if spread is None else f'± {100 * spread:.1f}',
  )


def _measure(row: Row, key: str) -> str:
  mean, spread = measured(row, key)
  return f'{mean} <span class="spread">{spread}</span>' if spread else mean


def depths(row: Row) -> str:
  """The active blocks at the end of each stage, mean over seeds."""
  last = [
    [depths[-1] for depths in run.summary['depth'].values() if depths]
    for run in row.runs
  ]
  return ' → '.join(f'{np.mean(ends):.3g}' for ends in zip(*last, strict=False))


def relative(row: Row, base: Row | None, get) -> tuple[float, float | None]:
  """What a row costs, mean over seeds, and how many times the base, if any."""
  value = float(np.mean([get(run) for run in row.runs]))
  if base is None:
    return value, None
  other = float(np.mean([get(run) for run in base.runs]))
  return value, value / other if other else float('nan')


def _cost_cell(row: Row, base: Row | None, get, show) -> str:
  value, times = relative(row, base, get)
  text = html.escape(show(value))
  if times is None:
    return text
  told = f'{times:.2f}×' if np.isfinite(times) else '–'
  return f'{text} <span class="spread">{told}</span>'


def _legend(verdicts: Sequence[Verdict], base: Row | None) -> str:
  first = verdicts[-1]
  text = (
    "± is the standard deviation over seeds. Rows are ranked by clients' own "
    'test rows, the only column that is tested: ≈ marks rows that a one-sided '
    f'paired t-test does not find worse than the best (p ≥ {LEVEL:g}, not '
    'corrected for the number of rows). '
  )
  if first.unit == 'clients':
    text += (
      f'With so few seeds the pairs are clients ({first.pairs} over all '
      'seeds): the marks hold for these clients and training runs, not for '
      'new ones; 5 seeds or more are tested by seed. '
    )
  else:
    text += f'The pairs are seeds ({first.pairs}). '
  if any(v.p is None for v in verdicts):
    text += 'Some rows have too few pairs to say, and carry ≈, too. '
  text += 'Active blocks are those at the end of each stage. '
  if base is not None:
    text += f'× is relative to {base.label}.'
  return text
