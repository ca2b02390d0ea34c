"""Does FedMS beat the other ways to adapt a foundation model, on my data?

    python -m benchmarks.methods [--quick] [--methods=fedms,local,...] \\
      [--seeds=0..2] [--search=1e-3,3e-3,1e-2] [--budget=bytes|flops] \\
      [--axes] [--out=FOLDER] -- <fedms flags>

Runs many methods, and FedMS with parts left out, on the same data, and writes
results.csv, results.parquet, report.html and table.md into --out. A second
start goes on where the first was killed.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from benchmarks import search_and_seeds
from benchmarks.contest import Axis, Entry
from fedms_jax.launch import command
from fedms_jax.persistence import writers
from fedms_jax.shell import catalog
from fedms_jax.shell.commands.listing import presets
from fedms_jax.shell.config import ClientConfig, Config
from fedms_jax.shell.flags import PRESETS
from fedms_jax.shell.methods.black_box import DESCENT

QUICK = ('fedms', 'fedit', 'local', 'fedms/no_sal')
SEARCH = '1e-3,3e-3,1e-2'
# Adaptive server optimizers move each parameter by about the rate in a round,
# whatever its scale, and LoRA is small: so theirs begin below the 1e-2 to 1e-1
# of FedOpt (arXiv 2003.00295).
_ADAPTIVE = ('3e-3', '1e-2', '3e-2')
# FedAvg of LoRA with these at the server, and the rates that a search tries;
# without one it is the middle rate.
_SERVERS = {
  'fedavgm': ('momentum', ('0.1', '0.3', '1')),
  'fedadagrad': ('adagrad', _ADAPTIVE),
  'fedadam': ('adam', _ADAPTIVE),
  'fedyogi': ('yogi', _ADAPTIVE),
}
# Rows without a learning rate, and what, if anything, is searched in its place.
_ALONE = {
  'ncm': None,
  'fedkseed': Axis('fedkseed.rate', ('1e-4', '1e-3', '1e-2')),
  'blackvip': Axis('blackvip.rate', ('1e-3', '1e-2', '1e-1')),
  'bbt': Axis('bbt.sigma', ('0.3', '1', '3')),
  'fedbpt': Axis('fedbpt.sigma', ('0.3', '1', '3')),
  'ridge': Axis('ridge.strength', ('0.1', '1', '10')),
  'fgl': Axis('fgl.learning_rate', ('0.003', '0.01', '0.03')),
}
# A parameter of a method alone that --axes searches at the best learning rate;
# the middle value is the default. FedMS has the blocks that it begins with, see
# `with_axes`.
AXES = {
  'ditto': Axis('ditto.pull', ('0.03', '0.1', '0.3')),
  'apfl': Axis('apfl.alpha', ('0.25', '0.5', '0.75')),
  'fedrep': Axis('fedrep.head_share', ('0.25', '0.5', '0.75')),
  'feddpa': Axis('feddpa.scale', ('0.3', '0.5', '0.7')),
  'pfedme': Axis('pfedme.pull', ('5', '15', '45')),
  'pfedlora': Axis('pfedlora.weight', ('0.25', '0.5', '0.75')),
  'fedprox': Axis('fedprox.mu', ('0.001', '0.01', '0.1')),
  'fedfn': Axis('fedfn.head_rate', ('3', '10', '30')),
}
# Rows that have no rate do not descend: what shared flags say of descent is
# nothing of theirs, and some refuse it.
_IDLE = {
  f'client.{name}': str(getattr(ClientConfig(), name)) for name in DESCENT
}
_ONCE = ('ncm', 'ridge', 'fgl')
_ABLATION = 'ablation_'
# As its paper has it, no other method activates its blocks one by one.
_DENSE = {'schedule.name': 'dense'}


def entries(config: Config | None = None) -> dict[str, Entry]:
  """The catalog, server optimizers, and the ablations among the presets; what
  is not FedMS trains all blocks from the start. config: of the flags that all
  rows share; None: the defaults."""
  config = config or Config()
  families = catalog.families()
  found = {
    name: Entry(
      name,
      {'algorithm.name': name} | (_DENSE if name != 'fedms' else {}),
      method.summary,
      _ALONE.get(name),
      families[name],
      alone=name in _ALONE,
      once=name in _ONCE,
    )
    for name, method in catalog.METHODS.items()
  }
  found['fgl'], found['fgl/fedavg'] = _generated(found['fgl'], config)
  for label, (optimizer, rates) in _SERVERS.items():
    flags = {
      'algorithm.name': 'fedit',
      **_DENSE,
      'server.optimizer': optimizer,
      'server.learning_rate': rates[1],
    }
    note = f'FedAvg of LoRA, the server takes the mean update by {optimizer}'
    axis = Axis('server.learning_rate', rates)
    found[label] = Entry(label, flags, note, axis, families['fedit'])
  for name, (summary, _) in presets(PRESETS).items():
    if name.startswith(_ABLATION):
      label = f'fedms/{name.removeprefix(_ABLATION)}'
      flags = {'algorithm.name': 'fedms'} | _flags(PRESETS / f'{name}.flags')
      group = families['fedms']
      found[label] = Entry(label, flags, summary, group=group)
  return {
    label: entry._replace(flags=entry.flags | _IDLE) if entry.alone else entry
    for label, entry in found.items()
  }


def with_axes(known: dict[str, Entry], config: Config) -> dict[str, Entry]:
  """The rows with what --axes searches of each."""
  found = {}
  for label, entry in known.items():
    axis = _starts(config) if label == 'fedms' else AXES.get(label)
    if axis is not None and axis.values:
      value = axis.values[(len(axis.values) - 1) // 2]
      flags = entry.flags | {axis.flag: value}
      entry = entry._replace(flags=flags, axis=axis)
    found[label] = entry
  return found


def _starts(config: Config) -> Axis:
  """With how many blocks SAL may begin: one, half of them, or all."""
  known = config.model.blocks if config.model.built_in else 2
  most = config.schedule.cap or known
  values = sorted({1, -(-most // 2), most})
  return Axis('schedule.start', tuple(map(str, values)))


def _generated(fgl: Entry, config: Config) -> tuple[Entry, Entry]:
  """FGL in one round of all clients; and with FedAvg in the other rounds."""
  a = config.algorithm
  rest = max(1, a.stage1_rounds + a.stage2_rounds - 1)
  flags = fgl.flags | {'algorithm.stage1_rounds': '1'}
  everybody = {'cohort.size': str(config.partition.num_clients)}
  once = fgl._replace(
    flags=flags | everybody | {'algorithm.stage2_rounds': '0'},
    note=f'{fgl.note}; one round of all clients, and no FedAvg',
  )
  several = fgl._replace(
    label='fgl/fedavg',
    flags=flags | {'algorithm.stage2_rounds': str(rest)},
    axis=None,
    alone=False,
    once=False,
  )
  return once, several


def _flags(path: pathlib.Path) -> dict[str, str]:
  lines = path.read_text(encoding='utf-8').splitlines()
  return writers.parse_flags('\n'.join(x for x in lines if x.startswith('--')))


def parser() -> argparse.ArgumentParser:
  """The benchmark's own options."""
  options = search_and_seeds.parser('methods', 'Compares methods.', SEARCH)
  options.add_argument(
    '--methods',
    default='',
    help='rows or families of them, such as fedms,local,prompts; -fedms leaves '
    'one out (empty: all)',
  )
  options.add_argument(
    '--axes',
    action='store_true',
    help='also search one parameter of each method that has one',
  )
  options.set_defaults(reference='fedms')
  return options


def main(argv: Sequence[str], runner=None) -> int:
  """Runs the benchmark; gives the exit code."""
  own, flags = command.split(argv)
  options = parser().parse_args(own)
  base = [*(search_and_seeds.QUICK if options.quick else []), *flags]
  config = command.check(base)
  known = entries(config)
  if options.axes:
    known = with_axes(known, config)
  default = QUICK if options.quick else tuple(known)
  rows = search_and_seeds.chosen(options.methods, known, 'methods', default)
  title = f'Methods on {config.data.source}'
  return search_and_seeds.run(options, base, rows, title, runner)


if __name__ == '__main__':
  sys.exit(command.run(main))
