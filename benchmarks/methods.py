"""Does FedMS beat the other ways to adapt a foundation model, on my data?

    python -m benchmarks.methods [--quick] [--methods=fedms,local,...] \\
      [--seeds=0..2] [--search=1e-3,3e-3,1e-2] [--out=FOLDER] -- <fedms flags>

Runs many methods, and FedMS with parts left out, on the same data, and writes
results.csv, results.parquet and report.html into --out. A second start goes
on where the first was killed.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from benchmarks import championship
from benchmarks.contest import Entry
from fedms_jax import catalog
from fedms_jax.commands.listing import PRESETS, presets
from fedms_jax.report import runs
from launch import command

QUICK = ('fedms', 'fedit', 'local', 'fedms/no_sal')
SEARCH = '1e-3,3e-3,1e-2'
_ABLATION = 'ablation_'


def entries() -> dict[str, Entry]:
  """The catalog, and the ablations among the presets."""
  found = {
    name: Entry(name, {'algorithm.name': name}, method.summary)
    for name, method in catalog.METHODS.items()
  }
  for name, (summary, _) in presets(PRESETS).items():
    if name.startswith(_ABLATION):
      label = f'fedms/{name.removeprefix(_ABLATION)}'
      flags = _flags(PRESETS / f'{name}.flags')
      found[label] = Entry(label, {'algorithm.name': 'fedms'} | flags, summary)
  return found


def _flags(path: pathlib.Path) -> dict[str, str]:
  lines = path.read_text(encoding='utf-8').splitlines()
  return runs.options('\n'.join(x for x in lines if x.startswith('--')))


def main(argv: Sequence[str], runner=None) -> int:
  """Runs the benchmark; gives the exit code."""
  own, flags = command.split(argv)
  parser = championship.parser('methods', 'Compares methods.', SEARCH)
  parser.add_argument(
    '--methods', default='', help='rows, such as fedms,local (empty: all)'
  )
  parser.set_defaults(reference='fedms')
  options = parser.parse_args(own)
  base = [*(championship.QUICK if options.quick else []), *flags]
  config = command.check(base)
  known = entries()
  default = QUICK if options.quick else tuple(known)
  rows = championship.chosen(options.methods, known, 'methods', default)
  title = f'Methods on {config.data.source}'
  return championship.run(options, base, rows, title, runner)


if __name__ == '__main__':
  sys.exit(command.run(main))
