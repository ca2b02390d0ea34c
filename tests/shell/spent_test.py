"""`fedms status` of a private run says what its summary will."""

import json
import types

import numpy as np
import pytest

from fedms_jax.persistence import writers
from fedms_jax.shell import flags, main, privacy, privacy_report, spent

pytest.importorskip('dp_accounting')
BASE = (
  '--privacy.mode=central --privacy.noise=3 --privacy.accountant=rdp '
  '--schedule=linear --algorithm.stage1_rounds=6 --algorithm.stage2_rounds=4'
).split()
ROUNDS = (6, 4)


def folder(root, done, *words):
  """A workdir after so many rounds of each stage; gives its config."""
  root.mkdir(parents=True)
  config = flags.parse(['fedms', *BASE, *words, f'--workdir={root}'])
  (root / 'flags.txt').write_text(flags.to_text(config))
  stages = [{'name': n, 'rounds': r} for n, r in zip('ab', ROUNDS, strict=True)]
  (root / 'stages.json').write_text(json.dumps(stages))
  file = writers.MetricsFile(root / 'metrics.jsonl')
  for stage, count in enumerate(done):
    for number in range(count):
      file.write(stage, number, {'unix_seconds': 1.0, 'depth': 1.0})
  file.close()
  return config


@pytest.mark.parametrize('done', [(2, 0), (6, 0), (6, 3), (4, 6)])
@pytest.mark.parametrize(
  'word',
  [
    '--cohort.sampling=fixed',
    '--cohort.sampling=poisson',
    '--privacy.split=0.8,0.2',
  ],
)
def test_it_is_what_the_guards_have_counted(tmp_path, done, word):
  """Also where stage 1 ended early, and left its rounds to stage 2."""
  config = folder(tmp_path / 'a', done, word)
  plan = privacy.planned(config, ROUNDS, 6)
  counted, nobody = None, np.zeros(0, int)
  for stage, count in enumerate(done):
    guard = privacy.guard(config, plan, stage)
    for _ in range(count):
      counted = guard.spend(counted, nobody, nobody)
  due = privacy_report.costs(config, plan, counted)
  found = spent.found(config)
  assert found['epsilon'] == pytest.approx(due['epsilon'], rel=1e-6)
  assert found['rounds'] == sum(done)


def test_the_epsilon_grows_with_the_rounds(tmp_path):
  found = [
    spent.found(folder(tmp_path / str(n), (n, 0)))['epsilon'] for n in (1, 3, 6)
  ]
  assert 0 < found[0] < found[1] < found[2]


def test_a_summary_is_believed(tmp_path):
  config = folder(tmp_path / 'a', ROUNDS)
  told = spent.found(config) | {'epsilon': 1.25}
  summary = {'models': {}, 'total': {}, 'privacy': told}
  writers.write_summary(tmp_path / 'a' / 'summary.json', summary)
  assert spent.found(config)['epsilon'] == 1.25
  assert 'epsilon 1.25' in spent.lines(config)[0]


def test_rows_of_clients_count_by_the_steps_of_the_worst(tmp_path):
  words = ('--privacy.mode=example', '--client.batch_size=8')
  config = folder(tmp_path / 'a', (2, 0), *words)
  assert spent.found(config) is None and 'rows' in spent.lines(config)[0]
  rows = [[20, 10]] * config.partition.num_clients
  path = tmp_path / 'a' / 'partition.json'
  path.write_text(json.dumps({'train': rows}))
  found = spent.found(config)
  times = privacy.participations(
    config.seed, privacy.planned(config, ROUNDS, 6).how, (2, 0)
  )
  # Two epochs of 30 rows in batches of 8.
  assert found['rounds'] == 2 * 4 * times.max()


def test_the_command_and_the_table_say_it(tmp_path, capsys):
  config = folder(tmp_path / 'runs' / 'a', (3, 0))
  plain = tmp_path / 'runs' / 'b'
  plain.mkdir()
  (plain / 'flags.txt').write_text(flags.to_text(flags.parse(['fedms'])))
  (tmp_path / 'runs' / 'c').mkdir()
  (tmp_path / 'runs' / 'file').touch()
  folder(tmp_path / 'runs' / 'torn', (1, 0))
  with open(tmp_path / 'runs' / 'torn' / 'metrics.jsonl', 'a') as file:
    file.write('no line\n{"stage": 0, "round": 1}\n')
  epsilon = f'{spent.found(config)["epsilon"]:.4g}'
  assert main.main(['fedms', 'status', f'--workdir={config.workdir}']) == 0
  assert f'epsilon {epsilon} at delta' in capsys.readouterr().out
  assert main.main(['fedms', 'status', f'--all={tmp_path}/runs/*']) == 0
  head, *rows, rest = capsys.readouterr().out.splitlines()
  assert head.split()[-1] == 'epsilon' and rest == '2 other paths'
  assert [row.split()[-1] for row in rows] == [epsilon, '-', '?']
  assert '3 of 10' in rows[0] and '0 of 50' in rows[1]
  assert 'damaged' in rows[2]
  assert main.main(['fedms', 'status', f'--all={tmp_path}/runs/c']) == 2
  assert 'matches no run' in capsys.readouterr().err


def test_without_an_accountant_the_rest_is_shown(tmp_path, monkeypatch, capsys):
  config = folder(tmp_path / 'a', (3, 0))

  def missing():
    raise ValueError('no accountant')

  accounts = types.SimpleNamespace(**vars(privacy.accounts))
  accounts.library = missing
  monkeypatch.setattr(privacy, 'accounts', accounts)
  assert main.main(['fedms', 'status', f'--workdir={config.workdir}']) == 0
  text = capsys.readouterr().out
  assert 'privacy: no accountant' in text and 'checkpoint' in text
