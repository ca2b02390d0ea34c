"""Checkpoints are written while rounds go on, and miss nothing."""

import json
import threading

import pytest

from fedms_jax.persistence import run_store
from fedms_jax.persistence.checkpoint import Checkpointer
from fedms_jax.persistence.workdir import Workdir
from tests import world
from tests.persistence import limits_test


@pytest.fixture
def disk(tmp_path):
  made = []

  def make(name='run', **kwargs):
    workdir = Workdir.open(tmp_path / name, 'f\n', resume=True)
    made.extend([run_store.Disk(workdir, 2, **kwargs), workdir])
    return made[-2]

  yield make
  for thing in made:
    thing.close()


class Clock:
  """Stands for `time`, of which a test says how late it is."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


def test_a_checkpoint_is_due_by_rounds_or_by_seconds(disk, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(run_store, 'time', clock)

  def due(keep):
    return [t for t in range(1, 7) if keep.due(t)]

  assert due(disk('a', every=2)) == [2, 4, 6]
  assert due(disk('b', every=0)) == []
  keep = disk('c', every=0, seconds=60.0)
  assert due(keep) == []
  clock.now += 61
  assert due(keep) == [1, 2, 3, 4, 5, 6]  # until one is saved
  world.simulate(world.stages(1)[:1], keep=keep)
  keep.wait()
  assert due(keep) == []
  clock.now += 61
  assert keep.due(1)


def test_processes_follow_the_clock_of_the_first(disk, monkeypatch):
  keep = disk(every=0, seconds=60.0)
  told = []

  class Peers:
    processes = 2

    def first(self, value):
      told.append(bool(value))
      return True

  keep.peers = Peers()
  assert keep.due(1)
  assert told == [False]


def test_rounds_go_on_while_a_checkpoint_is_written(tmp_path):
  """The thread is held; what it writes is the state of when it was saved."""
  state, held = {'round': [0]}, threading.Event()
  saver = Checkpointer(tmp_path, 2)
  array = world.np.zeros(1000, 'float32')
  saver.save(1, {'a': array}, state, lambda: held.wait(30))
  array += 1
  state['round'].append(1)
  assert saver.saving
  assert saver.oldest() is None
  held.set()
  _, arrays, found = saver.restore_latest({'a': array})
  assert not arrays['a'].any() and found == {'round': [0]}
  assert not saver.saving
  saver.close()


def test_what_a_thread_met_is_raised_by_the_next_call(tmp_path):
  def fail():
    raise OSError('the disk is gone')

  calls = {
    'saving': lambda s: s.saving,
    'save': lambda s: s.save(2, {'a': world.np.zeros(1)}, {}),
    'wait': lambda s: s.wait(),
    'close': lambda s: s.close(),
  }
  for name, call in calls.items():
    saver = Checkpointer(tmp_path / name, 2)
    saver.save(1, {'a': world.np.zeros(1)}, {}, fail)
    while not saver._saving.done():
      pass
    with pytest.raises(OSError, match='gone'):
      call(saver)
    assert saver.oldest() is None
    saver.close()


def test_metrics_are_on_the_disk_before_their_checkpoint(disk, monkeypatch):
  order = []
  keep = disk(every=1)
  keep.before_saving(lambda: order.append('metrics'))
  write = run_store.Checkpointer._write

  def spy(self, step, text, packed, before):
    write(self, step, text, packed, before)
    order.append(step)

  monkeypatch.setattr(run_store.Checkpointer, '_write', spy)
  world.simulate(world.stages(2)[:1], keep=keep)
  keep.wait()
  assert order == ['metrics', 1, 'metrics', 2]


@pytest.mark.parametrize('every', [0, 1, 3])
def test_how_often_it_is_saved_changes_no_number(tmp_path, every):
  one = limits_test.run(tmp_path / 'one', every=every)
  assert json.dumps(one[0]) == json.dumps(limits_test.run(tmp_path / 'two')[0])


@pytest.mark.parametrize(
  ('change', 'field'),
  [
    (lambda plain: plain.pop('arrivals'), 'arrivals'),
    (lambda plain: plain.pop('stores'), 'stores'),
    (lambda plain: plain['ledger'].pop('examples'), 'examples'),
    (lambda plain: plain['ledger'].update(age=3), 'age'),
  ],
)
def test_a_state_of_another_version_is_refused_by_its_field(
  tmp_path, monkeypatch, change, field
):
  save = Checkpointer.save

  def otherwise(self, step, arrays, state, *args):
    change(state)
    save(self, step, arrays, state, *args)

  monkeypatch.setattr(Checkpointer, 'save', otherwise)
  limits_test.run(tmp_path / 'run')
  with pytest.raises(ValueError, match=f'another version.*{field!r}') as error:
    limits_test.run(tmp_path / 'run')
  assert '\n' not in str(error.value)
