"""`fedms status`: how the run of a workdir stands, or those of many."""

from __future__ import annotations

import glob
import pathlib
from collections.abc import Sequence
from typing import Any

from fedms_jax.persistence import status
from fedms_jax.report.lines import grid
from fedms_jax.shell import arguments, flags


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints the status; nothing is written."""
  given, values = flags.parse_command(words, extra)
  if values['all']:
    if given.workdir:
      raise ValueError(
        f'--workdir={given.workdir} is one run and --all={values["all"]} are '
        'several. Leave one of them out.'
      )
    print(_table(values['all']))
    return 0
  config, _ = flags.parse_for_workdir(words, extra)
  found = status.read(config.workdir)
  lines = [status.text(config.workdir, found)]
  if config.privacy.on:
    # Lazy, for it starts JAX, which the status of other runs needs not.
    from fedms_jax.shell import spent

    lines += [f'  {line}' for line in spent.lines(config)]
  print(arguments.in_flags('\n'.join(lines)))
  return 0


def _table(pattern: str) -> str:
  """A line for each run among the folders of a pattern.

  Raises:
    ValueError: none of them holds a run.
  """
  folders = map(pathlib.Path, sorted(glob.glob(str(_home(pattern)))))
  rows, others = [], 0
  for folder in folders:
    if not (folder / 'flags.txt').is_file():
      others += 1  # no run, or one that has not begun
      continue
    try:
      brief = status.brief(status.read(folder))
    except ValueError:  # `fedms status` of it alone says what is wrong
      brief = ['damaged', *['-'] * (len(status.BRIEF) - 1)]
    rows.append([str(folder), *brief, _epsilon(folder)])
  if not rows:
    raise ValueError(
      f'--all={pattern} matches no run ({others} other paths). Give a pattern '
      "of workdirs in quotes, such as --all='runs/*'."
    )
  head = ['run', *status.BRIEF, 'epsilon']
  if all(row[-1] == '-' for row in rows):
    head, rows = head[:-1], [row[:-1] for row in rows]
  lines = grid([head, *rows])
  return '\n'.join(lines + ([f'{others} other paths'] if others else []))


def _home(pattern: str) -> pathlib.Path:
  return pathlib.Path(pattern).expanduser()


def _epsilon(folder: pathlib.Path) -> str:
  """What a private run has spent, '-' for another one, '?' if its flags are
  of another version."""
  try:
    config = flags.parse(['fedms', f'--flagfile={folder / "flags.txt"}',
                          f'--workdir={folder}'])  # fmt: skip
    if not config.privacy.on:
      return '-'
    from fedms_jax.shell import spent  # lazy: see above

    found = spent.found(config)
  except ValueError:
    return '?'
  epsilon = None if found is None else found['epsilon']
  return '?' if epsilon is None else f'{epsilon:.4g}'
