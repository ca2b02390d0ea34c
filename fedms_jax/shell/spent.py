"""What a private run has spent so far, from its folder alone."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from fedms_jax.persistence import files, status, writers
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import private
from fedms_jax.shell import privacy, privacy_report
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import EXAMPLE


def lines(config: Config) -> list[str]:
  """The lines on the privacy of the run in --workdir, in the words of its
  summary; one that says why, where it is not known."""
  try:
    done = found(config)
  except ValueError as e:
    return [f'privacy: {e}']
  if done is None:
    return ['privacy: rows of clients are not in the folder; see the summary']
  return private.lines(done)


def found(config: Config) -> dict[str, Any] | None:
  """What summary.json says under 'privacy', or what it would say if the run
  ended after the rounds that are done; None: it cannot be told.

  Who is lost has told nothing, and an accountant of single clients does not
  know of it here: then this is an upper bound.

  Raises:
    ValueError: the accountant is not installed.
  """
  folder = Workdir.look(config.workdir)
  summary = folder.result()
  if summary is not None and 'privacy' in summary:
    return summary['privacy']
  planned = [rounds or 0 for _, rounds in status.read(folder.root).stages]
  records = []
  if folder.metrics.exists():
    records = writers.read_metrics(folder.metrics)
  counted = collections.Counter(line['stage'] for line in records)
  plan = privacy.planned(config, tuple(planned), config.model.blocks)
  done = tuple(counted[i] for i in range(len(planned)))
  rows = None
  if config.privacy.mode == EXAMPLE:
    rows = _rows(folder, config.partition.num_clients)
    if rows is None:
      return None
  return privacy_report.planned(config, plan._replace(rounds=done), rows)


def _rows(folder: Workdir, clients: int) -> np.ndarray | None:
  """Training rows of every client, [N]; None: the folder has not all."""
  try:
    told = files.read_json(folder.partition)
  except (FileNotFoundError, ValueError):
    return None
  rows = np.array(told['train']).sum(1)
  return rows if len(rows) == clients else None
