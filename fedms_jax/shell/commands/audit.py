"""`fedms audit`: what a run of some flags would tell of its clients' data."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from fedms_jax.persistence import files
from fedms_jax.report import audited
from fedms_jax.shell import audits, flags, program_cache
from fedms_jax.simulation import inversion

WHAT = ('canaries', 'membership', 'inversion')


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Runs the audit and prints what it found; of a finished run in --workdir it
  is kept there, for the report."""
  config, values = flags.parse_command(words, extra)
  if config.workdir:
    config, values = flags.parse_for_workdir(words, extra)
  what, rows = values['what'], values['rows']
  if what not in WHAT:
    raise ValueError(
      f'--what={what!r} is not allowed; allowed: {", ".join(WHAT)}.'
    )
  for name, least in (('rows', 0), ('steps', 1)):
    if values[name] < least:
      raise ValueError(
        f'--{name}={values[name]} is not allowed; allowed: at least {least}.'
      )
  program_cache.begin()
  if what == 'canaries':
    found = audits.canaries(config, values['canaries'])
  elif what == 'membership':
    found = audits.shadows(config, values['shadows'], rows or 1000)
  else:
    search = inversion.Search(values['steps'])
    found = audits.inverted(config, rows or 4, search)
  print('\n'.join(audited.lines(found)))
  if values['out']:
    _write(pathlib.Path(values['out']), found)
  if config.workdir:
    path = pathlib.Path(config.workdir) / audited.FILE
    kept = files.read_json(path) if path.exists() else {}
    _write(path, kept | {what: found})
  return 0


def _write(path: pathlib.Path, found: dict[str, Any]) -> None:
  files.write_atomic(path, json.dumps(found, indent=2) + '\n')
