"""Observers: what a person is told while a run goes on."""

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


def test_or_in_the_log(capsys):
  watch = observer.Observers(observer.Log())
  watch.stage('global', 0, 3)
  watch.compiling('depth 1')
  watch.compiling('')
  assert capsys.readouterr().out == 'global: compiling for depth 1\n'


def test_a_note_is_told_once():
  watch = observer.Observers(observer.Notes(), observer.Silent())
  for text in ('8 clients', '8 clients', '4 clients', '8 clients'):
    watch.note(text)
  assert Bar.written == ['8 clients', '4 clients']
