"""The results of a sweep as one tidy table: a row per point, a column per
varied flag, score and total."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from fedms_jax.launch import grid
from fedms_jax.persistence import files, writers
from fedms_jax.persistence.workdir import Workdir


def rows(
  root: pathlib.Path, points: Mapping[str, grid.Point]
) -> tuple[list[dict[str, Any]], list[str]]:
  """The rows of the points that have a summary, and the names of the others.

  A row holds every flag that varies somewhere in the sweep, `<model>.<score>`
  for each score of each model, `total.<entry>` of the ledger, and `workdir`.
  """
  names = list(dict.fromkeys(flag for p in points.values() for flag in p))
  found, missing = [], []
  for folder, point in points.items():
    workdir = root / folder
    summary = Workdir(workdir, True, None).result()
    if summary is None:
      missing.append(folder)
      continue
    values = point if len(point) == len(names) else _flags(workdir)
    found.append(
      {name: grid.typed(name, values[name]) for name in names}
      | _flat(summary['models'])
      | _flat({'total': summary['total']})
      | {'workdir': str(workdir)}
    )
  return found, missing


def write(path: pathlib.Path, found: list[dict[str, Any]]) -> None:
  """Writes rows as CSV, or as Parquet if the name ends in .parquet."""
  import pandas  # lazy: slow, and only collecting needs it

  table = pandas.DataFrame(found)
  save = table.to_parquet if path.suffix == '.parquet' else table.to_csv
  files.write_whole(path, lambda file: save(file, index=False))


def _flags(workdir: pathlib.Path) -> dict[str, str]:
  """All flags of a run: a point made before another flag began to vary."""
  text = (workdir / 'flags.txt').read_text(encoding='utf-8')
  return writers.parse_flags(text)


def _flat(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The numbers of several groups; what is unknown (null) is no number."""
  return {
    f'{group}.{name}': float('nan') if value is None else value
    for group, values in groups.items()
    for name, value in values.items()
  }
