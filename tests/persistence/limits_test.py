"""When storage runs out a run ends with a line, and goes on where it was."""

import contextlib
import errno
import json
import os
import pathlib
import resource
import subprocess
import sys
import threading

import lmdb
import numpy as np
import pytest

from fedms_jax.persistence import (
  checkpoint,
  files,
  lmdb_file,
  loggers,
  orbax_folder,
  tensorboard,
  versioned_rows,
  writers,
)
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.simulation import driver, evaluation, observer
from tests import world

ROUNDS = 2  # of each stage
ROOT = pathlib.Path(__file__).parents[2]


def run(folder, every=1):
  """A run with all its files, gone on with if it is there; gives its scores,
  its ledgers and its metrics without the clock."""
  with contextlib.ExitStack() as stack:
    workdir = stack.enter_context(Workdir.open(folder, 'f\n', resume=True))
    keep = Disk(workdir, 2, every=every)
    stack.callback(keep.close)
    watch = observer.Observers()
    stack.callback(watch.close)
    stages = world.stages(ROUNDS)
    simulation = driver.Simulation(
      world.federation(), world.start(), stages,
      driver.Options(cohort=3, batch_size=4, block=32),
      run_store=keep, observer=watch,
    )  # fmt: skip
    state = keep.restore(simulation)
    at = None if state is None else (state.stage, state.round - 1)
    metrics = writers.MetricsFile(workdir.metrics, at, [ROUNDS, ROUNDS])
    keep.before_saving(metrics.sync)
    board = tensorboard.TensorBoard(loggers.Setting(workdir.root, {}))
    board.begin(None if at is None else metrics.rounds)
    names = [stage.name for stage in stages]
    watch.add(observer.Writers(metrics, [board], names))
    state = simulation.run(state)
    keep.wait()
    scores = evaluation.evaluate(simulation, state, evaluation.Scope())
  lines = [writers.timeless(x) for x in writers.read_metrics(workdir.metrics)]
  return json.dumps(scores), simulation.ledgers, lines


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp('whole') / 'run')


