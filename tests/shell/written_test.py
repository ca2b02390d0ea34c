"""What a run shows: bars in a terminal, lines anywhere else."""

import logging

import pytest

from fedms_jax.shell import flags, said, written
from fedms_jax.simulation import observer


class Stream:
  def __init__(self, terminal):
    self.isatty = lambda: terminal
    self.text = ''

  def write(self, text):
    self.text += text

  def flush(self):
    pass


@pytest.mark.parametrize(
  ('terminal', 'word', 'kind'),
  [
    (True, '--progress', observer.Progress),
    (True, '--noprogress', observer.Log),
    (False, '--progress', observer.Log),
  ],
)
def test_bars_are_for_terminals(terminal, word, kind, monkeypatch):
  monkeypatch.setattr('sys.stderr', Stream(terminal))
  assert type(written.shown(flags.parse(['fedms', word]))) is kind


def test_the_command_shows_what_is_logged_once(monkeypatch):
  stream, log = Stream(False), logging.getLogger('fedms_jax')
  monkeypatch.setattr('sys.stderr', stream)
  monkeypatch.setattr(logging.root, 'handlers', [])
  before = log.level, log.propagate
  try:
    said._logged()
    said._logged()
    logging.root.handlers.append(logging.StreamHandler(stream))
    log.info('compiling')
    assert stream.text.count('compiling') == 1
    assert stream.text.startswith('20')  # with its time
  finally:
    log.handlers.clear()
    log.level, log.propagate = before


def test_who_has_handlers_of_his_own_keeps_them():
  log = logging.getLogger('fedms_jax')
  assert logging.root.handlers  # those of the tests
  said._logged()
  assert not log.handlers and log.propagate


def test_settings_are_what_differs_and_who_the_run_is():
  found = written.settings(flags.parse(['fedms', '--lora.rank=2']))
  assert found == {'seed': 0, 'algorithm.name': 'fedms', 'lora.rank': 2}


def test_how_often_lines_come_is_no_part_of_a_run():
  config = flags.parse(['fedms', '--log_rounds=5', '--log_seconds=1'])
  assert flags.to_text(config) == flags.to_text(flags.parse(['fedms']))
