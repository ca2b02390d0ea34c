"""The rules of a benchmark, its options, and its rows by name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import tuning
from benchmarks.contest import Entry
from fedms_jax.launch import command, grid

_SPENT = {
  'bytes': 'send and receive the bytes',
  'flops': "compute the FLOPs, on clients' devices,",
}


class Rules(NamedTuple):
  """How all rows of a benchmark are run. seeds, search: as text; share: part
  of the rounds that a try of the search has. reference: label of a row. most:
  times its rounds that a row has at most, to spend a budget. search_seed: of
  the search; '': the first one. axes: whether rows search a parameter of
  their own."""

  seeds: list[str]
  search: list[str]
  share: float
  budget: str
  reference: str
  most: float = 8.0
  search_seed: str = ''
  axes: bool = False

  @property
  def seed(self) -> str:
    """The seed of the search."""
    return self.search_seed or self.seeds[0]

  def lasting(self) -> dict:
    """What must stay the same when a benchmark goes on; seeds may be added,
    unless the first one has settled something."""
    found = {'budget': self.budget} | self.tried()
    if self.budget != 'passes':
      found['reference'] = self.reference
      found['first seed'] = self.seeds[0]
      found['most'] = self.most
    return found

  def tried(self) -> dict:
    """What the runs of a search depend on."""
    found: dict = {'search': self.search}
    if self.search:
      found['search_share'] = self.share
      found['search_seed'] = self.seed
      found['axes'] = self.axes or None
    return found

  def words(self) -> list[str]:
    """What a reader of the report has to know."""
    lines = [
      'All rows of a seed have the same data, partition, cohorts and '
      'pre-trained model, and the same evaluation.',
      'Each row has as many rounds as stage 1 and stage 2 have together.'
      if self.budget == 'passes'
      else f'Each row has as many rounds as it takes to {_SPENT[self.budget]} '
      f'of {self.reference} on the first seed, within '
      f'{100 * tuning.CLOSE:g} % where that is possible, and {self.most:g} '
      'times those of stage 1 and stage 2 at most.',
    ]
    if self.search:
      lines.append(
        f'Learning rates {", ".join(self.search)} were tried on seed '
        f'{self.seed} in runs of {100 * self.share:g} % of the rounds. '
        'The rate of the personal part keeps its ratio to it; rates of gates '
        'and of methods alone are not searched.'
      )
    return lines


def parser(
  module: str, description: str, search: str = ''
) -> argparse.ArgumentParser:
  """The options that these benchmarks have in common. search: the learning
  rates that are tried if nobody says which."""
  options = command.parser(f'benchmarks.{module}', description)
  add = options.add_argument
  add(
    '--out',
    default=f'runs/{module}',
    help='folder of the results; with the same one, a benchmark goes on',
  )
  add('--seeds', default='', help='0,1,7 (empty: 0..2, quick: 0..1)')
  proposed = f'; auto: {search}, and none with --quick' if search else ''
  options.set_defaults(proposed=search)
  add(
    '--search',
    default='auto' if search else '',
    help='learning rates to try on validation rows of one seed, such as '
    f'3e-4,1e-3,3e-3; empty: none{proposed}',
  )
  add(
    '--search_share',
    type=float,
    default=0.3,
    help='part of the rounds that a try of a learning rate has',
  )
  add(
    '--search_seed',
    default='',
    help='seed of these tries, such as one that is no row of the report '
    '(empty: the first one)',
  )
  _budget(options)
  add('--reference', default='', help='row that costs are relative to')
  add(
    '--quick',
    action='store_true',
    help='few rows, small model, few rounds: its numbers mean nothing',
  )
  return options


def _budget(options: argparse.ArgumentParser) -> None:
  """The options of what is equal for all rows."""
  add = options.add_argument
  add(
    '--budget',
    default='passes',
    choices=('passes', *tuning.COSTS),
    help='what is equal for all rows: passes over the data, that is rounds; '
    "or bytes sent and received, or FLOPs on clients' devices, those of the "
    'reference',
  )
  add(
    '--most',
    type=float,
    default=8.0,
    help='times its rounds that a row has at most, and one over it at least, '
    'for a budget of bytes or flops',
  )
  add(
    '--searched',
    default='',
    help='folder of a benchmark with the same flags and search: its tries of '
    'learning rates are taken, and those that it lacks are left there',
  )


def rules(options: argparse.Namespace) -> Rules:
  """The rules of the options.

  Raises:
    ValueError: they make no sense.
  """
  text = options.search
  if text == 'auto':
    text = '' if options.quick else options.proposed
  search = [rate.strip() for rate in text.split(',') if rate.strip()]
  for rate in search:
    try:
      positive = float(rate) > 0
    except ValueError:
      positive = False
    if not positive:
      raise ValueError(
        f'--search={options.search} has {rate!r}, which is no learning rate; '
        'write --search=3e-4,1e-3.'
      )
  if getattr(options, 'axes', False) and not search:
    raise ValueError(
      '--axes searches a parameter at the best learning rate, and --search is '
      'empty. Give --search=3e-4,1e-3, or leave --axes out.'
    )
  if not 1 < options.most < math.inf:
    raise ValueError(
      f'--most={options.most} is not allowed; allowed: above 1. Raise it.'
    )
  if not 0 < options.search_share <= 1:
    raise ValueError(
      f'--search_share={options.search_share} is not allowed; allowed: above '
      '0 to 1.'
    )
  seeds = options.seeds or ('0..1' if options.quick else '0..2')
  seeds = grid.axis(f'seed={seeds}')[1]
  return Rules(
    seeds,
    search,
    options.search_share,
    options.budget,
    options.reference,
    options.most,
    _seed(options.search_seed),
    getattr(options, 'axes', False),
  )


def _seed(text: str) -> str:
  """The one seed of a search, as text."""
  if not text:
    return ''
  seeds = grid.axis(f'seed={text}')[1]
  if len(seeds) > 1:
    raise ValueError(
      f'--search_seed={text} are {len(seeds)} seeds; allowed: one. Leave the '
      'others out.'
    )
  return seeds[0]


def chosen(
  names: str, known: dict[str, Entry], flag: str, default: Sequence[str]
) -> list[Entry]:
  """The entries that a flag names, by themselves or by their group, in its
  order, but for those behind a minus; empty, or all behind one: the default."""
  groups: dict[str, list[str]] = {}
  for label, entry in known.items():
    groups.setdefault(entry.group or label, []).append(label)

  def named(word: str) -> list[str]:
    if word not in known and word not in groups:
      raise ValueError(
        f'--{flag} has {word!r}, which is none. Allowed: {", ".join(known)}, '
        f'or all of {", ".join(sorted(groups.keys() - known.keys()))}.'
      )
    return [word] if word in known else groups[word]

  words = [word.strip() for word in names.split(',') if word.strip()]
  wanted = [x for w in words if w[0] != '-' for x in named(w)] or list(default)
  left_out = [x for w in words if w[0] == '-' for x in named(w[1:])]
  return [known[x] for x in dict.fromkeys(wanted) if x not in left_out]
