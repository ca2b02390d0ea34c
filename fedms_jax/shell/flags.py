"""Command-line flags, made of the config dataclasses.

Every leaf of `Config` is one flag named `section.field`; its type is that of
its default, its help and allowed values are the field's. Parsing needs
neither jax nor a global: each `parse` has its own `FlagValues`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from fedms_jax.shell import catalog, commands, fields, plugins
from fedms_jax.shell import config as config_lib
from fedms_jax.shell.flag_values import Parser, did_you_mean

# Short names for what is typed most: alias -> flag.
SHORT = {'schedule': 'schedule.name'}
# And the names that flags had in earlier versions.
ALIASES = SHORT | fields.renamed(config_lib.Config)
# These say how one command runs, not what the run computes: flags.txt leaves
# them out, so that it can be fed to a run in another folder.
PER_COMMAND = (
  'workdir',
  'resume',
  'break_lock',
  'log_seconds',
  'log_rounds',
  'distributed.coordinator',
  'distributed.processes',
  'distributed.process_id',
  'distributed.timeout',
)

# Flag files that come with the package, for --preset=<name>.
PRESETS = pathlib.Path(__file__).parents[1] / 'presets'

_USAGE = """\
fedms: federated fine-tuning of foundation models, simulated.

Usage: fedms [--name=value ...]
{commands}
A bool `--x` is also switched off by `--nox`. `--flagfile=FILE` reads flags
from a file, one per line, `--preset=NAME` from one of `fedms list presets`; of
a flag given twice the last one counts. `--version` says which version this is.
"""


def define(
  flag_values: absl_flags.FlagValues = absl_flags.FLAGS,
) -> absl_flags.FlagValues:
  """Adds one flag per option of `Config` to `flag_values`, and returns it."""
  for name, field in config_lib.flatten(config_lib.Config).items():
    kind = type(field.default)
    flag = absl_flags.Flag(
      Parser(kind, field),
      absl_flags.ArgumentSerializer(),
      name,
      field.default,
      field.metadata['help'],
      boolean=kind is bool,
    )
    absl_flags.DEFINE_flag(flag, flag_values, module_name=section_of(name))
  for alias, name in ALIASES.items():
    absl_flags.DEFINE_alias(alias, name, flag_values=flag_values)
  return flag_values


def read(flag_values: absl_flags.FlagValues) -> config_lib.Config:
  """The config that parsed flags of `define` spell out."""
  names = config_lib.flatten(config_lib.Config)
  return config_lib.from_values(
    {name: flag_values[name].value for name in names}
  )


def parse(argv: Sequence[str]) -> config_lib.Config:
  """The validated config of a command line; see `parse_command`."""
  return parse_command(argv, {})[0]


def parse_command(
  argv: Sequence[str], extra: Mapping[str, tuple[Any, str]]
) -> tuple[config_lib.Config, dict[str, Any]]:
  """The validated config of a command line, and its further flags.

  Args:
    argv: the words of the command line, the program's name first.
    extra: default and help of the flags that only one command has, by name.

  Raises:
    ValueError: an unknown flag, a value that is not allowed, an unreadable
      flag file or a word that is no flag.
    SystemExit: with code 0, after `--help` was printed.
  """
  _load_plugins(argv)
  flag_values = define(absl_flags.FlagValues())
  for name, (default, text) in extra.items():
    absl_flags.DEFINE_flag(
      absl_flags.Flag(
        Parser(type(default)),
        absl_flags.ArgumentSerializer(),
        name,
        default,
        text,
      ),
      flag_values,
    )
  for name in ('help', 'helpfull'):
    absl_flags.DEFINE_bool(name, False, 'show this', flag_values=flag_values)
  rest = _parsed(flag_values, argv)
  if flag_values['help'].value or flag_values['helpfull'].value:
    print(help_text(extra))
    raise SystemExit(0)
  if rest:
    raise ValueError(
      f'{rest[0]!r} is no flag; write --name=value. `--help` lists all flags.'
    )
  config = read(flag_values)
  config_lib.validate(config)
  return config, {name: flag_values[name].value for name in extra}


def _load_plugins(argv: Sequence[str]) -> None:
  """Loads the plugins that a command line names, for flags are made of what
  they declare, too."""
  early = absl_flags.FlagValues()
  for name in ('plugin', 'algorithm.name', 'stages'):
    absl_flags.DEFINE_string(name, '', '', flag_values=early)
  try:
    early(list(argv), known_only=True)
  except (absl_flags.Error, UnicodeDecodeError):
    return  # the whole command line is refused, with what is wrong
  said = {name: str(early[name].value) for name in early}
  plugins.load(said['plugin'])
  for name in ('algorithm.name', 'stages'):
    catalog.known(said[name].split(',')[-1].strip())


def _parsed(flag_values, argv: Sequence[str]) -> list[str]:
  """The words that are no flags; the rest is in `flag_values` then."""
  try:
    return flag_values(_with_presets(argv))[1:]
  except absl_flags.UnrecognizedFlagError as e:
    known = [name for name in flag_values if name not in ALIASES]
    hint = did_you_mean(e.flagname, known, prefix='--')
    raise ValueError(
      f'--{e.flagname} is no flag.{hint} `--help` lists all flags.'
    ) from None
  except UnicodeDecodeError as e:
    named = [w for w in argv if w.lstrip('-').startswith('flagfile')]
    raise ValueError(
      f'{", ".join(named)} is no file of text: {e.reason} at byte {e.start}. '
      'Give a file with one --name=value per line.'
    ) from None
  except absl_flags.Error as e:
    text = str(e).removeprefix('flag ').removeprefix('ERROR:: ')
    raise ValueError(_short(text)) from None


def _with_presets(argv: Sequence[str]) -> list[str]:
  """The words, with a preset as the flag file that it is.

  Raises:
    ValueError: there is no preset of this name.
  """
  words, out = iter(argv), []
  for word in words:
    name, given, value = word.partition('=')
    if word == '--':
      return [*out, word, *words]
    if name not in ('--preset', '-preset'):
      out.append(word)
      continue
    value = value if given else next(words, '')
    file = PRESETS / f'{value}.flags'
    known = sorted(path.stem for path in PRESETS.glob('*.flags'))
    if value not in known:
      raise ValueError(
        f'--preset={value} is no preset.{did_you_mean(value, known)} Presets: '
        f'{", ".join(known)}.'
      )
    out.append(f'--flagfile={file}')
  return out


def _short(text: str) -> str:
  """A message of one line, whatever was typed."""
  text = ' '.join(text.split())
  return text if len(text) < 1000 else f'{text[:300]} ... {text[-300:]}'


def parse_for_workdir(
  argv: Sequence[str], extra: Mapping[str, tuple[Any, str]], free: str = ''
) -> tuple[config_lib.Config, dict[str, Any]]:
  """As `parse_command`, for a command on the run in --workdir: its config.

  free: a section in which this command line may say something else.

  Raises:
    ValueError: there is no such run, or it was not made with these flags.
  """
  given, _ = parse_command(argv, extra)
  file = pathlib.Path(given.workdir, 'flags.txt')
  if not given.workdir or not file.is_file():
    raise ValueError(
      f'--workdir={given.workdir} holds no run: {file} does not exist. Give '
      'the folder of a run that was started with --workdir.'
    )
  saved = [argv[0], f'--flagfile={file}']
  config, values = parse_command([*saved, *argv[1:]], extra)
  theirs = config_lib.values(parse(saved))
  for name, value in config_lib.values(config).items():
    own = name in PER_COMMAND or (free and name.startswith(f'{free}.'))
    if value != theirs[name] and not own:
      raise ValueError(
        f'--{name}={value} is not what the run was made with, {theirs[name]}. '
        'Leave it out.'
      )
  return config, values


def to_text(config: config_lib.Config) -> str:
  """One `--name=value` line per option, in the order of declaration.

  Feeding the text back with `--flagfile` gives an equal config, except for
  the options of `PER_COMMAND`, which are left out.

  Raises:
    ValueError: a text that a line of a flag file cannot hold.
  """
  lines = []
  for name, value in config_lib.values(config).items():
    if name in PER_COMMAND:
      continue
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if text != text.strip() or len(text.splitlines()) > 1:
      raise ValueError(
        f'--{name}={value!r} cannot be kept in a flag file; allowed: a single '
        'line without spaces around it.'
      )
    lines.append(f'--{name}={text}\n')
  return ''.join(lines)


def as_kept(text: str, file: pathlib.Path) -> str:
  """A text of `to_text`; in the words of `file` where these say the same, as
  those of an earlier version do, which had other names or fewer options."""
  try:
    kept = file.read_text(encoding='utf-8')
    same = to_text(parse(['fedms', f'--flagfile={file}'])) == text
  except (OSError, ValueError):  # it is for others to say what is wrong
    return text
  return kept if same else text


def help_text(extra: Mapping[str, tuple[Any, str]]) -> str:
  """Every flag, by section, with its default, its help and what it allows;
  first those of the command."""
  lines = [_USAGE.format(commands=commands.usage())]
  for name, (default, text) in extra.items():
    lines += [f'  --{name}={default}', f'      {text}']
  section = None
  for name, field in config_lib.flatten(config_lib.Config).items():
    if section_of(name) != section:
      section = section_of(name)
      lines.append(f'{section}:')
    lines += help_lines(name, field)
  aliases = ', '.join(f'--{a} is --{name}' for a, name in SHORT.items())
  lines.append(f'Short names: {aliases}.')
  return '\n'.join(lines)


def help_lines(name: str, field: dataclasses.Field) -> list[str]:
  """The lines of one flag in the help."""
  default, rule = field.default, field.metadata
  shown = str(default).lower() if isinstance(default, bool) else default
  text = rule['help']
  if rule['choices']:
    text += f'; one of: {", ".join(c or "(empty)" for c in rule["choices"])}'
  if rule['plugins']:
    text += f'; or one of the {rule["plugins"]} of plugins'
  bounds = [
    f'{words} {rule[key]}'
    for key, words in (
      ('above', 'more than'),
      ('low', 'at least'),
      ('high', 'at most'),
    )
    if rule[key] is not None
  ]
  if bounds:
    text += f'; {", ".join(bounds)}'
  body = textwrap.wrap(
    text, 80, initial_indent=' ' * 6, subsequent_indent=' ' * 6
  )
  return [f'  --{name}={shown}', *body]


def section_of(name: str) -> str:
  """The group that a flag is shown in."""
  return name.rpartition('.')[0] or 'run'
