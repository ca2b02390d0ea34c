"""Real runs of the smoke preset on a real SLURM."""

import subprocess
import sys

import pytest

from tests.launch import runs
from tests.slurm import shared

pytestmark = [pytest.mark.slow, *shared.NEEDS_SLURM]
cluster, undisturbed = shared.cluster, runs.undisturbed


def submit(running, module, *own, flags):
  """Submits a run of the smoke preset; gives the number of the job."""
  done = subprocess.run(
    [sys.executable, '-m', module, *own, '--', *runs.SMOKE, *flags],
    cwd=runs.ROOT,
    env=running.environment | runs.PLAIN,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return shared.submitted(done.stdout)


@pytest.mark.parametrize('own', ['--nodes=2', '--processes_per_node=2'])
def test_two_tasks_agree_with_one_process(cluster, undisturbed, tmp_path, own):
  flags = [f'--workdir={tmp_path}']
  job = submit(cluster, 'launch.slurm', own, flags=flags)
  assert cluster.wait(job, seconds=300) == ['COMPLETED']
  runs.assert_same_to_rounding(tmp_path, undisturbed)


def test_a_run_that_was_put_back_is_as_if_undisturbed(
  cluster, undisturbed, tmp_path
):
  job = submit(cluster, 'launch.slurm', flags=[f'--workdir={tmp_path}'])
  runs.wait_for_rounds(tmp_path, 1, lambda: job in cluster.queue())
  cluster.run('scancel', '--signal=USR1', job)
  assert cluster.wait(job, seconds=300) == ['COMPLETED']
  assert cluster.field(job, 'Restarts') == '1'
  assert runs.summary(tmp_path) == runs.summary(undisturbed)


def test_a_swept_point_is_the_run_of_its_flags(cluster, undisturbed, tmp_path):
  own = ['--backend=slurm', '--grid=seed=0..1']
  flags = [f'--workdir={tmp_path}']
  job = submit(cluster, 'launch.sweep', *own, flags=flags)
  tasks = [f'{job}_{i}' for i in range(2)]
  assert cluster.wait(*tasks, seconds=300) == ['COMPLETED'] * 2
  zero, one = (runs.summary(tmp_path / f'seed={i}') for i in range(2))
  assert zero == runs.summary(undisturbed)
  assert one['models'] != zero['models']