@contextlib.contextmanager
def largest(size):
  """No file of this process grows beyond so many bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_more_open_files(free=0):
  """This process may open about so many files more."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  probe = os.open(os.devnull, os.O_RDONLY)
  os.close(probe)  # the lowest that is free
  resource.setrlimit(resource.RLIMIT_NOFILE, (probe + free, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize('free', [0, 1, 2, 7, 31, 64])
def test_a_save_that_may_open_no_files_says_so_and_the_next_is_done(
  tmp_path, free, capfd
):
  saver = checkpoint.Checkpointer(tmp_path, 2)
  saver.save(1, {'a': np.zeros(3)}, {})
  saver.wait()
  with no_more_open_files(free):
    try:
      saver.save(2, {'a': np.ones(30_000)}, {})
      saver.wait()
      last = 2
    except Exception as e:
      last = 1
      assert os.strerror(errno.EMFILE) in (files.limit(e) or '')
  assert saver.restore_latest()[0] == last
  saver.save(3, {'a': np.ones(3)}, {})
  saver.close()
  assert max(map(int, os.listdir(tmp_path))) == 3
  assert capfd.readouterr().err == ''
  assert last == (2 if free == 64 else 1)


@pytest.mark.parametrize('size', [0, 100, 1000, 3000, 9000, 20_000, 40_000])
def test_a_limit_of_file_size_ends_it_and_resume_mends_it(
  tmp_path, whole, size
):
  with largest(size), pytest.raises((OSError, ValueError)) as error:
    run(tmp_path / 'run')
  assert files.limit(error.value)
  assert run(tmp_path / 'run') == whole


@pytest.mark.parametrize('size', [0, 30, 300, 3000])
def test_a_save_beyond_a_file_size_is_an_error_and_no_other_words(
  tmp_path, size, capfd, caplog
):
  saver = checkpoint.Checkpointer(tmp_path, 2)
  saver.save(1, {'a': np.zeros(3)}, {})
  saver.wait()
  with largest(size), pytest.raises(OSError) as error:
    saver.save(2, {'a': np.random.default_rng(0).random(9999)}, {'x': 'y' * 99})
    saver.wait()
  assert os.strerror(errno.EFBIG) in (files.limit(error.value) or '')
  assert '\n' not in str(error.value)
  assert capfd.readouterr().err == ''
  assert not caplog.records
  assert os.listdir(tmp_path) == ['1']
  saver.close()


def write_fails(monkeypatch, where, name, at):
  """The call number `at` of a function finds the disk full."""
  calls, real = [], getattr(where, name)

  def call(*args, **kwargs):
    calls.append(None)
    if len(calls) == at:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'a file')
    return real(*args, **kwargs)

  monkeypatch.setattr(where, name, call)


FAILS = [
  (orbax_folder, 'write', 1),
  (orbax_folder, 'write', 3),
  (files, 'sync_tree', 2),
  (os, 'fsync', 6),
  (os, 'rename', 1),
  (os, 'rename', 2),
  (versioned_rows.LmdbRows, 'write', 1),
  (versioned_rows.LmdbRows, 'write', 2),
  (versioned_rows.LmdbRows, 'sync', 1),
  (versioned_rows.LmdbRows, 'collect', 1),
  (writers.MetricsFile, 'write', 2),
  (writers.MetricsFile, 'sync', 2),
  (tensorboard.TensorBoard, 'write', 3),
  (tensorboard.TensorBoard, 'close', 1),
]


@pytest.mark.parametrize(
  ('where', 'name', 'at'),
  FAILS,
  ids=[f'{getattr(w, "__name__", w)}.{n}.{i}' for w, n, i in FAILS],
)
def test_a_write_that_fails_anywhere_ends_it_and_resume_mends_it(
  tmp_path, whole, monkeypatch, where, name, at
):
  write_fails(monkeypatch, where, name, at)
  with pytest.raises(OSError) as error:
    run(tmp_path / 'run')
  assert files.limit(error.value)
  monkeypatch.undo()
  assert run(tmp_path / 'run') == whole


def test_a_checkpoint_counts_on_nothing_that_was_not_written(
  tmp_path, whole, monkeypatch
):
  """A round's states are found not to be written while it is saved."""
  held, save = threading.Event(), checkpoint.Checkpointer.save

  write = versioned_rows.LmdbRows.write

  def fail(self, ids, rows, version):
    if version < 2 * ROUNDS:
      return write(self, ids, rows, version)
    held.wait(30)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def save_and_go_on(self, step, *args):
    save(self, step, *args)
    if step > ROUNDS:
      held.set()

  monkeypatch.setattr(versioned_rows.LmdbRows, 'write', fail)
  monkeypatch.setattr(checkpoint.Checkpointer, 'save', save_and_go_on)
  with pytest.raises(OSError):
    run(tmp_path / 'run', every=0)
  found = os.listdir(tmp_path / 'run' / 'checkpoints')
  assert found == [str(ROUNDS)]  # of stage 1, which has no personal states
  monkeypatch.undo()
  assert run(tmp_path / 'run') == whole


def test_other_errors_are_no_limits(tmp_path):
  for error in (
    PermissionError(errno.EACCES, 'no'),
    ValueError('x'),
    OSError('y'),
  ):
    assert files.limit(error) is None


def test_what_caused_an_error_is_looked_at():
  full = OSError(errno.EDQUOT, 'quota', '/f')
  try:
    try:
      raise full
    except OSError as e:
      raise ValueError('cannot be written') from e
  except ValueError as e:
    wrapped = e
  group = ExceptionGroup('several', [KeyError('k'), wrapped])
  for error in (full, wrapped, group):
    assert files.limit(error) == f'{os.strerror(errno.EDQUOT)}: /f'
  said = ValueError('RESOURCE_EXHAUSTED: No space left on device [{...}]')
  assert files.limit(said) == 'No space left on device'
  assert files.limit(lmdb.MapFullError('mdb_put: MDB_MAP_FULL: full'))


def test_a_full_map_is_an_error_of_storage(tmp_path, monkeypatch):
  real = lmdb.open
  monkeypatch.setattr(
    lmdb, 'open', lambda path, **k: real(path, **(k | {'map_size': 2**16}))
  )
  rows = versioned_rows.LmdbRows(tmp_path, '[]')
  with pytest.raises(files.StorageError, match='MDB_MAP_FULL'):
    rows.write(np.arange(9), np.zeros((9, 20_000), np.uint8), 0)
  rows.close()


def test_a_failed_reading_is_not_called_damage(tmp_path):
  """Else the advice would be to remove a good checkpoint."""
  saver = checkpoint.Checkpointer(tmp_path, 2)
  saver.save(1, {'a': np.zeros(3)}, {})
  saver.wait()
  with no_more_open_files(), pytest.raises(Exception) as error:
    saver.restore_latest()
  assert os.strerror(errno.EMFILE) in (files.limit(error.value) or '')
  assert saver.restore_latest({'a': np.zeros(3)})[0] == 1
  saver.close()


def filled(folder, width=3000, rounds=40):
  """A store with some history."""
  rng = np.random.default_rng(0)
  rows = versioned_rows.LmdbRows(folder, '[]')
  for t in range(rounds):
    ids = rng.choice(50, 8, replace=False)
    rows.write(ids, rng.integers(0, 255, (8, width)).astype(np.uint8), t)
    rows.collect(t - 3)
  rows.sync()
  return rows


@pytest.mark.parametrize('width', [10, 3000, 20_000])
def test_a_cut_store_is_named_and_not_mapped(tmp_path, width):
  """To map it would kill the process."""
  filled(tmp_path, width).close()
  path = tmp_path / 'data.mdb'
  data = path.read_bytes()
  refused = 0
  for part in np.linspace(1, len(data) - 1, 40).astype(int):
    path.write_bytes(data[:part])
    try:
      lmdb_file.check(tmp_path)
    except ValueError as error:
      assert str(path) in str(error)
      refused += 1
      with pytest.raises(ValueError, match='has been cut'):
        versioned_rows.LmdbRows(tmp_path, '[]')
      with pytest.raises(ValueError, match='has been cut'):
        versioned_rows.LmdbSnapshot(tmp_path, 39)
    else:
      if part > 2 * 4096:  # less is no store to LMDB either
        rows = versioned_rows.LmdbRows(tmp_path, '[]')
        rows.read(np.arange(50), np.empty((50, width), np.uint8))
        rows.close()
  assert refused > 25


def test_pages_that_nothing_refers_to_are_not_missed(tmp_path):
  """LMDB need not write what was taken and given back."""
  filled(tmp_path, 10).close()
  path = tmp_path / 'data.mdb'
  with open(path, 'rb') as file:
    header = lmdb_file._header(file.fileno())
    size = path.stat().st_size
    used = max(lmdb_file._ends(file.fileno(), header, size)) * header.page
  assert used < size
  os.truncate(path, used)
  lmdb_file.check(tmp_path)
  rows = versioned_rows.LmdbRows(tmp_path, '[]')
  assert rows.read(np.arange(50), np.empty((50, 10), np.uint8)).any()
  rows.close()
  os.truncate(path, used - 1)
  with pytest.raises(ValueError, match='has been cut'):
    lmdb_file.check(tmp_path)


def test_a_store_that_is_written_to_is_not_called_cut(tmp_path):
  rows = filled(tmp_path, rounds=5)
  lmdb_file.check(tmp_path)
  rows.close()


@pytest.fixture
def small_disk(tmp_path):
  """Mounts a disk of so many bytes; needs to be root."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mounted = []

  def mount(size):
    options = ['-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
    done = subprocess.run(['mount', *options], capture_output=True)
    if done.returncode:
      pytest.skip('a file system can be mounted by root alone')
    mounted.append(folder)
    return folder

  yield mount
  for folder in mounted:
    subprocess.run(['umount', str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize('size', ['24k', '80k', '120k'])
def test_a_full_disk_is_one_line_and_code_75(small_disk, tmp_path, size):
  folder = small_disk(size)
  words = [sys.executable, '-m', 'fedms_jax', '--noprogress', '--resume',
           '--flagfile=launch/presets/smoke.flags']  # fmt: skip

  def start(workdir):
    return subprocess.run(
      [*words, f'--workdir={workdir}'], cwd=ROOT, capture_output=True, text=True
    )

  failed = start(folder / 'run')
  assert failed.returncode == 75, failed.stderr
  assert failed.stderr.count('\n') == 1
  subprocess.run(['mount', '-o', 'remount,size=64m', str(folder)], check=True)
  assert start(folder / 'run').returncode == 0
  assert start(tmp_path / 'whole').returncode == 0
  one, two = (
    writers.timeless(json.loads((root / 'summary.json').read_text()))
    for root in (folder / 'run', tmp_path / 'whole')
  )
  assert one == two
