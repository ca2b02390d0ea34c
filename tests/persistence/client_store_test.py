"""The store of personal state: memory and disk, before and after a crash."""

import signal
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import lmdb
import ml_dtypes
import numpy as np
import pytest

from fedms_jax.persistence import client_store

N = 1_000_000
INITIAL = {
  'lora_blocks': {'A': np.full((2, 3), 0.5, np.float32), 'hole': None},
  'head': (np.zeros(3, ml_dtypes.bfloat16), np.int32(7)),
  'empty': {},
  'none': np.zeros((0, 2), np.float32),
}


def states(seed, size):
  """Stacked states of `size` clients, all values drawn from the seed."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.integers(-99, 99, (size, *np.shape(x))).astype(
      np.asarray(x).dtype
    ),
    INITIAL,
  )


def bits(tree):
  leaves, treedef = jax.tree.flatten(tree)
  arrays = [np.asarray(leaf) for leaf in leaves]
  return treedef, [(a.dtype, a.shape, a.tobytes()) for a in arrays]


def untouched(size):
  return jax.tree.map(
    lambda x: np.repeat(np.asarray(x)[None], size, axis=0), INITIAL
  )


def take(stacked, rows):
  return jax.tree.map(lambda x: x[rows], stacked)


@pytest.fixture(params=['memory', 'disk'])
def path(request, tmp_path):
  return None if request.param == 'memory' else tmp_path / 'clients'


@pytest.fixture
def store(path):
  store = client_store.ClientStore(INITIAL, path)
  yield store
  store.close()


def test_clients_never_written_have_the_initial_state(store):
  ids = [3, 0, N - 1]
  assert bits(store.gather(ids)) == bits(untouched(3))
  assert store.touched().tolist() == []
  assert store.version == -1


@pytest.mark.parametrize('flushed', [False, True])
def test_gather_after_scatter(store, flushed):
  ids = np.array([5, N - 1, 0, 2])
  new = states(0, 4)
  store.scatter(ids, new, 0)
  if flushed:
    store.flush()
  assert bits(store.gather(ids)) == bits(new)
  assert bits(store.gather(ids[::-1])) == bits(take(new, np.s_[::-1]))
  assert bits(store.gather([1, 5])) == bits(
    jax.tree.map(lambda x, y: np.concatenate([x, y[:1]]), untouched(1), new)
  )
  assert store.touched().tolist() == [0, 2, 5, N - 1]


def test_jax_arrays_go_in_and_later_changes_do_not(store):
  new = states(0, 2)
  kept = jax.tree.map(np.copy, new)
  store.scatter([1, 2], new, 0)
  new['lora_blocks']['A'] += 1
  assert bits(store.gather([1, 2])) == bits(kept)
  store.scatter([1, 2], jax.tree.map(jnp.asarray, kept), 1)
  assert bits(store.gather([1, 2])) == bits(kept)
  gathered = store.gather([1, 2])
  gathered['lora_blocks']['A'] += 1
  assert bits(store.gather([1, 2])) == bits(kept)


def test_scatter_waits_neither_for_device_nor_disk(store, monkeypatch):
  done, waited = threading.Event(), []
  pack = store._layout.pack

  def pack_late(*args):
    waited.append(done.wait(10))
    return pack(*args)

  monkeypatch.setattr(store._layout, 'pack', pack_late)
  new = states(0, 2)
  store.scatter([1, 2], new, 0)
  new['lora_blocks']['A'] += 1  # is not seen by what was scattered
  store.scatter([3], states(1, 1), 0)  # the next chunk of the cohort
  store.scatter([2], states(2, 1), 1)
  done.set()
  assert bits(take(store.gather([2, 3]), [0])) == bits(states(2, 1))
  assert bits(store.gather([3])) == bits(states(1, 1))
  store.flush()
  assert bits(take(store.gather([1, 2]), [0])) == bits(take(states(0, 2), [0]))
  assert waited == [True] * 3


def test_it_holds_what_was_scattered_written_or_not(store, monkeypatch):
  done, pack = threading.Event(), store._layout.pack
  monkeypatch.setattr(
    store._layout, 'pack', lambda *args: done.wait(10) and pack(*args)
  )
  store.scatter([1, 2], states(0, 2), 0)
  assert store.holds([2, 3, 1]).tolist() == [True, False, True]
  done.set()
  store.flush()
  assert store.holds([2, 3, 1]).tolist() == [True, False, True]


def test_an_empty_cohort_changes_nothing(store):
  store.scatter([], states(0, 0), 0)
  assert bits(store.gather([])) == bits(untouched(0))
  assert store.touched().tolist() == []


def play(store, seed, version_of=lambda v: v):
  """Random rounds of everything the store can do; yields what it saw."""
  rng = np.random.default_rng(seed)
  version = 0
  for _ in range(30):
    ids = rng.choice(12, rng.integers(1, 6), replace=False)
    if rng.random() < 0.7:
      others = rng.choice(12, 4, replace=False)
      store.scatter(others, states(int(rng.integers(99)), 4), version)
      version += int(rng.integers(2))
    action = rng.random()
    if action < 0.2:
      store.collect(version - 2)
    elif action < 0.4:
      try:
        store.rollback(version - int(rng.integers(1, 4)))
      except ValueError as e:
        yield str(e)
      version = max(store.version, 0)
    elif action < 0.5:
      store.flush()
    yield bits(store.gather(ids)), store.version, store.touched().tolist()


@pytest.mark.parametrize('seed', range(20))
def test_disk_is_memory(tmp_path, seed):
  seen = []
  for path in (None, tmp_path / 'clients'):
    store = client_store.ClientStore(INITIAL, path)
    seen.append(list(play(store, seed)))
    store.close()
  assert seen[0] == seen[1]
  # Nothing that rollback and collect should have found was left behind.
  with lmdb.open(str(path), max_dbs=3) as env, env.begin() as txn:
    rows, log = (txn.stat(env.open_db(name, txn)) for name in (b'rows', b'log'))
  assert rows['entries'] == log['entries']


def test_rollback_sees_exactly_the_state_of_the_version(store):
  rng = np.random.default_rng(0)
  everyone, snapshots = np.arange(10), {-1: bits(untouched(10))}
  for version in range(6):
    ids = rng.choice(10, 4, replace=False)
    store.scatter(ids, states(version, 4), version)
    snapshots[version] = bits(store.gather(everyone))
  for version in (5, 3, 2, -1):
    store.rollback(version)
    assert bits(store.gather(everyone)) == snapshots[version]
    assert store.version == version


def test_collect_keeps_what_a_rollback_needs_and_no_more(store):
  everyone, snapshots = np.arange(6), {}
  for version in range(6):
    store.scatter([version % 3, 3], states(version, 2), version)
    snapshots[version] = bits(store.gather(everyone))
    store.collect(version - 2)
  store.collect(3)
  assert bits(store.gather(everyone)) == snapshots[5]
  for version in (5, 4, 3):
    store.rollback(version)
    assert bits(store.gather(everyone)) == snapshots[version]
  with pytest.raises(ValueError, match='version 2'):
    store.rollback(2)
  assert bits(store.gather(everyone)) == snapshots[3]


def test_two_scatters_of_one_version_are_one_version(store):
  store.scatter([1], states(0, 1), 0)
  store.scatter([1, 2], states(1, 2), 1)
  store.scatter([2, 3], states(2, 2), 1)  # the next chunk of the cohort
  assert bits(store.gather([1, 2])) == bits(
    jax.tree.map(
      lambda a, b: np.stack([a[0], b[0]]), states(1, 2), states(2, 2)
    )
  )
  store.rollback(0)
  assert store.touched().tolist() == [1]


@pytest.mark.parametrize(
  ('ids', 'tree', 'version', 'match'),
  [
    ([1, 1], states(0, 2), 5, 'twice'),
    ([-1, 1], states(0, 2), 5, 'client numbers'),
    ([0.5, 1], states(0, 2), 5, 'client numbers'),
    ([0, 1], states(0, 2), 3, 'version=3'),
    ([0, 1], states(0, 3), 5, 'wanted'),
    ([0, 1], {'a': np.zeros(2)}, 5, 'structure'),
    (
      [0, 1],
      jax.tree.map(lambda x: x.astype(np.float64), states(0, 2)),
      5,
      'float64',
    ),
  ],
)
def test_a_wrong_scatter_is_refused_and_changes_nothing(
  store, ids, tree, version, match
):
  store.scatter([0], states(9, 1), 4)
  with pytest.raises(ValueError, match=match):
    store.scatter(ids, tree, version)
  assert (store.version, store.touched().tolist()) == (4, [0])
  assert bits(store.gather([0])) == bits(states(9, 1))


def test_a_state_without_arrays_needs_no_store():
  with pytest.raises(ValueError, match='no array'):
    client_store.ClientStore({'a': None})


def test_what_was_written_is_there_again(tmp_path):
  for version in range(3):
    store = client_store.ClientStore(INITIAL, tmp_path)
    assert store.version == version - 1
    store.scatter([version, 9], states(version, 2), version)
    store.close()
  store = client_store.ClientStore(INITIAL, tmp_path)
  assert store.touched().tolist() == [0, 1, 2, 9]
  assert bits(store.gather([2, 9])) == bits(states(2, 2))
  store.close()


@pytest.mark.parametrize(
  'other',
  [
    {**INITIAL, 'none': np.zeros((1, 2), np.float32)},
    {**INITIAL, 'none': np.zeros((0, 2), np.float64)},
    {**INITIAL, 'more': np.zeros(1)},
  ],
)
def test_states_of_another_model_are_refused(tmp_path, other):
  client_store.ClientStore(INITIAL, tmp_path).close()
  with pytest.raises(ValueError, match='another model'):
    client_store.ClientStore(other, tmp_path)
  client_store.ClientStore(INITIAL, tmp_path).close()


def test_damaged_files_are_a_value_error(tmp_path):
  client_store.ClientStore(INITIAL, tmp_path).close()
  (tmp_path / 'data.mdb').write_bytes(b'x' * 8192)
  with pytest.raises(ValueError, match='cannot be opened'):
    client_store.ClientStore(INITIAL, tmp_path)


def size_on_disk(path):
  return sum(file.stat().st_blocks * 512 for file in path.iterdir())


def test_the_file_grows_with_the_clients_touched_only(tmp_path):
  initial = {'x': np.zeros(2000, np.float32)}
  store = client_store.ClientStore(initial, tmp_path)
  rng = np.random.default_rng(0)
  empty = size_on_disk(tmp_path)
  for _ in range(5):
    store.gather(rng.choice(N, 100))
  store.flush()
  assert size_on_disk(tmp_path) == empty
  # The same 20 clients, found all over the population, again and again.
  ids = rng.choice(N, 20, replace=False)
  for version in range(60):
    new = {'x': rng.standard_normal((20, 2000)).astype(np.float32)}
    store.scatter(ids, new, version)
    store.collect(version)
  store.flush()
  assert bits(store.gather(ids)) == bits(new)
  assert size_on_disk(tmp_path) < 6 * 20 * 8000
  store.close()


CRASH = """
  import os, signal
  import numpy as np
  from fedms_jax.persistence import client_store
  store = client_store.ClientStore({'x': np.zeros(50)}, PATH)
  for version in range(5):
    ids = np.arange(version, version + 3)
    store.scatter(ids, {'x': np.full((3, 50), version + 1.0)}, version)
    store.flush()
    if version == 4:  # committed, and no checkpoint knows of it yet
      os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_between_commit_and_checkpoint_is_rolled_back(tmp_path):
  code = textwrap.dedent(CRASH).replace('PATH', repr(str(tmp_path)))
  killed = subprocess.run([sys.executable, '-c', code])
  assert killed.returncode == -signal.SIGKILL
  store = client_store.ClientStore({'x': np.zeros(50)}, tmp_path)
  assert store.version == 4
  store.rollback(3)
  assert store.version == 3
  assert store.touched().tolist() == list(range(6))
  values = store.gather(np.arange(8))['x']
  assert (values == values[:, :1]).all()
  assert values[:, 0].tolist() == [1, 2, 3, 4, 4, 4, 0, 0]
  store.close()


