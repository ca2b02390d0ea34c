"""Jobs on a real SLURM: saved, put back, resumed, and never in vain."""

import json
import shlex
import subprocess
import sys
import time

import pytest

from fedms_jax.launch import sweep
from tests.launch import runs
from tests.slurm import shared

pytestmark = shared.NEEDS_SLURM
cluster = shared.cluster
STAND_IN = f'--program={shlex.join(runs.STAND_IN)}'


def submit(cluster, folder, *own, told=None, flags=()):
  """Submits the stand-in; gives the number of the job."""
  done = subprocess.run(
    [sys.executable, '-m', 'launch.slurm', STAND_IN, *own]
    + ['--', f'--workdir={folder}', *flags],
    cwd=runs.ROOT,
    env=cluster.environment | ({} if told is None else {'STAND_IN': told}),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return shared.submitted(done.stdout)


def wait_for(met):
  end = time.monotonic() + 30
  while not met():
    assert time.monotonic() < end
    time.sleep(0.05)


def ready(folder, process=0):
  log = folder / 'logs' / f'process-{process}.log'
  return lambda: log.exists() and 'ready' in log.read_text()


def outcome(cluster, job):
  """State, number of restarts, and exit code of a job that has ended."""
  (state,) = cluster.wait(job)
  code = cluster.field(job, 'ExitCode').partition(':')[0]
  return state, int(cluster.field(job, 'Restarts')), int(code)


@pytest.mark.parametrize(
  'own',
  [['--nodes=2'], ['--processes_per_node=2'], ['--cpus_per_process=2']],
  ids=['nodes', 'processes', 'one'],
)
def test_processes_find_each_other(cluster, tmp_path, own):
  tmp_path = tmp_path / "it's 50%j"
  job = submit(cluster, tmp_path, *own)
  assert outcome(cluster, job) == ('COMPLETED', 0, 0)
  if own[0].startswith('--cpus'):
    places = [['', 1, 0, None]]
  else:
    port = 61440 + int(job) % 4096
    devices = None if own == ['--nodes=2'] else 'own'
    places = [[f'127.0.0.1:{port}', 2, i, devices and [i]] for i in range(2)]
  assert [p for p, _ in runs.places(tmp_path)] == places
  assert json.loads((tmp_path / 'summary.json').read_text())


def test_a_job_that_is_told_to_save_is_put_back_and_goes_on(cluster, tmp_path):
  job = submit(cluster, tmp_path, '--nodes=2', told='once wait')
  wait_for(ready(tmp_path, 0))
  wait_for(ready(tmp_path, 1))
  cluster.run('scancel', '--signal=USR1', job)
  assert outcome(cluster, job) == ('COMPLETED', 1, 0)
  for process in range(2):
    log = (tmp_path / f'logs/process-{process}.log').read_text()
    assert (log.count('place'), log.count('saved')) == (2, 1)
  # The shells around the processes have waited for them.
  said = (tmp_path / f'slurm-{job}.log').read_text()
  assert 'start 0: code 75' in said


@pytest.mark.slow
def test_the_signal_comes_before_the_time_is_up(cluster, tmp_path):
  job = submit(
    cluster, tmp_path, '--time=00:01:00', '--grace=50', told='once wait'
  )
  assert outcome(cluster, job) == ('COMPLETED', 1, 0)


@pytest.mark.slow
def test_a_preempted_job_is_put_back_and_goes_on(cluster, tmp_path):
  job = submit(
    cluster, tmp_path, '--nodes=2', '--sbatch=--exclusive', told='once wait'
  )
  wait_for(ready(tmp_path))
  cluster.run('srun', '--partition=urgent', '--exclusive', '-N2', 'true')
  assert outcome(cluster, job) == ('COMPLETED', 1, 0)


@pytest.mark.parametrize(
  ('told', 'end'),
  [
    ({'1': 'once die SIGKILL', '0': 'once exit 75'}, ('COMPLETED', 1, 0)),
    ({'1': 'once exit 75', '0': 'once die SIGKILL'}, ('COMPLETED', 1, 0)),
    ({'1': 'exit 2', '0': 'exit 75'}, ('FAILED', 0, 2)),
    ({'1': 'exit 75', '0': 'exit 2'}, ('FAILED', 0, 2)),
    ({'1': 'exit 75', '0': 'exit 1'}, ('FAILED', 0, 1)),
  ],
)
def test_only_what_a_restart_can_mend_is_put_back(cluster, tmp_path, told, end):
  job = submit(cluster, tmp_path, '--nodes=2', told=json.dumps(told))
  assert outcome(cluster, job) == end


def test_a_cancelled_job_stays_cancelled(cluster, tmp_path):
  job = submit(cluster, tmp_path, '--nodes=2', told='wait')
  wait_for(ready(tmp_path))
  cluster.run('scancel', job)
  assert outcome(cluster, job)[:2] == ('CANCELLED', 0)


@pytest.mark.slow
def test_a_job_that_never_gets_on_is_given_up(cluster, tmp_path):
  job = submit(cluster, tmp_path, '--max_restarts=1', told='exit 75')
  assert outcome(cluster, job) == ('FAILED', 1, 75)


def start_sweep(cluster, folder, told='run'):
  """Starts a sweep of four points as an array; gives what it says."""
  done = subprocess.run(
    [sys.executable, '-m', 'launch.sweep', '--backend=slurm', STAND_IN]
    + ['--grid=seed=0..3', '--', f'--workdir={folder}'],
    cwd=runs.ROOT,
    env=cluster.environment | {'STAND_IN': told},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_a_sweep_as_an_array_runs_again_what_was_killed(
  cluster, tmp_path, capsys
):
  said = start_sweep(cluster, tmp_path, told='once wait')
  assert 'of 4 points' in said
  job = shared.submitted(said)
  tasks = {f'seed={i}': f'{job}_{i}' for i in range(4)}
  again = start_sweep(cluster, tmp_path)
  assert 'submitted' not in again, again
  for name, task in tasks.items():
    wait_for(ready(tmp_path / name))
    killed = name == 'seed=2'
    cluster.run('scancel', *[] if killed else ['--signal=USR1'], task)
  cluster.wait(*tasks.values())
  ends = [outcome(cluster, task)[:2] for task in tasks.values()]
  kept = ('COMPLETED', 1)
  assert ends == [kept, kept, ('CANCELLED', 0), kept]
  again = start_sweep(cluster, tmp_path)
  assert 'of 1 points' in again
  job = shared.submitted(again)
  assert outcome(cluster, f'{job}_0') == ('COMPLETED', 0, 0)
  assert sweep.main([f'--collect={tmp_path}']) == 0
  assert '4 of 4 points' in capsys.readouterr().out
  assert 'nothing is left' in start_sweep(cluster, tmp_path)
