"""What the command says beside its results, in one line each."""

from __future__ import annotations

import logging
import sys
import warnings

from fedms_jax.data.names import DataWarning
from fedms_jax.shell import arguments


def own_process() -> None:
  """The process is the command's: it shows what is logged, and warnings of the
  data."""
  _logged()
  _warned()


def _logged() -> None:
  """Shows what is logged, with its time, unless somebody else does."""
  log = logging.getLogger('fedms_jax')
  if not logging.root.handlers and not log.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(
      logging.Formatter('%(asctime)s %(message)s', '%Y-%m-%d %H:%M:%S')
    )
    log.addHandler(handler)
    log.propagate = False  # libraries give the root a handler later on
    log.setLevel(logging.INFO)


def _warned() -> None:
  """Shows warnings of the data as the command's own words, without the place
  in the code."""
  shown = warnings.showwarning

  def show(message, category, *where, **kwargs):
    if issubclass(category, DataWarning):
      line = arguments.in_flags(message)
      print(f'fedms: warning: {line}', file=sys.stderr)
    else:
      shown(message, category, *where, **kwargs)

  warnings.showwarning = show
  warnings.simplefilter('always', DataWarning)
