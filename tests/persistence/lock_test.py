"""A SLURM job that was put back takes over what its last start left."""

import json

import pytest

from fedms_jax.persistence import workdir

TEXT = '--seed=0\n'


def step(monkeypatch, job='12', start=None, number='0'):
  """Makes this process a task of a SLURM job step."""
  for name, value in {
    'CLUSTER_NAME': 'c',
    'JOB_ID': job,
    'STEP_ID': number,
    'STEP_NODELIST': 'n1',
    'PROCID': '0',
    'RESTART_COUNT': start,
  }.items():
    if value is None:
      monkeypatch.delenv(f'SLURM_{name}', raising=False)
    else:
      monkeypatch.setenv(f'SLURM_{name}', value)


def leave(path):
  """A start of a run on another node that ended without a word."""
  run = workdir.Workdir.open(path, TEXT)
  lock = path / 'lock.json'
  lock.write_text(json.dumps(json.loads(lock.read_text()) | {'host': 'n1'}))
  return run


def test_a_later_start_of_the_same_job_takes_the_lock_over(
  tmp_path, monkeypatch
):
  for before, after in ((None, '1'), ('1', '3')):
    step(monkeypatch, start=before)
    leave(tmp_path / after)
    step(monkeypatch, start=after)
    workdir.Workdir.open(tmp_path / after, TEXT, resume=True).close()
    assert workdir.holder(tmp_path / after) is None


@pytest.mark.parametrize(
  'other',
  [
    {'start': '2'},  # the same start: two runs side by side
    {'start': '1'},
    {'start': '3', 'job': '13'},
    {'start': '3', 'number': '1'},
  ],
)
def test_any_other_job_is_refused(tmp_path, monkeypatch, other):
  step(monkeypatch, start='2')
  leave(tmp_path)
  step(monkeypatch, **other)
  with pytest.raises(ValueError, match='`break_lock`'):
    workdir.Workdir.open(tmp_path, TEXT, resume=True)


def test_outside_of_slurm_a_lock_of_slurm_is_respected(tmp_path, monkeypatch):
  step(monkeypatch, start='2')
  leave(tmp_path)
  monkeypatch.delenv('SLURM_STEP_NODELIST')
  with pytest.raises(ValueError, match='`break_lock`'):
    workdir.Workdir.open(tmp_path, TEXT, resume=True)


def test_who_holds_the_lock_and_whether_it_lives(tmp_path):
  assert workdir.holder(tmp_path) is None
  with workdir.Workdir.open(tmp_path, TEXT):
    assert workdir.holder(tmp_path)[1] is True
  with leave(tmp_path / 'b'):
    found, alive = workdir.holder(tmp_path / 'b')
    assert (found['host'], alive) == ('n1', None)
