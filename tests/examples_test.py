"""The examples run, are short, and show what they say."""

import importlib
import json
import pathlib

import numpy as np
import pytest

import examples
from tests.shell import registry

FOLDER = pathlib.Path(examples.__file__).parent
SMALL = {
  'rounds': 3,
  'progress': False,
  'partition': {'num_clients': 8, 'unseen_clients': 0},
  'cohort_size': 4,
}


@pytest.fixture(autouse=True)
def plugins_of_one_example():
  with registry.fresh():
    yield


def run(name, **more):
  module = importlib.import_module(f'examples.{name}')
  return module.main(**SMALL | more)


def test_examples_are_short_and_listed():
  page = (FOLDER / 'README.md').read_text()
  for path in FOLDER.glob('*.py'):
    assert len(path.read_text().splitlines()) < 30, path
    assert path.name in ('__init__.py', 'common.py') or path.name in page


@pytest.mark.slow
def test_a_network_of_one_s_own_and_its_lora():
  assert run('own_network').predict(np.zeros((2, 64)), 1).shape == (2, 10)
  adapted = run('lora')
  assert adapted.summary['base_model_bytes'] > 0  # frozen


@pytest.mark.slow
def test_clients_with_names():
  found = run('arrays', partition={})
  ids = {row['client'] for row in found.clients}
  assert ids == {f'hospital-{i}' for i in range(8)}
  some = found.predict(np.zeros((1, 64)), client='hospital-3')
  assert np.isfinite(some).all()


@pytest.mark.slow
def test_an_aggregator_of_one_s_own_bounds_each_step():
  one, two = (run('own_aggregator', rounds=n).parameters() for n in (1, 2))
  moved = np.abs(np.asarray(one['head']['kernel'] - two['head']['kernel']))
  assert 0 < moved.max() <= 0.01 + 1e-6


@pytest.mark.slow
def test_clients_are_lost_and_chosen(capsys):
  assert sum(r['lost'] for r in run('momentum').records) > 0
  from examples import selection

  drawn = [selection.even_first(0, 0, 1, 8, 4) for _ in range(2)]
  assert set(drawn[0]) == set(drawn[1]) == {0, 2, 4, 6}
  assert [r['clients'] for r in run('selection').records] == [4, 4, 4]


def test_metrics_by_name_and_of_one_s_own():
  found = run('metrics').summary['metrics']
  assert set(found) == {'f1', 'sure'}
  assert 0.1 <= found['sure']['global']['pooled'] <= 1


@pytest.mark.slow
def test_numbers_and_tags():
  assert set(run('regression').summary['metrics']) == {'mae', 'r2'}
  assert set(run('multi_label').summary['metrics']) == {'f1', 'exact_match'}


def test_a_hook_hears_of_each_round(capsys):
  run('logging_hook')
  told = capsys.readouterr().out
  assert all(f'round {i}: loss' in told for i in range(3))


def test_a_run_ends_early():
  found = run('early_stop', rounds=60, client_learning_rate=0.02)
  assert len(found.records) < 60


@pytest.mark.slow
def test_a_schedule_of_one_s_own():
  small = {'model': {'blocks': 4, 'width': 16, 'heads': 2}}
  found = run('own_schedule', rounds=25, pretrain_epochs=1, **small)
  depths = [r['depth'] for r in found.records if 'depth' in r]
  assert depths[:15] == [1] * 5 + [2] * 5 + [3] * 5


@pytest.mark.slow
def test_a_package_of_one_s_own(tmp_path, monkeypatch):
  from examples import own_package

  monkeypatch.chdir(tmp_path)
  small = ['--algorithm.stage1_rounds=1', '--algorithm.stage2_rounds=1']
  own_package.main('my_method', *small, '--noprogress')
  assert (tmp_path / 'my_method/runs/a/report.html').exists()


BUILT_IN = {
  'partition': {'num_clients': 6, 'unseen_clients': 1},
  'model': {'blocks': 2, 'width': 16, 'heads': 2},
  'pretrain_epochs': 1,
}


@pytest.mark.slow
def test_a_private_run_tells_its_epsilon(capsys):
  found = run('private', rounds=(2, 2), **BUILT_IN)
  assert 0 < found.summary['privacy']['epsilon'] < 2
  assert 'epsilon' in capsys.readouterr().out


@pytest.mark.slow
def test_a_server_that_waits_for_fewer_takes_less_time():
  found = run('asynchronous', rounds=3, **BUILT_IN)
  seconds = [x.summary['time']['virtual_time'] for x in found.values()]
  assert seconds[0] > max(seconds[1:]) > 0


@pytest.mark.slow
def test_a_model_learns_instructions():
  found = run('instruction_tuning', rounds=(2, 2), partition={
    'name': 'natural', 'num_clients': 8, 'unseen_clients': 0,
  })  # fmt: skip
  assert {row['client'] for row in found.clients} == set(range(8))
  assert found.summary['perplexity']


@pytest.mark.slow
def test_clip_on_few_images(tmp_path, capsys):
  """Of random weights, which know nothing; the command is the same."""
  from tests import folders

  model = folders.checkpoint(tmp_path / 'clip', 'clip')
  data = folders.pictures(tmp_path / 'data')
  given = {'model': str(model), 'data': str(data), 'rounds': (1, 1)}
  split = {'name': 'iid', 'num_clients': 2, 'unseen_clients': 0, 'min_rows': 3}
  given |= {'data_train_split': 'test', 'cohort_size': 2, 'partition': split}
  found = run('clip_few_shot', **given)
  assert set(found.scores) >= {'pretrained', 'mixture'}


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(monkeypatch):
  cells = json.loads((FOLDER / 'first_run.ipynb').read_text())['cells']
  code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
  assert code[0].count('rounds=(10, 6)') == 1
  space: dict = {}
  for text in code:
    exec(text.replace('rounds=(10, 6)', 'rounds=(2, 1)'), space)
  assert len(space['table']) >= 3
