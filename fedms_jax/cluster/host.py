"""Which of how many processes this one is: from flags, or the scheduler.

Schedulers are read through a mapping of environment variables, so that all
of this is tested without a cluster. Nothing here starts or asks anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

# Above the ports that Linux gives to outgoing connections by default.
_FIRST_PORT, _PORTS = 61440, 4096


class Membership(NamedTuple):
  """The place of a process among those of a run.

  coordinator: host:port where process 0 listens, '' for a single process.
  processes: how many. process_id: 0 to processes - 1. devices: ordinals of
  the accelerators that this process uses; None: all that it sees.
  """

  coordinator: str = ''
  processes: int = 1
  process_id: int = 0
  devices: tuple[int, ...] | None = None


def membership(
  coordinator: str,
  processes: int,
  process_id: int,
  environment: Mapping[str, str],
) -> Membership:
  """Finds the place of this process.

  Args:
    coordinator: the flag `distributed.coordinator`, '' if not given.
    processes: the flag `distributed.processes`; 0: the variables of SLURM
      (a step of `srun`), of `fedms launch kubernetes` or of a TPU slice
      decide, and without any of them the process is alone.
    process_id: the flag `distributed.process_id`, -1 if not given.
    environment: `os.environ`, or what stands for it.

  Raises:
    ValueError: flags or variables are incomplete or contradict each other.
  """
  if processes:
    return _checked(Membership(coordinator, processes, process_id), 'flags')
  if coordinator or process_id != -1:
    raise ValueError(
      f'`coordinator`={coordinator!r} and '
      f'`process_id`={process_id} need `processes`, '
      'the number of processes. Give all three, or none.'
    )
  for name, (present, read) in _SCHEDULERS.items():
    if present(environment):
      try:
        found = read(environment)
      except KeyError as e:
        raise ValueError(
          f'the environment of {name} lacks {e.args[0]}. Start the processes '
          'as launch/README.md says, or give `processes`=1.'
        ) from None
      return _checked(found, f'the environment of {name}')
  return Membership()


def _checked(found: Membership, where: str) -> Membership:
  """`found`, if it is whole; a single process has nothing else to say."""
  coordinator, processes, process_id, _ = found
  if processes == 1 and not coordinator and process_id in (-1, 0):
    return Membership()
  if not 0 <= process_id < processes:
    raise ValueError(
      f'{where}: the number of this process, {process_id}, is not one of '
      f'{processes} processes; allowed: 0 to {processes - 1}.'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise ValueError(
      f'{where}: the coordinator {coordinator!r} of {processes} processes is '
      'no host:port; write the host of process 0 and a free port there, such '
      'as node1:61440.'
    )
  return found if processes > 1 else Membership()


def _number(environment: Mapping[str, str], name: str) -> int:
  """A variable that holds a whole number."""
  try:
    return int(environment[name])
  except ValueError:
    raise ValueError(
      f'{name}={environment[name]!r} in the environment is no whole number.'
    ) from None


def _kubernetes(environment: Mapping[str, str]) -> Membership:
  """A pod of an Indexed Job; the launcher sets the FEDMS variables."""
  processes = _number(environment, 'FEDMS_PROCESSES')
  if processes == 1:
    return Membership()
  return Membership(
    environment['FEDMS_COORDINATOR'],
    processes,
    _number(environment, 'JOB_COMPLETION_INDEX'),
  )


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
  """Whether `srun` started this process. In the batch script and in a shell
  of `salloc` there are variables of the job, but there is one process."""
  return {'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= set(environment)


def _slurm(environment: Mapping[str, str]) -> Membership:
  """A task of a step. SLURM_NTASKS is the job's; the step may have fewer."""
  step = 'SLURM_STEP_NUM_TASKS'
  counted = step if step in environment else 'SLURM_NTASKS'
  processes = _number(environment, counted)
  if processes == 1:
    return Membership()
  host = first_host(environment['SLURM_STEP_NODELIST'])
  port = _FIRST_PORT + _number(environment, 'SLURM_JOB_ID') % _PORTS
  port = environment.get('JAX_COORDINATOR_PORT') or port
  return Membership(
    f'{host}:{port}',
    processes,
    _number(environment, 'SLURM_PROCID'),
    _slurm_devices(environment),
  )


