"""How far do malicious clients get, and does its local expert protect a client?

    python -m benchmarks.attacks [--quick] [--attacks=none,backdoor,...] \\
      [--aggregators=mean,median,...] [--seeds=0..2] [--out=FOLDER] -- \\
      <fedms flags>

Runs a method under attacks and aggregators, each with each. Writes
results.csv, results.parquet, report.html and table.md into --out, and
attacks.md: by row the score of honest clients and how often their rows with a
trigger are taken for the target, by model. A second start goes on where the
first was killed.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import search_and_seeds
from benchmarks.contest import Entry, Flags
from fedms_jax.launch import command
from fedms_jax.persistence.files import read_json, write_atomic
from fedms_jax.persistence.workdir import Workdir

ATTACKS: dict[str, tuple[Flags, str]] = {
  'none': ({}, 'nobody is malicious'),
  'sign_flip': (
    {'attack.update': 'sign_flip', 'attack.scale': '5'},
    'a fifth of the clients sends its update times -5',
  ),
  'ipm': (
    {'attack.update': 'ipm', 'attack.scale': '5'},
    "a fifth sends the honest clients' mean times -5",
  ),
  'alie': (
    {'attack.update': 'alie', 'attack.scale': '1.5'},
    "a fifth sends the honest clients' mean less 1.5 deviations",
  ),
  'min_max': (
    {'attack.update': 'min_max'},
    'a fifth sends what is as far off as two honest clients are',
  ),
  'min_sum': (
    {'attack.update': 'min_sum'},
    'a fifth sends what is as far from all as an honest client is',
  ),
  'label_flip': (
    {'attack.data': 'label_flip', 'attack.share': '1'},
    'a fifth has label C - 1 - y on all of its rows',
  ),
  'backdoor': (
    {'attack.data': 'backdoor', 'attack.trigger': '2'},
    'a fifth has a trigger on half of its rows',
  ),
  'replacement': (
    {
      'attack.data': 'backdoor',
      'attack.trigger': '2',
      'attack.update': 'replacement',
    },
    'the same, and sends K times its update',
  ),
  'spread': (
    {
      'attack.data': 'backdoor',
      'attack.trigger': '2',
      'attack.fraction': '1',
      'attack.share': '0.08',
    },
    'every client has the trigger on 8 % of its rows',
  ),
}
AGGREGATORS: dict[str, Flags] = {
  'mean': {},
  'median': {'server.aggregator': 'median'},
  'trimmed_mean': {'server.aggregator': 'trimmed_mean'},
  'multi_krum': {'server.aggregator': 'multi_krum', 'server.byzantine': '2'},
  'bulyan': {'server.aggregator': 'bulyan'},
  'norm_bound': {'server.aggregator': 'norm_bound'},
  'geometric_median': {'server.aggregator': 'geometric_median'},
  'centered_clip': {'server.aggregator': 'centered_clip'},
  'flame': {'server.aggregator': 'flame'},
  'foolsgold': {'server.aggregator': 'foolsgold'},
}
QUICK = (('none', 'replacement'), ('mean', 'median'))


def entries(attacks: Sequence[str], aggregators: Sequence[str]) -> list[Entry]:
  """The rows: each attack under each aggregator."""
  for flag, names, known in (
    ('attacks', attacks, ATTACKS),
    ('aggregators', aggregators, AGGREGATORS),
  ):
    for name in names:
      if name not in known:
        raise ValueError(
          f'--{flag} has {name!r}, which is none. Allowed: {", ".join(known)}.'
        )
  return [
    Entry(
      f'{attack}, {aggregator}',
      ATTACKS[attack][0] | AGGREGATORS[aggregator],
      ATTACKS[attack][1],
    )
    for attack in attacks
    for aggregator in aggregators
  ]


def table(found: dict[str, list[dict[str, Any]]]) -> str:
  """The table of summaries by row, as Markdown: means over seeds, in %."""
  models = ('global', 'local', 'mixture')
  head = ['attack, aggregator']
  head += [f'score, {m}' for m in models] + [f'success, {m}' for m in models]
  lines = [head, ['---'] * len(head)]
  for label, summaries in found.items():
    cells = [_mean([_score(s, m) for s in summaries]) for m in models]
    cells += [_mean([_success(s, m) for s in summaries]) for m in models]
    lines.append([label, *cells])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _score(summary: dict[str, Any], model: str) -> float | None:
  """Of honest clients on their own clean rows; of all where there are none."""
  told = summary.get('attack', {}).get('score', {}).get(model, {})
  own = summary['models'].get(model, {}).get('own_mean')
  return own if told.get('honest') is None else told['honest']


def _success(summary: dict[str, Any], model: str) -> float | None:
  """With the rows of honest clients; of all where there are none."""
  told = summary.get('attack', {}).get('success', {}).get(model, {})
  honest = told.get('honest')
  return told.get('malicious') if honest is None else honest


def _mean(values: Sequence[float | None]) -> str:
  known = [v for v in values if v is not None]
  return f'{100 * sum(known) / len(known):.1f}' if known else '-'


def _summaries(root: pathlib.Path, rows: Sequence[Entry]):
  """The summaries of finished runs by row."""
  found: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    name = search_and_seeds.tuning.name(row.label)
    for folder in sorted(root.glob(f'runs/{name},seed=*')):
      if Workdir(folder, True, None).result() is not None:
        found.setdefault(row.label, []).append(
          read_json(folder / 'summary.json')
        )
  return found


def main(argv: Sequence[str], runner=None) -> int:
  """Runs the benchmark; gives the exit code."""
  own, flags = command.split(argv)
  parser = search_and_seeds.parser('attacks', 'Attacks against aggregators.')
  for flag, known in (('attacks', ATTACKS), ('aggregators', AGGREGATORS)):
    parser.add_argument(
      f'--{flag}', default='', help=f'of {", ".join(known)} (empty: all)'
    )
  options = parser.parse_args(own)
  base = [*(search_and_seeds.QUICK if options.quick else []), *flags]
  config = command.check(base)
  attacks = _words(options.attacks)
  aggregators = _words(options.aggregators)
  if options.quick:
    attacks = attacks or list(QUICK[0])
    aggregators = aggregators or list(QUICK[1])
  rows = entries(attacks or list(ATTACKS), aggregators or list(AGGREGATORS))
  title = f'Attacks and aggregators on {config.data.source}'
  code = search_and_seeds.run(options, base, rows, title, runner)
  root = pathlib.Path(options.out).absolute()
  found = _summaries(root, rows)
  if found:
    text = table(found)
    write_atomic(root / 'attacks.md', text)
    print(text, end='')
  return code


def _words(text: str) -> list[str]:
  return [word.strip() for word in text.split(',') if word.strip()]


if __name__ == '__main__':
  sys.exit(command.run(main))
