"""A SLURM cluster on one machine: munge, slurmctld, and two slurmd nodes.

All files lie in one folder, all addresses are loopback ones, and nothing of
an installed configuration is used. Needs root and Debian's packages munge and
slurm-wlm. By hand:

    python tests/slurm/cluster.py FOLDER   # prints what to export, and waits
"""

from __future__ import annotations

import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol')
NODES = ('127.0.0.1', '127.0.0.2')  # names that resolve without any set-up

_CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# More CPUs than there are: what is tested waits most of the time.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
{nodes}
PartitionName=test Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=9
"""


def problem() -> str:
  """Why no cluster can be started here, or ''."""
  missing = [name for name in PROGRAMS if shutil.which(name) is None]
  if missing:
    return f'no {missing[0]} (Debian: apt-get install munge slurm-wlm)'
  if os.geteuid() != 0:
    return 'starting slurmd needs root'
  return ''


class Cluster:
  """A running cluster; `environment` lets the commands of SLURM find it."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder.absolute()
    self._daemons: list[subprocess.Popen] = []
    self._released: set[tuple[str, str]] = set()
    self.environment = os.environ | {
      'SLURM_CONF': str(self._folder / 'slurm.conf')
    }

  def __enter__(self) -> Cluster:
    (self._folder / 'state').mkdir(parents=True)
    self._configure()
    try:
      self._munge()
      self._start('slurmctld', '-D', '-c')
      for node in NODES:
        self._start('slurmd', '-D', '-N', node)
      self._wait_for(self._idle, 'idle nodes')
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *unused) -> None:
    if self._daemons and self._daemons[-1].poll() is None:
      subprocess.run(['scancel', '--user=root'], env=self.environment)
      self._wait_for(lambda: not self.queue(), 'an empty queue')
    while self._daemons:
      daemon = self._daemons.pop()
      daemon.terminate()
      try:
        daemon.wait(timeout=10)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()

  def run(self, *words: str) -> str:
    """Runs a command of SLURM; gives what it prints."""
    return subprocess.run(
      words,
      env=self.environment,
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    ).stdout.strip()

  def queue(self) -> str:
    """The jobs that wait or run."""
    return self.run('squeue', '--noheader', '--format=%i %T %r')

  def field(self, job: str, name: str) -> str:
    """A field of a job, such as JobState or Restarts."""
    shown = self.run('scontrol', '--oneliner', 'show', 'job', job).split()
    return dict(word.partition('=')[::2] for word in shown)[name]

  def state(self, job: str) -> str:
    """The state of a job. A job that was put back is released: SLURM would
    keep it for two minutes. Less than a second is too soon, for the nodes
    refuse a job that was taken from them at the same second."""
    if self.field(job, 'Reason') == 'BeginTime':
      start = (job, self.field(job, 'Restarts'))
      if start not in self._released:
        self._released.add(start)
        self.run('scontrol', 'update', f'jobid={job}', 'starttime=now+2')
    return self.field(job, 'JobState')

  def wait(self, *jobs: str, seconds: float = 60.0) -> list[str]:
    """Waits until jobs have ended; gives their last states."""
    over = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'PREEMPTED'}

    def ended() -> bool:
      return set([self.state(job) for job in jobs]) <= over

    self._wait_for(ended, ', '.join(jobs), seconds)
    return [self.state(job) for job in jobs]

  def _configure(self) -> None:
    ports = _free_ports(1 + len(NODES))
    nodes = '\n'.join(
      f'NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 '
      f'Port={port} CPUs=4'
      for node, port in zip(NODES, ports[1:], strict=True)
    )
    text = _CONFIG.format(folder=self._folder, controller=ports[0], nodes=nodes)
    (self._folder / 'slurm.conf').write_text(text)

  def _munge(self) -> None:
    key = self._folder / 'munge.key'
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    self._start(
      'munged',
      '--foreground',
      '--force',  # whatever the owner of /tmp is
      f'--key-file={key}',
      f'--socket={self._folder}/munge.socket',
      f'--pid-file={self._folder}/munged.pid',
      f'--seed-file={self._folder}/munged.seed',
      f'--log-file={self._folder}/munged.log',
    )
    self._wait_for((self._folder / 'munge.socket').exists, 'munge')

  def _start(self, *words: str) -> None:
    log = self._folder / f'daemon-{len(self._daemons)}.log'
    with open(log, 'wb') as file:
      self._daemons.append(
        subprocess.Popen(
          words,
          env=self.environment,
          stdin=subprocess.DEVNULL,
          stdout=file,
          stderr=subprocess.STDOUT,
          start_new_session=True,
        )
      )

  def _idle(self) -> bool:
    done = subprocess.run(
      ['sinfo', '--noheader', '--Node', '--format=%T'],
      env=self.environment,
      capture_output=True,
      text=True,
    )
    return set(done.stdout.split()) == {'idle'}

  def _wait_for(self, met, what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not met():
      dead = [d.args for d in self._daemons if d.poll() is not None]
      if dead or time.monotonic() > end:
        raise RuntimeError(
          f'waited for {what} in vain; ended: {dead}; see the log files in '
          f'{self._folder}'
        )
      time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
  """Ports of this machine that nobody listens on now."""
  found = [socket.socket() for _ in range(count)]
  try:
    for one in found:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in found]
  finally:
    for one in found:
      one.close()


if __name__ == '__main__':
  if problem() or len(sys.argv) != 2:
    sys.exit(problem() or __doc__)
  with Cluster(pathlib.Path(sys.argv[1])) as running:
    print(f'export SLURM_CONF={running.environment["SLURM_CONF"]}', flush=True)
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.sigwait(signals)
