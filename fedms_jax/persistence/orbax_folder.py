"""A checkpoint's content in a folder of orbax, which `ocp` reads without us.

It has two items: `arrays`, one buffer of bytes by the name `packed`, and
`state`, a JSON object.
"""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import numpy as np

from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.persistence import files

# More than the event loops and threads of one save open at once.
_DESCRIPTORS = 32
# Orbax holds arrays back beyond so many; there is one, and it is in memory.
_GIGABYTES = 10**6


def write(
  folder: pathlib.Path,
  packed: np.ndarray,
  body: dict[str, Any],
  peers: SingleProcess,
) -> None:
  """Makes the folder, in one that is there, in this process alone.

  packed: uint8, at least one. body: what JSON can hold.

  Raises:
    OSError: it cannot be written.
  """
  import orbax.checkpoint as ocp  # lazy: slow, and not every run saves

  items = ocp.args.Composite(
    arrays=ocp.args.StandardSave({'packed': packed}),
    state=ocp.args.JsonSave(body),
  )
  # Tensorstore tells of its disk by errors of value.
  with (
    files.storage(f'{folder} cannot be written', ValueError),
    _checkpointer(peers) as checkpointer,
  ):
    checkpointer.save(folder, args=items)


def read(
  folder: pathlib.Path, peers: SingleProcess
) -> tuple[np.ndarray, dict[str, Any]]:
  """The buffer and the JSON object of a folder.

  Raises:
    Exception: of whatever kind, if the folder is damaged.
  """
  import orbax.checkpoint as ocp

  items = ocp.args.Composite(
    arrays=ocp.args.StandardRestore(), state=ocp.args.JsonRestore()
  )
  with _checkpointer(peers) as checkpointer:
    found = checkpointer.restore(folder, args=items)
  return np.asarray(found['arrays']['packed']), dict(found['state'])


def _checkpointer(peers: SingleProcess):
  """Orbax, of this process alone and without its own lines on the terminal."""
  import orbax.checkpoint as ocp

  files.check_descriptors(_DESCRIPTORS)
  logging.getLogger('absl').addFilter(_not_of_orbax)  # once, however often
  alone = ocp.options.MultiprocessingOptions()
  if peers.processes > 1:  # else orbax would wait for all to save together
    own = peers.process_id
    alone = ocp.options.MultiprocessingOptions(
      primary_host=own,
      active_processes={own},
      barrier_sync_key_prefix=f'process-{own}',
    )
  arrays = ocp.StandardCheckpointHandler(
    save_concurrent_gb=_GIGABYTES,
    restore_concurrent_gb=_GIGABYTES,
    multiprocessing_options=alone,
  )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
    arrays=arrays,
    state=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
  )
  return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _not_of_orbax(record: logging.LogRecord) -> bool:
  """What goes wrong is raised, and said once, in one line."""
  return '/orbax/' not in pathlib.PurePath(record.pathname).as_posix()
