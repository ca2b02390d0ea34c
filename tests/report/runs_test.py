"""Runs are read from folders, and their flags repeat them."""

import json
import shlex

import pytest

from fedms_jax.persistence import writers
from fedms_jax.report import runs
from fedms_jax.shell import config, flags
from tests.report import finished

DEFAULTS = writers.parse_flags(flags.to_text(config.Config()))


def test_a_command_gives_the_config_back(tmp_path):
  values = {
    'lora.targets': 'attn/q, attn/k',
    'data.subset': "a 'bad' {}|$x",
    'client.learning_rate': 1e-4,
    'progress': False,
  }
  run = runs.read(finished.run(tmp_path, seed=3, values=values))
  words = shlex.split(runs.command([run], DEFAULTS))
  assert len(words) == 5  # fedms, three that differ, the seed
  wanted = config.from_values(values | {'seed': 3, 'progress': True})
  assert flags.parse(words) == wanted


def test_the_runs_of_a_row_are_one_loop(tmp_path):
  found = runs.comparison(finished.comparison(tmp_path)).rows[2]
  line = runs.command(found.runs, DEFAULTS)
  head, body, end = line.split('; ')
  assert (head, end) == ('for s in 0 1 2', 'done')
  words = shlex.split(body.removeprefix('do ').replace('$s', '2'))
  wanted = (tmp_path / 'runs' / '2,seed=2' / 'flags.txt').read_text()
  assert flags.to_text(flags.parse(words)) == wanted


def test_a_sweep_without_labels_is_grouped_by_what_varies(tmp_path):
  finished.comparison(tmp_path)
  record = json.loads((tmp_path / 'sweep.json').read_text())
  del record['benchmark']
  record['points']['runs/none,seed=0'] = {'seed': '0', 'lora.rank': '7'}
  (tmp_path / 'sweep.json').write_text(json.dumps(record))
  found = runs.comparison(tmp_path)
  assert [len(row.runs) for row in found.rows] == [3] * 4
  assert found.rows[0].label == 'schedule.name=dense'
  assert list(found.missing) == ['lora.rank=7']


def test_the_served_model_is_that_of_the_last_stage(tmp_path):
  run = runs.read(finished.run(tmp_path))
  assert run.served == 'mixture'
  (tmp_path / 'stages.json').write_text('[{"name": "x", "served": "global"}]')
  assert runs.read(tmp_path).served == 'global'
  (tmp_path / 'stages.json').unlink()
  assert runs.read(tmp_path).served == 'mixture'


def test_what_is_not_finished_is_refused(tmp_path):
  finished.run(tmp_path / 'run')
  (tmp_path / 'run' / 'summary.json').unlink()
  with pytest.raises(ValueError, match='not finished'):
    runs.read(tmp_path / 'run')
  with pytest.raises(ValueError, match='holds no run'):
    runs.read(tmp_path)
  (tmp_path / 'sweep.json').write_text('{"points": {"run": {"seed": "0"}}}')
  with pytest.raises(ValueError, match='no finished run'):
    runs.comparison(tmp_path)


def test_a_run_without_a_score_is_missing_and_not_ranked(tmp_path):
  finished.comparison(tmp_path)
  path = tmp_path / 'runs' / '1,seed=2' / 'summary.json'
  summary = json.loads(path.read_text())
  summary['models']['mixture']['own_mean'] = None
  path.write_text(json.dumps(summary))
  found = runs.comparison(tmp_path)
  assert {row.label: len(row.runs) for row in found.rows}['as good'] == 2
  assert list(found.missing) == ['as good']
  with pytest.raises(ValueError, match='no score'):
    _ = runs.read(path.parent).score
