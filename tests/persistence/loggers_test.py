"""Values of rounds reach every logger, once, and by one axis."""

import csv
import os
import resource
import struct

import jax.numpy as jnp
import pytest

from fedms_jax.persistence import files, loggers, tensorboard, writers
from fedms_jax.shell import main
from fedms_jax.shell.config.run import LOGGERS

SETTINGS = {'seed': 3, 'lora.rank': 4, 'algorithm.name': 'fedms'}
SUMMARY = {'models': {'mixture': {'own_mean': 0.75, 'unseen': None}}}


def board(root, first=None):
  made = tensorboard.TensorBoard(loggers.Setting(root, SETTINGS))
  made.begin(first)
  return made


def parsed(folder):
  from tensorboardX.proto import event_pb2

  for path in sorted(folder.glob('events*')):
    data = path.read_bytes()
    while data:  # record: length, 4 bytes of check, event, 4 bytes of check
      (length,) = struct.unpack('<Q', data[:8])
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def events(folder):
  """Event files' (tag, step, value), and ('', step) where events are purged."""
  from tensorboardX.proto import event_pb2

  found = []
  for event in parsed(folder):
    if event.session_log.status == event_pb2.SessionLog.START:
      found.append(('', event.step))
    for value in event.summary.value:
      found.append((value.tag, event.step, value.simple_value))
  return found


def test_the_names_are_those_of_the_flag():
  assert tuple(loggers.ALL) == LOGGERS
  assert set(loggers.PACKAGES) < set(LOGGERS)


def test_tensorboard_gets_the_numbers_by_the_name_of_the_stage(tmp_path):
  made = board(tmp_path)
  made.write('global', 3, {'loss': 0.5, 'name': 'x', 'nan': float('nan')})
  made.write('server/2', 4, {'loss': jnp.float32(0.25), 'on': True})
  made.close()
  root = tmp_path / 'tensorboard'
  assert events(root / 'global') == [('loss', 3, 0.5)]
  assert events(root / 'server_2') == [('loss', 4, 0.25), ('on', 4, 1.0)]


def test_tensorboard_hides_what_the_checkpoint_does_not_know(tmp_path):
  made = board(tmp_path, first=6)
  made.write('global', 6, {'loss': 0.5})
  made.write('personal', 9, {'loss': 0.5})
  made.close()
  for name, step in (('global', 6), ('personal', 9)):
    found = events(tmp_path / 'tensorboard' / name)
    assert found == [('', 6), ('loss', step, 0.5)]


def test_tensorboard_has_the_scores_beside_the_settings(tmp_path):
  from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

  made = board(tmp_path)
  made.finish(7, SUMMARY)
  made.close()
  found, told = {}, {}
  for event in parsed(tmp_path / 'tensorboard'):
    for value in event.summary.value:
      data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
      told |= dict(data.session_start_info.hparams)
      found[value.tag] = event.step
  assert found['mixture/own_mean'] == 7 and 'mixture/unseen' not in found
  assert '_hparams_/session_end_info' in found
  assert told['lora.rank'].number_value == 4
  assert told['algorithm.name'].string_value == 'fedms'


def test_a_full_disk_is_told_where_it_happens(tmp_path):
  """And not by a thread of TensorBoard's, or never."""
  made = board(tmp_path)
  made.FLUSH_SECONDS = -1.0
  made.write('a', 0, {'loss': 0.5})
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
  try:
    with pytest.raises(OSError) as error:
      made.write('a', 1, {'loss': 0.5})
    assert files.limit(error.value) == os.strerror(27)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  made.close()


def test_starts_within_a_second_share_no_file(tmp_path, monkeypatch):
  for pid in (1, 2):
    monkeypatch.setattr(os, 'getpid', lambda pid=pid: pid)
    made = board(tmp_path)
    made.write('a', pid, {'loss': 0.5})
    made.close()
  assert len(events(tmp_path / 'tensorboard' / 'a')) == 2


