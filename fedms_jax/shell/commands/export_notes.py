"""What is said of a model that is exported."""

from __future__ import annotations

import sys

from fedms_jax.shell import build
from fedms_jax.shell.config import Config


def of_client(config: Config) -> None:
  """Tells of a client's model that is not meant to be used alone."""
  if config.algorithm.name == 'fedms' and build.local_loss(config) == 'mixture':
    print(
      'fedms: note: the local expert of this run learned by the loss of the '
      'mixture: it adds what the global one lacks, and is little alone. Train '
      'with --fedms.local_loss=own for one that is of use alone.',
      file=sys.stderr,
    )
