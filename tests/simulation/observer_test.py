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


def test_a_note_is_told_once():
  watch = observer.Observers(observer.Notes(), observer.Silent())
  for text in ('8 clients', '8 clients', '4 clients', '8 clients'):
    watch.note(text)
  assert Bar.written == ['8 clients', '4 clients']