def start(environment: Mapping[str, str]) -> list[str | int] | None:
  """Which start of which job this is: [scheduler, job, start].

  A job that is put back into the queue keeps the first two. The starts of a
  SLURM job are counted; those of a pod of a Job have names. None elsewhere.
  """
  if _in_slurm_step(environment):
    cluster = environment.get('SLURM_CLUSTER_NAME', '')
    step = f'{environment["SLURM_JOB_ID"]}.{environment["SLURM_STEP_ID"]}'
    again = int(environment.get('SLURM_RESTART_COUNT', 0))
    return ['slurm', f'{cluster}/{step}', again]
  if 'FEDMS_JOB' in environment:  # `fedms launch kubernetes` sets it
    return ['kubernetes', environment['FEDMS_JOB'], environment['FEDMS_POD']]
  return None


def put_back(theirs: list | None, ours: list | None) -> bool:
  """Whether `theirs` is an earlier start of our own job: the scheduler ends
  all processes of a start before the next one, on any hosts."""
  if not theirs or not ours or theirs[:-1] != ours[:-1]:
    return False
  if ours[0] == 'slurm':
    return theirs[-1] < ours[-1]
  return theirs[-1] != ours[-1]


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
  """This task's share of the accelerators of its node.

  SLURM may let each task see its own only, or all tasks see all.
  """
  counts = environment.get('SLURM_STEP_TASKS_PER_NODE', '1')
  tasks = tasks_per_node(counts)[int(environment.get('SLURM_NODEID', 0))]
  if tasks == 1:
    return None
  local = _number(environment, 'SLURM_LOCALID')
  visible = environment.get('CUDA_VISIBLE_DEVICES')
  if visible is None:
    return (local,)  # nothing is bound; without accelerators it is ignored
  share = len(visible.split(',')) // tasks
  return tuple(range(local * share, (local + 1) * share)) or None


def first_host(nodes: str) -> str:
  """The first host of a SLURM node list: rack[2,4-5]n[01-16],login -> rack2n01.

  Raises:
    ValueError: the list is empty or a bracket is not closed.
  """
  first = re.match(r'((?:[^,\[\]]|\[[^\[\]]+\])+)(?:,|$)', nodes)
  if first is None:
    raise ValueError(f'{nodes!r} is no list of nodes, such as node[01-04].')
  return re.sub(r'\[([^\],-]+)[^\]]*\]', r'\1', first[1])


def tasks_per_node(text: str) -> list[int]:
  """SLURM's tasks of each node: 2(x3),1 -> [2, 2, 2, 1]."""
  counts = []
  for part in text.split(','):
    match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    if match is None:
      raise ValueError(f'{text!r} is no count of tasks, such as 2(x3),1.')
    counts += [int(match[1])] * int(match[2] or 1)
  return counts


def _tpu(environment: Mapping[str, str]) -> Membership:
  """A host of a TPU slice, sorted by process number in its variables."""
  hosts = environment['TPU_WORKER_HOSTNAMES'].split(',')
  if len(hosts) == 1:
    return Membership()
  return Membership(
    f'{hosts[0]}:{environment.get("JAX_COORDINATOR_PORT") or _FIRST_PORT}',
    len(hosts),
    _number(environment, 'TPU_WORKER_ID'),
  )


_Mapping = Mapping[str, str]
# name -> (does it speak here?, what does it say?), the most explicit first
_SCHEDULERS: dict[
  str, tuple[Callable[[_Mapping], bool], Callable[[_Mapping], Membership]]
] = {
  'Kubernetes': (lambda e: 'FEDMS_PROCESSES' in e, _kubernetes),
  'SLURM': (_in_slurm_step, _slurm),
  'a TPU slice': (lambda e: 'TPU_WORKER_HOSTNAMES' in e, _tpu),
}
