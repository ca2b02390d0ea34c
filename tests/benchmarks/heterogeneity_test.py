"""Methods are compared where clients differ: fairly, and told by pairs."""

import json
import pathlib

import pytest

from benchmarks import heterogeneity, heterogeneity_table, methods
from benchmarks.shared_runs import SharedRuns
from fedms_jax.report import runs
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import flags
from tests.report import finished

# What a method has on the mixed stream by itself.
LEVEL = {'fedms': 0.7, 'fedit': 0.6, 'local': 0.71, 'ditto': 0.5}


class Stub:
  """Stands for the simulator. Validation likes the rate 3e-3, tests 1e-2."""

  def __init__(self):
    self.done = []

  def __call__(self, config, log):
    log.write_text('...')
    self.done.append(config)
    folder, name = pathlib.Path(config.workdir), config.algorithm.name
    rate = config.client.learning_rate
    accuracy = LEVEL[name] + 0.1 * (rate == 1e-2)
    own = 1000.0 if name == 'fedms' else 3000.0
    made = finished.run(
      folder, accuracy, own, config.seed, config_lib.values(config)
    )
    summary = json.loads((made / 'summary.json').read_text())
    luck = 0.01 * (config.seed % 3) * (1 + len(name) % 3)
    models = summary['models']
    models['pretrained_shares'] = dict(models['global'])
    models['mixture_shares'] = dict(models['mixture'])
    models['local'] = dict(models['global'])
    for model, told in models.items():
      less = 0.02 if model in ('local', 'global') else 0.0
      told |= {'mixed': accuracy + luck - less, 'unseen': 0.25}
    summary['metrics'] = {'ece': {m: {'mixed': 0.125} for m in models}}
    if config.eval.adapt:
      models = {'mixture': models['mixture'] | {'mixed': 0.9}}
      summary['adapted'] = {'models': models, 'metrics': {}}
      summary['ledger'] = {'adaptation': {'bytes_up': 0.0, 'bytes_down': 50.0,
                                          'client_flops': 7.0}}  # fmt: skip
    (made / 'summary.json').write_text(json.dumps(summary))
    if config.algorithm.label_prior:  # then these are what is served
      stages = json.loads((made / 'stages.json').read_text())
      stages[-1]['served'] += '_shares'
      (made / 'stages.json').write_text(json.dumps(stages))
    records = [r | {'score': 0.5 + 0.2 * (rate == 3e-3), 'eval_own': 0.1 * i}
               for i, r in enumerate(runs.read(folder).records)]  # fmt: skip
    lines = [json.dumps(record) for record in records]
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    return 0


def play(root, *words):
  stub = Stub()
  code = heterogeneity.main([f'--out={root}', *words], stub)
  assert code == 0
  return stub.done, (root / 'table.md').read_text()


WORDS = ('--settings=label', '--methods=fedms,fedit,local')


def test_rates_are_searched_by_validation_on_a_seed_of_their_own(tmp_path):
  words = ('--settings=feature,label', '--methods=fedms,fedit', '--seeds=0..1',
           '--search=3e-3,1e-2', '--search_seed=9')  # fmt: skip
  done, text = play(tmp_path, *words)
  searched = [c for c in done if c.seed == 9]
  assert len(searched) == 2 * 2 * 2 and len(done) == 2 * 2 * (2 + 2)
  reported = [c for c in done if c.seed != 9]
  assert {c.client.learning_rate for c in reported} == {3e-3}
  whole = {c.algorithm.stage1_rounds for c in reported}
  assert whole == {40} and {c.algorithm.stage1_rounds for c in searched} == {20}
  # Only what is reported is looked at on the way.
  assert {c.eval.every for c in searched} == {0}
  assert {(c.eval.every, c.eval.mixed) for c in reported} == {(2, 0.5)}
  assert {c.algorithm.name for c in reported if c.eval.adapt} == {'fedit'}
  shifted = {c.data.shift for c in done}
  assert shifted == {'', 'mixed'}
  assert text.count('4 runs in all; the reported ones are 4') == 2
  assert play(tmp_path, *words)[0] == []


def test_a_seed_of_the_search_is_not_reported(tmp_path):
  with pytest.raises(ValueError, match='--search_seed=1 .*reported'):
    play(tmp_path, '--seeds=0..2', '--search_seed=1')
  with pytest.raises(ValueError, match='--settings has .lable'):
    play(tmp_path, '--settings=lable')


def test_lines_are_ordered_and_paired_by_the_mixed_stream(tmp_path):
  _, text = play(tmp_path, *WORDS, '--seeds=0..2', '--search=')
  table = text[: text.index('fedms beyond')].splitlines()
  body = [line.split(' | ') for line in table if line.count(' | ') > 6][2:]
  names = [line[0].strip('| ') for line in body]
  assert names[:2] == ['fedit + adaptation', 'local']
  assert set(names) == {
    'fedms', 'fedms + shares', 'pre-trained + shares', 'fedit',
    'fedit + adaptation', 'local',
  }  # fmt: skip
  lines = dict(zip(names, body, strict=True))
  # 0.71 and 0.7, with luck of 0, 3, 6 and of 0, 3, 6 points: always 1 above.
  assert '+1.0 [1.0, 1.0]' in lines['local'][7]
  # Of 'fedit' the luck is the same, too; all of its own costs are told.
  assert '-10.0' in lines['fedit'][7]
  assert lines['fedit'][-2] == '5.95 kB'
  assert lines['fedit + adaptation'][-2] == '6 kB'
  assert lines['pre-trained + shares'][-2] == '0 B'
  assert '0.125' in lines['fedms'][6]
  assert 'fedms beyond its local expert | +2.0' in text
  assert '3 of 3 seeds' in text


