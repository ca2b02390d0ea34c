"""What was written is what an uninterrupted run would have written."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.persistence import writers

ROUNDS = [(stage, round) for stage in (1, 2) for round in range(3)]


def write(path, rounds, resume_at=None, clock=0.0):
  file = writers.MetricsFile(path, resume_at, (0, 3, 3))
  for stage, round in rounds:
    values = {
      'loss': np.float32(1 / (1 + round)),
      'run_seconds': clock + round,
      'depth': stage,
    }
    file.write(stage, round, values)
  file.close()


def timeless(path):
  return [writers.timeless(line) for line in writers.read_metrics(path)]


@pytest.mark.parametrize(
  'tail', [b'', b'{"stage": 1, "rou', b'{"stage": 1, "round": 0}']
)
@pytest.mark.parametrize('killed', range(1, 7))
@pytest.mark.parametrize('back', [0, 1])
def test_resumed_is_uninterrupted_but_for_the_clock(
  tmp_path, tail, killed, back
):
  whole, parts = tmp_path / 'whole.jsonl', tmp_path / 'parts.jsonl'
  write(whole, ROUNDS)
  write(parts, ROUNDS[:killed])
  with open(parts, 'ab') as file:
    file.write(tail)
  done = max(killed - back, 1)  # rounds that the checkpoint knows of
  write(parts, ROUNDS[done:], ROUNDS[done - 1], clock=100.0)
  assert timeless(parts) == timeless(whole)


LOSSES = {
  'the first line': lambda lines: lines[1:],
  'a line between': lambda lines: lines[:1] + lines[2:],
  'the last lines': lambda lines: lines[:2],
  'the stage before': lambda lines: lines[3:],
  'all lines': lambda lines: [],
  'nothing, but one is there twice': lambda lines: lines[:2] + lines[1:],
}


@pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)
def test_rounds_that_the_checkpoint_has_seen_must_be_there(tmp_path, loss):
  """A loss of power may take what was not synced."""
  path = tmp_path / 'metrics.jsonl'
  write(path, ROUNDS)
  path.write_bytes(b''.join(loss(path.read_bytes().splitlines(True))))
  before = path.read_bytes()
  with pytest.raises(ValueError, match=f'{path} (lacks|has lines)'):
    writers.MetricsFile(path, (2, 1), (0, 3, 3))
  assert path.read_bytes() == before
  path.unlink()
  with pytest.raises(ValueError, match='lacks 5 of its 5'):
    writers.MetricsFile(path, (2, 1), (0, 3, 3))


def test_synced_lines_are_on_the_disk(tmp_path, monkeypatch):
  synced, fsync = [], os.fsync
  file = writers.MetricsFile(tmp_path / 'metrics.jsonl')
  file.write(1, 0, {})

  def look(descriptor):
    synced.append(os.fstat(descriptor).st_size)
    fsync(descriptor)

  monkeypatch.setattr(os, 'fsync', look)
  file.sync()
  assert synced == [(tmp_path / 'metrics.jsonl').stat().st_size]
  file.close()


def test_a_fresh_start_leaves_nothing_of_before(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write(path, ROUNDS)
  write(path, ROUNDS[:1])
  assert len(timeless(path)) == 1


def test_a_line_is_on_the_disk_when_write_returns(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  file = writers.MetricsFile(path)
  file.write(1, 0, {'loss': 1.0})
  assert writers.read_metrics(path) == [{'stage': 1, 'round': 0, 'loss': 1.0}]
  file.close()


def test_a_half_written_line_is_no_line_but_a_damaged_one_is_an_error(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"stage": 1, "round": 0}\n{"stage": 1')
  assert timeless(path) == [{'stage': 1, 'round': 0}]
  path.write_text('{"stage": 1}\n{"stage": 1, "round": 1}\n')
  with pytest.raises(ValueError, match='line 1'):
    writers.read_metrics(path)
  with pytest.raises(ValueError, match='line 1'):
    writers.MetricsFile(path, (1, 1))


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (jnp.bfloat16(1.5), 1.5),
    (jnp.arange(2), [0, 1]),
    (np.array([1.0, np.nan]), [1.0, None]),
    (float('nan'), None),
    (jnp.float32(-np.inf), None),
    ({'a': (np.float64(1), 'x', None)}, {'a': [1.0, 'x', None]}),
  ],
)
def test_plain_values_are_what_json_reads_back(value, expected):
  plain = writers.plain(value)
  assert plain == expected
  assert json.loads(json.dumps(plain, allow_nan=False)) == expected


def test_what_is_no_number_is_refused_before_anything_is_written(tmp_path):
  path = tmp_path / 'summary.json'
  writers.write_summary(path, {'accuracy': np.float32(0.5)})
  with pytest.raises(TypeError, match='object'):
    writers.write_summary(path, {'accuracy': object()})
  assert json.loads(path.read_text()) == {'accuracy': 0.5}
  assert [p.name for p in tmp_path.iterdir()] == ['summary.json']
