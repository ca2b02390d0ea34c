"""A dead holder's lock is taken over where it is known to be dead; a live
one's never."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest

from fedms_jax.persistence import lock, workdir

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
  run.begin()
  rewrite(path, host='n1', boot='b', machine='m')
  run._lock._let_go()  # as the kernel does when a process ends


def rewrite(path, **changes):
  """Changes what the lock of a folder says of its holder."""
  file = path / 'lock.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_later_start_of_the_same_job_takes_the_lock_over(
  tmp_path, monkeypatch
):
  for before, after in ((None, '1'), ('1', '3')):
    step(monkeypatch, start=before)
    leave(tmp_path / after)
    step(monkeypatch, start=after)
    workdir.Workdir.open(tmp_path / after, TEXT, resume=True).close()
    assert lock.holder(tmp_path / after) is None


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
  assert lock.holder(tmp_path) is None
  with workdir.Workdir.open(tmp_path, TEXT):
    assert lock.holder(tmp_path)[1] is True
  leave(tmp_path / 'b')
  found, alive = lock.holder(tmp_path / 'b')
  assert (found['host'], alive) == ('n1', None)


def pod(monkeypatch, job, name):
  monkeypatch.setenv('FEDMS_JOB', job)
  monkeypatch.setenv('FEDMS_POD', name)


def test_a_pod_takes_over_from_the_one_that_it_replaces(tmp_path, monkeypatch):
  pod(monkeypatch, 'job-1', 'a-0-x')
  leave(tmp_path)
  for job, name in (('job-2', 'a-0-y'), ('job-1', 'a-0-x')):
    pod(monkeypatch, job, name)
    with pytest.raises(ValueError, match='break_lock'):
      workdir.Workdir.open(tmp_path, TEXT, resume=True)
  pod(monkeypatch, 'job-1', 'a-0-y')
  workdir.Workdir.open(tmp_path, TEXT, resume=True).close()


SEEN = [
  # The machine was started again: nobody has outlived that.
  ({'boot': 'b', 'started': 'b 1'}, False),
  # Another machine of the same name, as pods and images have it.
  ({'boot': 'b', 'started': 'b 1', 'machine': 'm'}, None),
  ({'boot': 'b', 'started': 'b 1', 'machine': ''}, None),
  # Another process has got the number.
  ({'started': 'then'}, False),
  # A container on this machine: the kernel's lock is what tells.
  ({'namespace': 'pid:[1]'}, False),
  ({'namespace': 'pid:[1]', 'kernel': False}, None),
]


@pytest.mark.parametrize(('changes', 'alive'), SEEN)
def test_who_counts_as_dead(tmp_path, monkeypatch, changes, alive):
  monkeypatch.setattr(lock, '_machine', lambda: 'ours')
  run = workdir.Workdir.open(tmp_path, TEXT)
  rewrite(tmp_path, **changes)
  run._lock._let_go()
  assert lock.holder(tmp_path)[1] is alive
  if alive is None:
    with pytest.raises(ValueError, match='break_lock'):
      workdir.Workdir.open(tmp_path, TEXT)
    workdir.Workdir.open(tmp_path, TEXT, break_lock=True).close()
  else:
    workdir.Workdir.open(tmp_path, TEXT).close()


@pytest.mark.parametrize('changes', [c for c, _ in SEEN])
def test_what_the_kernel_holds_is_never_taken(tmp_path, changes):
  """Whatever the file says; not even when asked to."""
  with workdir.Workdir.open(tmp_path, TEXT):
    rewrite(tmp_path, **changes)
    assert lock.holder(tmp_path)[1] is True
    with pytest.raises(ValueError, match='on this host'):
      workdir.Workdir.open(tmp_path, TEXT, break_lock=True)


def test_a_live_process_is_respected_without_its_file(tmp_path):
  """Somebody may have cleaned the folder."""
  with workdir.Workdir.open(tmp_path, TEXT):
    (tmp_path / 'lock.json.held').unlink()
    with pytest.raises(ValueError, match='on this host'):
      workdir.Workdir.open(tmp_path, TEXT, break_lock=True)


def test_where_the_kernel_has_no_locks_the_process_number_tells(
  tmp_path, monkeypatch
):
  def refuse(*args):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(lock.fcntl, 'flock', refuse)
  with workdir.Workdir.open(tmp_path, TEXT):
    assert lock.holder(tmp_path)[1] is True
    with pytest.raises(ValueError, match='on this host'):
      workdir.Workdir.open(tmp_path, TEXT, break_lock=True)
    rewrite(tmp_path, started='then')
    assert lock.holder(tmp_path)[1] is False


@pytest.mark.parametrize('name', ['lock.json', 'lock.json.guard'])
def test_what_a_kill_left_half_done_does_not_bar_the_folder(tmp_path, name):
  """For a minute it might be an older version that is writing."""
  leave(tmp_path)
  rewrite(tmp_path, host='here', boot=lock._ourselves(True)['boot'])
  rewrite(tmp_path, host=lock._ourselves(True)['host'], started='then')
  file = tmp_path / name
  file.write_text('')
  with pytest.raises(ValueError, match='break_lock|Try again'):
    workdir.Workdir.open(tmp_path, TEXT, resume=True)
  old = time.time() - 100
  os.utime(file, (old, old))
  workdir.Workdir.open(tmp_path, TEXT, resume=True).close()
  assert sorted(os.listdir(tmp_path)) == ['flags.txt']


KILLED = """
import os, sys
from fedms_jax.persistence import workdir
count, at = 0, int(sys.argv[2])
def hook(event, args):
  global count
  if event in ('open', 'os.link', 'os.rename', 'os.remove', 'fcntl.flock'):
    count += 1
    if count == at: os.kill(os.getpid(), 9)
sys.addaudithook(hook)
workdir.Workdir.open(sys.argv[1], sys.argv[3])
os._exit(0)
"""


def test_a_kill_at_any_point_leaves_a_whole_lock_or_none(tmp_path):
  codes = []
  for count in itertools.count(1):
    folder = tmp_path / str(count)
    words = [sys.executable, '-c', KILLED, folder, str(count), TEXT]
    codes.append(subprocess.run(words).returncode)
    if (folder / 'lock.json').exists():
      assert lock.read(folder / 'lock.json')['pid']
    workdir.Workdir.open(folder, TEXT, resume=True).close()
    if codes[-1] == 0:
      break
  assert len(codes) > 6 and set(codes[:-1]) == {-9}


def test_without_hard_links_there_is_a_lock_too(tmp_path, monkeypatch):
  def refuse(*args):
    raise PermissionError(1, 'Operation not permitted')

  monkeypatch.setattr(os, 'link', refuse)
  with workdir.Workdir.open(tmp_path, TEXT):
    assert lock.holder(tmp_path)[1] is True
