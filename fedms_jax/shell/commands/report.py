"""`fedms report`: a page on a run, or on the runs of a sweep or benchmark; or
its table alone, as Markdown."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from fedms_jax.persistence import writers
from fedms_jax.report import markdown, page, runs, single, versus
from fedms_jax.shell import flags
from fedms_jax.shell.config import Config


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Writes the page of --workdir and says where it is."""
  config, values = flags.parse_command(words, extra)
  if not config.workdir:
    raise ValueError(
      '--workdir is missing. Give the folder of a finished run, of a sweep or '
      'of a benchmark.'
    )
  root = pathlib.Path(config.workdir)
  path = pathlib.Path(values['out'] or root / 'report.html')
  page.write(path, table(root) if path.suffix == '.md' else text(root))
  print(f'wrote {path}')
  return 0


def table(root: pathlib.Path) -> str:
  """The table of a folder, as Markdown."""
  if (root / runs.SWEEP).exists():
    return markdown.comparison(runs.comparison(root))
  return markdown.single(runs.read(root))


def text(root: pathlib.Path) -> str:
  """The page of a folder."""
  defaults = writers.parse_flags(flags.to_text(Config()))
  if (root / runs.SWEEP).exists():
    return versus.report(runs.comparison(root), defaults)
  return single.report(runs.read(root), defaults)
