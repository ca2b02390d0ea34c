"""One unit of work for each line that is read; see `timing.Worker`."""

from __future__ import annotations

import sys
from collections.abc import Callable


def serve(work: Callable[[], object]) -> None:
  """Works until there are no more lines."""
  print('ready', flush=True)
  for _ in sys.stdin:
    work()
    print('done', flush=True)