def test_what_is_dear_is_compared_at_what_the_reference_spends(tmp_path):
  """It sends three times as much, so that it is seen after a third of its
  rounds; of 6 rounds the second one."""
  _, text = play(tmp_path, *WORDS, '--seeds=0..1', '--search=')
  line = next(x for x in text.splitlines() if x.startswith('| local | 1'))
  assert line.split(' | ')[1] == '10.0'
  mine = next(x for x in text.splitlines() if x.startswith('| fedms | 5'))
  assert mine.split(' | ')[1] == '50.0'


def test_no_line_is_on_the_front_that_another_one_beats():
  views = [
    heterogeneity_table.View(
      name, {0: {'mixed': 0.5, 'own_mean': own, 'pooled': pooled, 'ece': None,
                 'own_worst_decile': None, 'unseen': None}}, 0.0, 0.0
    )
    for name, own, pooled in (('a', 0.8, 0.2), ('b', 0.7, 0.1), ('c', 0.2, 0.3))
  ]  # fmt: skip
  lines = heterogeneity_table._main(views, 'a').splitlines()[2:]
  assert ['front' in line for line in lines] == [True, False, True]


def test_settings_share_the_model_and_every_row_can_be_built(tmp_path):
  shelf, models = SharedRuns(tmp_path), []
  for name in heterogeneity.DEFAULT:
    words = heterogeneity._base(True, name, [])
    made = flags.parse(['fedms', *words])
    models.append(shelf.world(made).stages[0].algorithm)
  assert all(x is models[0] for x in models)
  options = heterogeneity.parser().parse_args(['--axes'])
  names = ','.join(heterogeneity.METHODS)
  rows = heterogeneity.entries(names, options, made)
  tried = [
    row._replace(flags=row.flags | {row.axis.flag: value})
    for row in rows
    if row.axis
    for value in row.axis.values
  ]
  searched = {row.axis.flag.partition('.')[0] for row in rows if row.axis}
  assert searched == {'schedule', 'ditto', 'fedrep', 'feddpa'}
  gates = heterogeneity.GATES.values()
  for row in [*rows, *tried, *gates]:
    words = [f'--{k}={x}' for k, x in row.flags.items()]
    base = heterogeneity._base(True, heterogeneity.DEFAULT[-1], [])
    made = shelf.world(flags.parse(['fedms', *base, *words]))
    assert made.stages


def test_tables_are_made_of_what_the_methods_have_run(tmp_path, capsys):
  """Rows, rules and tries are those of the other benchmark, and nothing is
  run; without a mixed stream there is no such table."""
  words = ('--methods=fedms,ditto', '--seeds=0..1', '--search=3e-3,1e-2',
           '--search_seed=9', '--axes', '--budget=bytes')  # fmt: skip
  for name, more in (('a', ['--eval.mixed=0.3']), ('b', [])):
    out = f'--out={tmp_path / name}'
    assert methods.main([*words, out, '--', *more], Stub()) == 0
  capsys.readouterr()
  assert heterogeneity.main([f'--of={tmp_path / "a"}']) == 0
  text = capsys.readouterr().out
  head = '### a: Methods on digits, at the bytes of fedms'
  assert text.startswith(head) and '| ditto | 5' in text
  # Of both rows two rates, and three values, of which one was run by then.
  assert '8 runs in all; the reported ones are 4.' in text
  assert 'validation rows of seed 9' in text and 'have 30 % of' in text
  assert 'seed 9, which is not among those reported' in text
  # Those of this benchmark itself are read, too, and a seed of both is told.
  again = ('--methods=fedms', '--seeds=0..1', '--search=3e-3,1e-2')
  out = [f'--out={tmp_path / "c"}', '--', '--eval.mixed=0.3']
  assert methods.main([*again, *out], Stub()) == 0
  play(tmp_path / 'd', *WORDS, '--seeds=0', '--search=')
  capsys.readouterr()
  folders = f'--of={tmp_path / "c"},{tmp_path / "d" / "label"}'
  assert heterogeneity.main([folders]) == 0
  text = capsys.readouterr().out
  assert 'seed 0, which is one of those reported' in text
  assert '### label: Clients that differ: label' in text
  summary = tmp_path / 'b' / 'runs' / 'fedms,seed=0' / 'summary.json'
  told = json.loads(summary.read_text())
  for scores in told['models'].values():
    scores.pop('mixed')
  summary.write_text(json.dumps(told))
  with pytest.raises(ValueError, match='--of has .*b, where fedms has no'):
    heterogeneity.main([f'--of={tmp_path / "b"}'])
  with pytest.raises(ValueError, match='which holds no benchmark'):
    heterogeneity.main([f'--of={tmp_path}'])


def test_axes_need_a_search(tmp_path):
  """Else a row would have the value that its search begins with."""
  for main in (methods.main, heterogeneity.main):
    with pytest.raises(ValueError, match='--axes .* --search is empty'):
      main(['--axes', '--search=', f'--out={tmp_path}'], Stub())