def test_an_error_of_the_device_is_raised_and_nothing_waits(
  tmp_path, monkeypatch
):
  store = client_store.ClientStore(INITIAL, tmp_path)

  def fail(*unused):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(store._layout, 'pack', fail)
  store.scatter([1], states(0, 1), 0)
  for call in (lambda: store.gather([1]), store.flush):
    with pytest.raises(RuntimeError, match='out of memory'):
      call()
  store.close()


def test_an_error_of_the_disk_is_raised_at_flush(tmp_path, monkeypatch):
  store = client_store.ClientStore(INITIAL, tmp_path)

  def fail(*unused):
    raise OSError('the disk is full')

  monkeypatch.setattr(store._rows, 'write', fail)
  store.scatter([1], states(0, 1), 0)
  with pytest.raises(OSError, match='full'):
    store.flush()
  store.close()


WRITER = """
import numpy as np
from tests.persistence.client_store_test import INITIAL, states
from fedms_jax.persistence import client_store

store = client_store.ClientStore(INITIAL, {path!r})
{step}
store.close()
"""


def write_elsewhere(path, step):
  """In another process: LMDB opens a folder once per process."""
  code = WRITER.format(path=str(path), step=step)
  subprocess.run([sys.executable, '-c', code], check=True)


def test_a_view_has_the_states_of_its_version_whoever_writes_on(tmp_path):
  path = tmp_path / 'clients'
  store = client_store.ClientStore(INITIAL, path)
  first, second = states(0, 2), states(1, 2)
  store.scatter([1, 2], first, 0)
  store.close()
  old = client_store.ClientView(INITIAL, path, 0)
  write_elsewhere(path, 'store.scatter([2, 3], states(1, 2), 1)')
  for _ in range(2):  # opened before the newer states, and after
    assert bits(old.gather([1, 2])) == bits(first)
    assert bits(old.gather([3, 0])) == bits(untouched(2))
    old.close()
    old = client_store.ClientView(INITIAL, path, 0)
  old.close()
  new = client_store.ClientView(INITIAL, path, 1)
  assert bits(new.gather([2, 3])) == bits(second)
  assert bits(new.gather([1])) == bits(take(first, [0]))
  new.close()
  write_elsewhere(path, 'store.collect(1)')
  with pytest.raises(ValueError, match='cannot go back to version 0'):
    client_store.ClientView(INITIAL, path, 0)


def test_after_a_write_that_failed_nobody_waits_and_nothing_is_written(
  tmp_path, monkeypatch
):
  held, written = threading.Event(), []

  def write(self, ids, rows, version):
    held.wait(30)
    written.append(version)
    raise OSError('the disk is full')

  monkeypatch.setattr(client_store.versioned_rows.LmdbRows, 'write', write)
  store = client_store.ClientStore(INITIAL, tmp_path / 'clients')
  ids = np.array([1, 2])
  store.scatter(ids, states(1, 2), 0)
  store.scatter(ids, states(2, 2), 1)
  found = []
  reader = threading.Thread(
    target=lambda: found.append(store.gather(ids)), daemon=True
  )
  reader.start()
  held.set()
  reader.join(30)
  assert found
  with pytest.raises(OSError, match='full'):
    store.flush()
  assert written == [0]
  with pytest.raises(OSError, match='full'):
    store.close()
