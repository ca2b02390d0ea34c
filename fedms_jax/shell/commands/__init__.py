"""The commands beside the run itself: `fedms export`, `fedms eval`, ...

A table of names: what a command does is imported when it is called.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class Command(NamedTuple):
  """help: one line. module: its `run(argv, extra) -> exit code` is called;
  extra: default and help of the flags that it adds to those of a run. flags:
  flags and groups of a run that its help shows first. words: those that are no
  flags, as its help has them. own_help: it answers --help by itself."""

  help: str
  module: str
  extra: dict[str, tuple[Any, str]]
  flags: tuple[str, ...] = ()
  words: str = ''
  own_help: bool = False


_OF_RUN = ('workdir',)
COMMANDS = {
  'export': Command(
    'write a model of a workdir for PEFT or transformers',
    'fedms_jax.shell.commands.export',
    {
      'what': (
        'global',
        'global (the global expert as an adapter), client:<id> (the local '
        'expert of a client as an adapter), merged or merged:<id> (the same '
        'merged into the whole model); what is no LoRA, such as a prompt, and '
        'what is beside the built-in vit, is written as arrays',
      ),
      'out': ('', 'folder to write; made if absent'),
    },
    flags=_OF_RUN,
  ),
  'eval': Command(
    'evaluate the newest checkpoint of a workdir, finished or running',
    'fedms_jax.shell.commands.evaluation',
    {},
    flags=(*_OF_RUN, 'eval'),
  ),
  'status': Command(
    'how the run of a workdir stands, from any machine that sees it',
    'fedms_jax.shell.commands.status',
    {'all': ('', "folders of runs, a line each; a pattern: --all='runs/*'")},
    flags=_OF_RUN,
  ),
  'report': Command(
    'a page with tables and figures of a workdir, or of a sweep or benchmark',
    'fedms_jax.shell.commands.report',
    {
      'out': (
        '',
        'file to write; one that ends in .md gets the table alone (empty: '
        'report.html in the workdir)',
      )
    },
    flags=_OF_RUN,
  ),
  'list': Command(
    'what can be chosen: algorithms, schedules, ..., and what plugins add',
    'fedms_jax.shell.commands.listing',
    {},
    words='[algorithms]',
  ),
  'check': Command(
    'whether a run could start: flags, data and model, without training',
    'fedms_jax.shell.commands.check',
    {},
    flags=(*_OF_RUN, 'data', 'partition', 'model', 'algorithm'),
  ),
  'launch': Command(
    'a run on many processes, of SLURM or Kubernetes, or many runs',
    'fedms_jax.shell.commands.launch',
    {},
    words='local|slurm|kubernetes|sweep [options] --',
    own_help=True,
  ),
  'help': Command(
    'a page on a command, a group of flags, a method, or all',
    'fedms_jax.shell.commands.help',
    {},
    words='[command, group or method]',
    own_help=True,
  ),
  'completion': Command(
    'a script by which a shell completes commands, flags and values',
    'fedms_jax.shell.commands.completion',
    {},
    words='bash|zsh|fish',
  ),
  'new': Command(
    'a package of your own, to begin from: a method, a schedule and a test',
    'fedms_jax.shell.commands.new',
    {},
    words='<folder>',
  ),
  'profile': Command(
    "where a round's time goes, and a trace of it",
    'fedms_jax.shell.commands.profile',
    {
      'rounds': (5, 'rounds of each stage to measure'),
      'warmup': (2, 'rounds before them, which compile'),
      'out': ('', 'folder of the traces (empty: profile in the workdir)'),
    },
    flags=('engine', 'columns'),
  ),
  'audit': Command(
    "what a run of these flags would tell of its clients' data",
    'fedms_jax.shell.commands.audit',
    {
      'what': (
        'canaries',
        'canaries (a lower bound on the epsilon of a private run), membership '
        '(LiRA: which rows were trained on, by many runs), inversion (the one '
        'row of a client, from its first message)',
      ),
      'canaries': (64, 'clients that are canaries'),
      'shadows': (8, 'runs with half of the rows each, for membership'),
      'rows': (
        0,
        'rows that are asked for (0: 1000 of membership, 4 of inversion)',
      ),
      'steps': (500, 'steps of the search, for inversion'),
      'out': ('', 'file to write the result to, as JSON'),
    },
  ),
  'plan': Command(
    'what a run would cost, before anything is trained',
    'fedms_jax.shell.commands.plan',
    {
      'classes': (10, 'classes of the head'),
      'encrypted': (
        0,
        'also what a step would cost on ciphertexts of CKKS, which devices '
        'send to a server that tunes LoRA, where they bear so many '
        'multiplications one after another (0: not; a model, after PrivTuner)',
      ),
      'encrypted_weight': (0.01, 'joules that a bit of security is worth'),
      'radio_mhz': (20.0, 'band that the devices of a cohort share'),
      'radio_watts': (0.1, 'power that a device sends with'),
      'split': (
        1,
        'devices of a client that trains all weights (--stages), over which '
        'its weights, moments and batch are split',
      ),
      'rate': (0.0, 'FLOP/s of such a client in all, for seconds (0: none)'),
    },
    flags=('model.name', 'model', 'algorithm', 'lora', 'client', 'privacy'),
  ),
}


def split(argv: Sequence[str]) -> tuple[str, list[str]]:
  """(name of the command, '' for the run itself; the words without it)."""
  words = list(argv)
  if len(words) < 2 or words[1].startswith('-'):
    return '', words
  name = words[1]
  if name not in COMMANDS:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(
      f'{name!r} is no command. Commands: {", ".join(COMMANDS)}.{hint} Without '
      'one, fedms runs what its flags say.'
    )
  return name, [words[0], *words[2:]]


def run(name: str, words: Sequence[str]) -> int:
  """Runs a command; gives the exit code."""
  command = COMMANDS[name]
  return importlib.import_module(command.module).run(words, command.extra)


def topic(words: Sequence[str], usual: str = '') -> tuple[str, list[str]]:
  """(the one word that is no flag, or `usual`; the other words).

  Raises:
    ValueError: there are several.
  """
  found = [w for w in words[1:] if not w.startswith('-')]
  if len(found) > 1:
    raise ValueError(f'{" ".join(found)} is more than one word; give one.')
  rest = [w for w in words[1:] if w.startswith('-')]
  return (found[0] if found else usual), [words[0], *rest]


def usage() -> str:
  """The commands, a line each."""
  width = max(map(len, COMMANDS))
  return ''.join(
    f'       fedms {name.ljust(width)} [--name=value ...]   {command.help}\n'
    for name, command in COMMANDS.items()
  )