def test_the_table_has_a_column_for_every_name_of_any_round(tmp_path):
  made = loggers.Csv(loggers.Setting(tmp_path, {}))
  lines = writers.MetricsFile(tmp_path / 'metrics.jsonl')
  lines.write(0, 0, {'loss': 0.5, 'name': 'a, "b"'})
  lines.write(0, 1, {'loss': None, 'active': [1, 0], 'score': 0.25})
  made.close()
  lines.close()
  with open(tmp_path / 'metrics.csv', newline='') as file:
    first, second = csv.DictReader(file)
  assert first == {
    'stage': '0', 'round': '0', 'loss': '0.5', 'name': 'a, "b"', 'active': '',
    'score': '',
  }  # fmt: skip
  assert (second['loss'], second['active']) == ('', '[1, 0]')
  assert second['score'] == '0.25'


def test_the_table_grows_while_the_run_goes_on(tmp_path):
  made = loggers.Csv(loggers.Setting(tmp_path, {}))
  lines = writers.MetricsFile(tmp_path / 'metrics.jsonl')
  lines.write(0, 0, {'loss': 0.5})
  made.write('a', 0, {})
  assert not (tmp_path / 'metrics.csv').exists()
  made.SECONDS = -1.0
  made.write('a', 0, {})
  assert len((tmp_path / 'metrics.csv').read_text().splitlines()) == 2
  lines.close()


@pytest.mark.parametrize('name', ['wandb', 'mlflow', 'tensorboardX'])
def test_a_package_that_is_not_there_is_named(name, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda x: None)
  with pytest.raises(ValueError, match=f'needs the package {name}'):
    loggers.check([k for k, v in loggers.PACKAGES.items() if v == name])


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (['--loggers=cvs'], "'cvs'; allowed: tensorboard, csv"),
    (['--loggers=csv'], 'Add --workdir'),
  ],
)
def test_loggers_that_cannot_be_are_refused(words, said, capsys):
  assert main.main(['fedms', 'check', *words]) == 2
  assert said in capsys.readouterr().err


def test_mlflow_has_the_rounds_of_all_starts_in_one_run(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  for first, steps in ((None, (0, 1)), (1, (1, 2))):
    made = loggers.ALL['mlflow'](loggers.Setting(tmp_path, SETTINGS))
    made.begin(first)
    for step in steps:
      made.write('global', step, {'score': step / 4, 'name': 'x'})
    if first is not None:
      made.finish(3, SUMMARY)
    made.close()
  with pytest.raises(OSError, match='Go on with `resume`'):
    made._number = 'nobody'
    made.write('global', 3, {'score': 1.0})
  client = mlflow.MlflowClient((tmp_path / 'mlflow' / 'runs').as_uri())
  (experiment,) = [
    e for e in client.search_experiments() if e.name == 'fedms_jax'
  ]
  (run,) = client.search_runs([experiment.experiment_id])
  assert run.info.status == 'FINISHED'
  assert run.data.params['lora.rank'] == '4'
  assert run.data.metrics['mixture/own_mean'] == 0.75
  assert run.data.tags['stage'] == 'global'
  found = client.get_metric_history(run.info.run_id, 'score')
  assert {(m.step, m.value) for m in found} == {(0, 0.0), (1, 0.25), (2, 0.5)}


def test_wandb_writes_offline_to_the_workdir(tmp_path, monkeypatch):
  wandb = pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  for name in ('CACHE', 'CONFIG', 'DATA'):
    monkeypatch.setenv(f'WANDB_{name}_DIR', str(tmp_path / 'home'))
  numbers = []
  for _ in range(2):
    made = loggers.ALL['wandb'](loggers.Setting(tmp_path, SETTINGS))
    made.write('global', 0, {'score': 0.25, 'name': 'x'})
    made.finish(1, SUMMARY)
    config = dict(made._run.config)
    told = dict(made._run.summary)
    made.close()
    numbers.append(made._run.id)
  assert config['lora.rank'] == 4 and told['mixture/own_mean'] == 0.75
  assert numbers[0] == numbers[1]
  wandb.teardown()  # its own process may else still write
  found = list((tmp_path / 'wandb').glob('offline-run-*/*.wandb'))
  assert found and all(p.stat().st_size > 100 for p in found)
