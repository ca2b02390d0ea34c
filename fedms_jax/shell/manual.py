"""Help, page by page: of a command, of a group of flags, of all.

`fedms help`, `-h` and `--help=<group>`; made of the config, as the flags are.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import fedms_jax
from fedms_jax.shell import catalog, commands, flags
from fedms_jax.shell import config as config_lib

ALL = 'all'
RUN = 'run'
_WORDS = ('-h', '-help', '--help', '--helpfull')
# What the groups of a run's flags are about; methods say it themselves.
_ABOUT = {
  RUN: 'the folder, the seed, what is shown',
  'data': 'where rows come from and how they are read',
  'partition': 'who has which rows',
  'cohort': 'who takes part in a round',
  'model': 'the model, its head and tokenizer',
  'pretrain': 'what the server trains before the first stage',
  'algorithm': 'which method, and for how many rounds',
  'prompt': 'soft prompts',
  'lora': 'low-rank adapters',
  'schedule': 'when and where blocks become active',
  'client': "clients' optimizer, steps and batches",
  'server': 'how messages are averaged and applied',
  'gate': 'the gate of FedMS',
  'privacy': 'differential privacy',
  'tasks': 'a sequence of tasks, and what is done against forgetting',
  'attack': 'malicious clients',
  'compression': 'codes of what is sent',
  'time': 'devices, and whom the server waits for',
  'select': 'clients that are chosen by what they reported',
  'secagg': 'sums that the server alone cannot open',
  'engine': 'how the simulator works; changes no meaning',
  'columns': 'what is computed once per row',
  'eval': 'what is scored, when and on what',
  'stop': 'when a stage ends early',
  'checkpoint': 'how often the run is saved',
  'distributed': 'several processes as one run',
}


def asked(name: str, words: Sequence[str]) -> str | None:
  """The page that a command line asks for; None: it asks for none.

  name: of the command, '' for a run. words: the program's name first.

  Raises:
    ValueError: there is no such page.
  """
  if name and commands.COMMANDS[name].own_help:
    return None
  for word in words[1:]:
    flag, _, value = word.partition('=')
    if flag == '--version' and not value:
      return f'fedms {fedms_jax.__version__}'
    if flag not in _WORDS:
      continue
    if value.lower() in ('true', '1'):
      value = ''
    if value:
      return group(value) or page(value)
    if flag == '--helpfull':
      return page(ALL)
    if name:
      return of_command(name)
    return overview() if flag == '-h' else page(ALL)
  return None


def page(topic: str) -> str:
  """Of a command, a group of flags, a method, or 'all'.

  Raises:
    ValueError: there is nothing of that name.
  """
  if topic == ALL:
    return flags.help_text({})
  if topic in commands.COMMANDS:
    return of_command(topic)
  found = group(topic)
  if found or topic in catalog.METHODS:
    return found or _method(topic)
  known = [*commands.COMMANDS, *groups(), *catalog.METHODS, ALL]
  near = difflib.get_close_matches(topic, known, n=3)
  hint = f' Did you mean {" or ".join(near)}?' if near else ''
  raise ValueError(
    f'there is no help on {topic!r}.{hint} `fedms help` lists commands and '
    'groups of flags; a method or `all` may be asked for, too.'
  )


def overview() -> str:
  """What there is: the commands, and the groups of flags."""
  return '\n'.join(
    [
      'fedms: federated fine-tuning of foundation models, simulated.',
      '',
      'Usage: fedms [--name=value ...]',
      commands.usage(),
      'Groups of flags, each shown by `--help=<group>`; `--help` shows all:',
      *_list(groups()),
      '',
      f'{_switches()} Options of a method: `--help=<method>`; methods: '
      '`fedms list algorithms`.',
    ]
  )


def of_command(name: str) -> str:
  """The page of a command: its own flags first."""
  command = commands.COMMANDS[name]
  words = f' {command.words}' if command.words else ''
  lines = [f'fedms {name}{words} [--name=value ...]', f'  {command.help}']
  if command.extra:
    lines += ['', 'Its own flags:', *of_extra(command.extra)]
  every = config_lib.flatten(config_lib.Config)
  shared = [n for n in command.flags if n in every]
  if shared:
    lines += ['', 'Flags of a run that it always looks at:']
    for flag in shared:
      lines += flags.help_lines(flag, every[flag])
  lines += ['', 'Flags of a run, by group; `--help=<group>` shows one:']
  first = [n for n in command.flags if n in _ABOUT]
  order = dict.fromkeys([*first, *groups()])
  lines += _list({n: _ABOUT[n] for n in order})
  return '\n'.join([*lines, '', _switches()])


def of_extra(extra: Mapping[str, tuple[Any, str]]) -> list[str]:
  """Lines on the flags that only one command has."""
  lines = []
  for name, (default, text) in extra.items():
    lines.append(f'  --{name}={default}')
    lines += textwrap.wrap(
      text, 80, initial_indent=' ' * 6, subsequent_indent=' ' * 6
    )
  return lines


def groups() -> dict[str, str]:
  """The groups of flags that all methods share, with a line each."""
  found = dict.fromkeys(
    flags.section_of(n) for n in config_lib.flatten(config_lib.Config)
  )
  return {
    n: _ABOUT.get(n, 'options') for n in found if n not in catalog.METHODS
  }


def group(name: str) -> str:
  """The flags of a group or of a method, '' if there are none."""
  lines = []
  for flag, field in config_lib.flatten(config_lib.Config).items():
    if flags.section_of(flag) == name:
      lines += flags.help_lines(flag, field)
  if not lines:
    return ''
  about = groups().get(name)
  if about is None:
    about = catalog.METHODS[name].summary
  return '\n'.join([f'{name}: {about}', *lines])


def _method(name: str) -> str:
  """Of a method without options."""
  method = catalog.METHODS[name]
  return (
    f'{name}: {method.summary} [{method.paper}]\n'
    f'  It has no options of its own: --algorithm.name={name}'
  )


def _list(entries: Mapping[str, str]) -> list[str]:
  width = max(map(len, entries))
  return [f'  {name.ljust(width)}  {text}' for name, text in entries.items()]


def _switches() -> str:
  return (
    'A bool `--x` is also switched off by `--nox`; `--flagfile=FILE` reads '
    'flags\nfrom a file, `--preset=NAME` from one of `fedms list presets`.'
  )
