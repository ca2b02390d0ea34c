"""`fedms launch`: a run on many processes, or many runs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

LAUNCHERS = {
  'local': 'several processes on this machine',
  'slurm': 'a job of SLURM',
  'kubernetes': 'a Job of Kubernetes',
  'sweep': 'a run for each point of a grid, on any of these',
}


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Starts the launcher that is named first, with the words after it; gives
  its exit code.

  Raises:
    ValueError: there is no such launcher.
  """
  del extra
  name, rest = (words[1] if len(words) > 1 else ''), list(words[2:])
  if name in ('', '-h', '--help'):
    print(usage())
    return 0
  if name not in LAUNCHERS:
    raise ValueError(
      f'{name!r} is no launcher; allowed: {", ".join(LAUNCHERS)}.'
    )
  # Lazy, for each needs another scheduler's words.
  module = importlib.import_module(f'fedms_jax.launch.{name}')
  return module.main(rest)


def usage() -> str:
  """What there is."""
  lines = [
    f'  fedms launch {name:<11}{text}' for name, text in LAUNCHERS.items()
  ]
  return '\n'.join(
    [
      'fedms launch <how> [options] -- [flags of fedms]',
      *lines,
      'The options of each: fedms launch <how> --help.',
    ]
  )
