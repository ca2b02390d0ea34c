"""Observers: what a person is told while a run goes on."""

import logging
import sys
import types

import pytest

from fedms_jax.simulation import observer


class Bar:
  """Keeps what a tqdm bar is asked for."""

  made: list = []
  written: list = []

  def __init__(self, total, initial=0, delay=0, **kwargs):
    self.n, self.total, self.delay, self.closed = initial, total, delay, False
    Bar.made.append(self)

  def set_postfix(self, values, refresh=True):
    del refresh
    self.postfix = ', '.join(f'{k}={v}' for k, v in values.items())

  def set_postfix_str(self, text, refresh=True):
    del refresh
    self.postfix = text

  @staticmethod
  def write(text):
    Bar.written.append(text)

  def update(self, count=1):
    self.n += count

  def close(self):
    self.closed = True


@pytest.fixture(autouse=True)
def tqdm(monkeypatch):
  Bar.made, Bar.written = [], []
  monkeypatch.setitem(sys.modules, 'tqdm', types.SimpleNamespace(tqdm=Bar))


def test_a_long_pass_has_a_bar_and_a_short_one_none():
  watch = observer.Observers(observer.Progress())
  watch.derived(3, 3)
  watch.derived(0, 0)
  assert not Bar.made
  for done in (1, 2, 5):
    watch.derived(done, 5)
  (bar,) = Bar.made
  assert (bar.n, bar.total, bar.closed) == (5, 5, True)
  assert bar.delay > 0  # quick ones end before they are shown
  watch.derived(1, 2)
  watch.close()
  assert len(Bar.made) == 2 and Bar.made[1].closed


def test_what_is_compiled_shows_in_the_bar_until_the_round_has_begun():
  watch = observer.Observers(observer.Progress())
  watch.compiling('depth 0')  # no stage, no bar
  watch.stage('global', 0, 3)
  watch.compiling('depth 1')
  (bar,) = Bar.made
  assert bar.postfix == 'compiling for depth 1'
  watch.compiling('')
  assert not bar.postfix
  watch.round({'score': 0.5, 'depth': 1.0})
  shown = bar.postfix
  watch.compiling('depth 2')
  assert bar.postfix == 'compiling for depth 2'
  watch.compiling('')
  assert bar.postfix == shown and '0.5' in shown


def logged(caplog, *args, ticks=(0.0,)):
  """A log whose clock gives one tick after another, and its lines."""
  caplog.set_level(logging.INFO, 'fedms_jax')
  times = iter(ticks)
  return observer.Log(*args, clock=lambda: next(times))


def test_or_in_the_log(caplog):
  watch = observer.Observers(logged(caplog))
  watch.stage('global', 0, 3)
  watch.compiling('depth 1')
  watch.compiling('')
  assert caplog.messages == [
    'global: 3 rounds',
    'global: compiling for depth 1',
  ]


def test_the_log_tells_of_a_round_now_and_then(caplog):
  """After so many seconds, and of the last one."""
  log = logged(caplog, 30.0, ticks=(0, 10, 29, 31, 50, 60.5, 62))
  log.stage('global', 0, 6)
  for number in range(6):
    log.round({'score': number / 8, 'depth': 2.0})
  told = [line for line in caplog.messages if 'round ' in line]
  assert [line.split(',')[0] for line in told] == [
    'global: round 3 of 6', 'global: round 6 of 6'
  ]  # fmt: skip
  assert 'score 0.2500, depth 2' in told[0]
  # Three rounds in 31 s, and three more are left.
  assert '0.0968 rounds a second, 0:00:31 left' in told[0]


def test_or_every_few_rounds(caplog):
  log = logged(caplog, 0.0, 2, ticks=range(0, 9000, 1000))
  log.stage('personal', 3, 8)
  for _ in range(5):
    log.round({})
  told = [line.split(',')[0] for line in caplog.messages]
  assert told == [
    'personal: 8 rounds', 'personal: round 5 of 8', 'personal: round 7 of 8',
    'personal: round 8 of 8',
  ]  # fmt: skip
  assert 'after 3 of them' in caplog.messages[0]
  # Of this start alone: two rounds in 2,000 s.
  assert '0.001 rounds a second, 0:50:00 left' in caplog.messages[1]


class Kept:
  """A logger that keeps what it is given; at `write` it may fail."""

  def __init__(self, fails=False):
    self.told, self.closed, self._fails = [], 0, fails

  def write(self, stage, step, values):
    self.told.append((stage, step, values))

  def finish(self, step, summary):
    self.told.append((step, summary))

  def close(self):
    self.closed += 1
    if self._fails:
      raise OSError('no room')


class Lines:
  """A metrics file that a resumed run goes on with."""

  rounds = 4

  def write(self, stage, round, values):
    self.rounds += 1

  def close(self):
    self.closed = True


def test_loggers_have_one_axis_over_stages_and_all_are_closed():
  metrics, bad, good = Lines(), Kept(fails=True), Kept()
  watch = observer.Writers(metrics, [bad, good], ['a', 'b'])
  for stage, number in (('server', 0), ('a', 4), ('b', 0)):
    watch.round({'stage': stage, 'round': number, 'score': 0.5})
  watch.finish({'x': 1})
  assert good.told == [
    ('a', 4, {'score': 0.5}), ('b', 5, {'score': 0.5}), (6, {'x': 1})
  ]  # fmt: skip
  with pytest.raises(OSError, match='no room'):
    watch.close()
  assert good.closed == bad.closed == 1 and metrics.closed
  watch.close()
  assert good.closed == 1


def test_a_note_is_told_once():
  watch = observer.Observers(observer.Notes(), observer.Silent())
  for text in ('8 clients', '8 clients', '4 clients', '8 clients'):
    watch.note(text)
  assert Bar.written == ['8 clients', '4 clients']
