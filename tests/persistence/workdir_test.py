"""One run, one folder, one writer."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from fedms_jax.persistence import files, lock, workdir

TEXT = '--seed=0\n--progress=true\n--lora.rank=4\n--checkpoint.keep=2\n'
OTHER = TEXT.replace('--lora.rank=4', '--lora.rank=8')


def open_workdir(path, text=TEXT, **kwargs):
  run = workdir.Workdir.open(path, text, **kwargs)
  run.begin()
  return run


def contents(path):
  return {p.name: p.read_text() for p in path.iterdir()}


def start_and_kill(path, wait=True):
  """A process opens the folder and is killed; returns it."""
  code = (
    'import time\nfrom fedms_jax.persistence import workdir\n'
    f'w = workdir.Workdir.open({str(path)!r}, {TEXT!r})\nw.begin()\n'
    'print("open", flush=True)\ntime.sleep(60)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'open\n'
  process.kill()
  if wait:
    process.wait()
  return process


@pytest.mark.parametrize('resume', [False, True])
def test_an_absent_or_empty_folder_starts_afresh(tmp_path, resume):
  for path in (tmp_path / 'a' / 'b', tmp_path / 'c'):
    (tmp_path / 'c').mkdir(exist_ok=True)
    with workdir.Workdir.open(path, TEXT, resume=resume) as run:
      assert not run.existed
      assert not run.flags.exists()
      run.begin()
      assert run.flags.read_text() == TEXT
    assert contents(path) == {'flags.txt': TEXT}


def test_an_existing_run_needs_resume(tmp_path):
  open_workdir(tmp_path).close()
  with pytest.raises(ValueError, match='`resume`'):
    open_workdir(tmp_path)
  with open_workdir(tmp_path, resume=True) as run:
    assert run.existed


@pytest.mark.parametrize('resume', [False, True])
def test_other_flags_are_refused_and_shown(tmp_path, resume):
  open_workdir(tmp_path).close()
  before = contents(tmp_path)
  with pytest.raises(ValueError) as error:
    open_workdir(tmp_path, OTHER, resume=resume)
  assert '--lora.rank=4' in str(error.value)
  assert '--lora.rank=8' in str(error.value)
  assert '--seed' not in str(error.value)
  assert contents(tmp_path) == before


def test_an_option_that_one_side_lacks_is_a_difference(tmp_path):
  open_workdir(tmp_path).close()
  with pytest.raises(ValueError, match='--new.option does not exist'):
    open_workdir(tmp_path, TEXT + '--new.option=\n', resume=True)


def test_options_that_change_no_number_may_differ(tmp_path):
  open_workdir(tmp_path).close()
  other = TEXT.replace('=true', '=false').replace('keep=2', 'keep=5')
  with open_workdir(tmp_path, other, resume=True) as run:
    assert run.flags.read_text() == TEXT


def test_results_of_an_unknown_run_are_not_mixed_up(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{}\n')
  with pytest.raises(ValueError, match='metrics.jsonl'):
    open_workdir(tmp_path)
  assert contents(tmp_path) == {'metrics.jsonl': '{}\n'}


def test_what_cannot_be_a_folder_is_a_value_error(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file', tmp_path / 'file' / 'folder'):
    with pytest.raises(ValueError, match='cannot be written'):
      open_workdir(path)


def test_a_live_holder_is_respected_even_if_asked_not_to(tmp_path):
  with open_workdir(tmp_path):
    for break_lock in (False, True):
      with pytest.raises(ValueError, match=f'process {os.getpid()} '):
        open_workdir(tmp_path, resume=True, break_lock=break_lock)
  open_workdir(tmp_path, resume=True).close()


@pytest.mark.parametrize('wait', [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, wait):
  process = start_and_kill(tmp_path, wait)
  try:
    if not wait:  # dead, but its parent, we, has not looked yet
      os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with open_workdir(tmp_path, resume=True):
      lock = json.loads((tmp_path / 'lock.json').read_text())
      assert lock['pid'] == os.getpid()
  finally:
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
  assert set(contents(tmp_path)) == {'flags.txt'}


def test_a_process_number_in_use_again_is_not_the_holder(tmp_path):
  old = lock._ourselves(False) | {'started': 'old'}
  (tmp_path / 'lock.json').write_text(json.dumps(old))
  open_workdir(tmp_path).close()


@pytest.mark.parametrize(
  'text', ['', '{"host": "other-host", "pid": 1, "time": "then"}']
)
def test_a_lock_that_cannot_be_judged_needs_break_lock(tmp_path, text):
  (tmp_path / 'lock.json').write_text(text)
  with pytest.raises(ValueError, match='`break_lock`'):
    open_workdir(tmp_path)
  assert contents(tmp_path) == {'lock.json': text}
  open_workdir(tmp_path, break_lock=True).close()


def test_a_lock_released_while_we_look_is_free(tmp_path, monkeypatch):
  open_workdir(tmp_path).close()
  (tmp_path / 'lock.json').write_text('{}')
  read = lock.read

  def release_and_read(path):
    path.unlink(missing_ok=True)
    return read(path)

  monkeypatch.setattr(lock, 'read', release_and_read)
  run = open_workdir(tmp_path, resume=True)
  monkeypatch.undo()
  assert (tmp_path / 'lock.json').exists()
  run.close()


def test_a_broken_lock_is_not_removed_by_its_old_holder(tmp_path):
  first = open_workdir(tmp_path)
  (tmp_path / 'lock.json').write_text('{"host": "other-host"}')
  first.close()
  assert (tmp_path / 'lock.json').exists()


@pytest.mark.parametrize('stale', [False, True])
@pytest.mark.parametrize('attempt', range(5))
def test_of_many_at_once_exactly_one_gets_the_folder(tmp_path, stale, attempt):
  if stale:
    old = lock._ourselves(False) | {'started': '-'}
    (tmp_path / 'lock.json').write_text(json.dumps(old))
  barrier = threading.Barrier(8)

  def enter(_):
    barrier.wait()
    try:
      return open_workdir(tmp_path, resume=True)
    except ValueError:
      return None

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    runs = [run for run in pool.map(enter, range(8)) if run is not None]
  assert len(runs) == 1


def test_an_atomic_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  files.write_atomic(path, 'old')

  def fail(descriptor):
    raise OSError('the disk is full')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='full'):
    files.write_atomic(path, 'new')
  assert contents(tmp_path) == {'file': 'old'}


def test_a_refused_start_leaves_the_folder_free(tmp_path):
  mine = tmp_path / 'partition.json'
  with open_workdir(tmp_path) as run:
    run.checkpoints.mkdir()
    run.facts.write_text('{}')
    run.metrics.touch()
    run.abandon()
  assert contents(tmp_path) == {}
  mine.write_text('of somebody')
  with open_workdir(tmp_path, OTHER) as run:
    run.facts.write_text('{}')
    run.abandon()
  assert contents(tmp_path) == {'partition.json': 'of somebody'}


def test_what_has_rounds_is_not_abandoned(tmp_path):
  with open_workdir(tmp_path) as run:
    run.metrics.write_text('{"stage": 0, "round": 0}\n')
    run.abandon()
  with open_workdir(tmp_path, resume=True) as run:
    run.metrics.unlink()
    run.abandon()
  assert contents(tmp_path) == {'flags.txt': TEXT}


def test_a_run_that_is_only_loading_is_not_called_none(tmp_path):
  with (
    workdir.Workdir.open(tmp_path, TEXT),
    pytest.raises(ValueError, match='no run yet'),
  ):
    workdir.Workdir.look(tmp_path)


@pytest.mark.parametrize('kind', ['fifo', 'folder', 'device'])
def test_only_a_file_is_replaced_by_a_file(tmp_path, kind):
  path = tmp_path / 'out'
  if kind == 'fifo':
    os.mkfifo(path)
  elif kind == 'folder':
    path.mkdir()
  else:
    path.symlink_to('/dev/null')
  before = os.stat(path)
  with pytest.raises(ValueError, match='Name a file'):
    files.write_atomic(path, 'text')
  assert os.path.samestat(os.stat(path), before)
  assert os.listdir(tmp_path) == ['out']


def test_a_link_to_a_file_stays_a_link(tmp_path):
  path = tmp_path / 'link'
  for target in (tmp_path / 'old', tmp_path / 'new'):
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    files.write_atomic(path, 'text')
    assert path.is_symlink() and target.read_text() == 'text'


@pytest.mark.parametrize(
  'text', ['', '{', 'null', '[]', '{"models": {}}', '\0' * 99]
)
def test_a_result_counts_by_what_it_holds(tmp_path, text):
  with open_workdir(tmp_path) as run:
    run.summary.write_text(text)
    assert run.result() is None
    run.summary.write_text('{"models": {}, "total": {}}')
    assert run.result() == {'models': {}, 'total': {}}
