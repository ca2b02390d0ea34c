"""Several processes as one run, on JAX's own distributed runtime.

Every process runs the same driver over the same cohorts and trains those
clients that are its own. What they tell each other: the totals of a round
(`placement.py`), and small host values (`processes.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import signal
import sys
from collections.abc import Iterator

import jax

from fedms_jax.cluster.host import Membership
from fedms_jax.cluster.processes import ProcessGroup, SingleProcess
from fedms_jax.cluster.signals import EXIT_SAVED, leave

# Hosts of a job may be minutes apart when they start: images are pulled.
JOIN_SECONDS = 300


@contextlib.contextmanager
def joined(member: Membership, timeout: int) -> Iterator[SingleProcess]:
  """The peers of this process, while the run lasts.

  timeout: seconds after which a lost process is noticed. Who loses a peer
  ends at once with the exit code 75: the run goes on from its last checkpoint
  when all are started again.
  """
  if member.processes == 1:
    yield SingleProcess()
    return
  _exit_where_jax_aborts()
  # The preemption service would take SIGTERM away from `signals.py`.
  jax.config.update('jax_enable_preemption_service', False)
  with _ended_by_a_loss():
    jax.distributed.initialize(
      member.coordinator,
      member.processes,
      member.process_id,
      coordinator_bind_address=bind_address(member.coordinator),
      local_device_ids=member.devices,
      cluster_detection_method='deactivate',
      initialization_timeout=max(timeout, JOIN_SECONDS),
      heartbeat_timeout_seconds=timeout,
      shutdown_timeout_seconds=timeout,
    )
    yield ProcessGroup(member.process_id, member.processes)
    jax.distributed.shutdown()


def bind_address(coordinator: str) -> str | None:
  """Where process 0 listens: whoever connects there is trusted, so a run of
  this machine alone is not offered to others. None: JAX's default, all
  interfaces, for only they reach the hosts of a run."""
  host, _, _ = coordinator.rpartition(':')
  host = host.strip('[]')
  try:
    local = ipaddress.ip_address(host).is_loopback
  except ValueError:
    local = host == 'localhost'
  return coordinator if local else None


@contextlib.contextmanager
def _ended_by_a_loss() -> Iterator[None]:
  """Ends the process where the runtime reports that another one is gone."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' in str(e):
      raise  # our own device's memory
    first = str(e).splitlines()[0][:200]
    print(
      f'fedms: a process of this run was lost ({first}); start all of them '
      'again, to be resumed.',
      file=sys.stderr,
    )
    leave(EXIT_SAVED)  # an orderly end would wait for the lost process


_kept = []  # C holds the handler's address only


def _exit_where_jax_aborts() -> None:
  """Turns an abort into an exit code that schedulers understand.

  When the coordinator is gone, or a peer's heartbeat, JAX's runtime aborts
  the process from a thread of its own, and Python is not asked. A handler in
  C is: it is called before the process would die.
  """

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(number):
    del number
    os.write(2, b'fedms: a process of this run was lost; start all of them '
             b'again, to be resumed.\n')  # fmt: skip
    os._exit(EXIT_SAVED)

  _kept.append(handler)
  ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
