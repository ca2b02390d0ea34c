"""`fedms completion`: scripts by which shells complete `fedms`.

A script holds all names, so that completing starts no Python. Of a flag with
choices its values are completed, of any other one files.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from fedms_jax.shell import catalog, commands, flags, manual
from fedms_jax.shell import config as config_lib

_BASH = """\
# source <(fedms completion bash)
_fedms() {{
  local line=${{COMP_LINE:0:COMP_POINT}} word
  word=${{line##*[[:space:]]}}
  local commands={commands} flags={flags} found=() values=
  case $word in
    --*=*)
      case ${{word%%=*}} in
{values}
      esac
      if [[ -n $values ]]; then
        mapfile -t found < <(compgen -W "$values" -- "${{word#*=}}")
      else
        compopt -o filenames 2> /dev/null
        mapfile -t found < <(compgen -f -- "${{word#*=}}")
      fi
      ;;
    -*)
      # What follows is a value, so no space after the name.
      compopt -o nospace 2> /dev/null
      mapfile -t found < <(compgen -W "$flags" -- "$word")
      ;;
    *)
      [[ $COMP_CWORD -eq 1 ]] &&
        mapfile -t found < <(compgen -W "$commands" -- "$word")
      ;;
  esac
  COMPREPLY=("${{found[@]}}")
}}
complete -F _fedms fedms
"""
_ZSH = """\
# source <(fedms completion zsh)
autoload -U +X compinit && compinit -u
_fedms() {{
  local -a commands flags
  commands=({commands})
  flags=({flags})
  case $PREFIX in
    --*=*)
      local -a found
      case ${{PREFIX%%=*}} in
{values}
      esac
      compset -P '*='
      if (( $#found )); then compadd -- $found; else _files; fi
      ;;
    -*) compadd -S '' -- $flags ;;
    *) (( CURRENT == 2 )) && compadd -- $commands ;;
  esac
}}
compdef _fedms fedms
"""


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints the script of a shell.

  Raises:
    ValueError: it is none of the three.
  """
  shell, rest = commands.topic(words)
  flags.parse_command(rest, extra)
  if shell not in SCRIPTS:
    raise ValueError(
      f'{shell or "no word"!r} is no shell; allowed: {", ".join(SCRIPTS)}. In '
      'bash: source <(fedms completion bash).'
    )
  print(SCRIPTS[shell](), end='')
  return 0


def choices() -> dict[str, list[str]]:
  """The values of each flag, [] if there is no list of them."""
  found = {}
  for name, field in config_lib.flatten(config_lib.Config).items():
    some = [c for c in field.metadata['choices'] if c]
    if isinstance(field.default, bool):
      some = ['true', 'false']
    found[name] = some
  found['algorithm.name'] = list(catalog.METHODS)
  for command in commands.COMMANDS.values():
    found |= {name: [] for name in command.extra}
  for alias, name in flags.SHORT.items():
    found[alias] = found[name]
  found['preset'] = sorted(path.stem for path in flags.PRESETS.glob('*.flags'))
  return found | {'flagfile': [], 'help': [*manual.groups(), manual.ALL]}


def bash() -> str:
  """For bash."""
  names = [f'--{name}=' for name in choices()]
  return _BASH.format(
    commands=shlex.quote(' '.join(commands.COMMANDS)),
    flags=shlex.quote(' '.join(names)),
    values=_cases('values={}', lambda some: shlex.quote(' '.join(some))),
  )


def zsh() -> str:
  """For zsh, whose words are arrays."""
  return _ZSH.format(
    commands=' '.join(commands.COMMANDS),
    flags=' '.join(f'--{name}=' for name in choices()),
    values=_cases('found=({})', ' '.join),
  )


def fish() -> str:
  """For fish."""
  lines = ['# fedms completion fish | source', 'complete -c fedms -f']
  for name, command in commands.COMMANDS.items():
    lines.append(
      f'complete -c fedms -n __fish_use_subcommand -a {name} '
      f'-d {shlex.quote(command.help)}'
    )
  for name, some in choices().items():
    values = f' -a {shlex.quote(" ".join(some))}' if some else ' -F'
    lines.append(f'complete -c fedms -l {name} -r{values}')
  return '\n'.join(lines) + '\n'


def _cases(line: str, joined) -> str:
  """The branches of a `case` on the name of a flag."""
  return '\n'.join(
    f'        --{name}) {line.format(joined(some))} ;;'
    for name, some in choices().items()
    if some
  )


SCRIPTS = {'bash': bash, 'zsh': zsh, 'fish': fish}
