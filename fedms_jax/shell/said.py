"""What the command says beside its results, in one line each."""

from __future__ import annotations

import sys
import warnings

from fedms_jax.data.names import DataWarning
from fedms_jax.shell import arguments


def own_process() -> None:
  """Shows warnings of the data as the command's own words, without the place
  in the code."""
  shown = warnings.showwarning

  def show(message, category, *where, **kwargs):
    if issubclass(category, DataWarning):
      said = arguments.in_flags(message)
      print(f'fedms: warning: {said}', file=sys.stderr)
    else:
      shown(message, category, *where, **kwargs)

  warnings.showwarning = show
  warnings.simplefilter('always', DataWarning)
