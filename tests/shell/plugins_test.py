"""Packages of users add what they want, and are found again."""

import json
import sys

import numpy as np
import pytest
import safetensors.numpy

from fedms_jax.shell import catalog, config, flags, main, plugins
from tests.shell import registry

EVERYTHING = """
import numpy as np
import flax.linen as nn
import fedms_jax
from fedms_jax.models import tasks

class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='out')(x)

X = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)
seen = []

def data():
  return fedms_jax.from_arrays(X, np.argmax(X[:, :3], 1))

def by_row(labels, clients, rng):
  return np.arange(len(labels)) % clients

def first_two(seed, stage, round, clients, size):
  return np.arange(2)

def steps(begin):
  return fedms_jax.Trigger(None, lambda s, x: s, lambda s, t: 1, reads=False)

def stages(builder):
  plain = builder.shared_model(builder.setting())
  return [builder.stage('mine', plain, builder.rounds)]

def halved():
  mean = fedms_jax.mean()
  return mean._replace(measure=lambda before, received: {'halved': 0.5})

plain = tasks.classification()
DOUBLED = plain._replace(
  loss=lambda logits, batch: (2 * plain.loss(logits, batch)[0],
                              plain.loss(logits, batch)[1]))

MODELS = {'tiny': fedms_jax.of_flax(Net())}
SOURCES = {'rows': data}
PARTITIONS = {'by_row': by_row}
SAMPLERS = {'first_two': first_two}
SCHEDULES = {'still': steps}
AGGREGATORS = {'halved': halved}
TASKS = {'doubled': DOUBLED}
OBSERVERS = {'note': seen.append}
METRICS = {'plain': fedms_jax.of_means(plain.loss)}
ALGORITHMS = {'mine': fedms_jax.Method('mine alone', '-', stages=stages)}
"""
RUN = [
  'fedms', '--plugin=everything', '--model.name=tiny', '--data.source=rows',
  '--partition.name=by_row', '--cohort.sampling=first_two', '--cohort.size=2',
  '--schedule=still', '--server.aggregator=halved', '--model.task=doubled',
  '--observers=note', '--eval.metrics=plain,f1', '--algorithm.name=mine',
  '--algorithm.stage1_rounds=2', '--algorithm.stage2_rounds=0',
  '--partition.num_clients=4', '--partition.unseen_clients=0',
  '--data.public_fraction=0', '--noprogress', '--notensorboard',
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'everything.py').write_text(EVERYTHING)
  with registry.fresh():
    sys.path.insert(0, str(tmp_path))
    yield tmp_path


def test_a_run_takes_everything_from_a_plugin_and_is_found_again(
  folder, capsys
):
  root = folder / 'run'
  assert main.main([*RUN, f'--workdir={root}']) == 0
  seen = sys.modules['everything'].seen
  assert [r['round'] for r in seen] == [0, 1]
  assert seen[0]['halved'] == 0.5  # by its aggregator
  summary = json.loads((root / 'summary.json').read_text())
  assert set(summary['metrics']) == {'plain', 'f1'}
  half = summary['metrics']['plain']['global']['own']
  assert np.isclose(summary['models']['global']['own_token_loss'], 2 * half)
  counts = json.loads((root / 'partition.json').read_text())
  assert np.ptp(np.sum(counts['train'], 1)) <= 1  # dealt by row
  assert summary['ledger']['mine']['client_rounds'] == 4
  assert '--plugin=everything' in (root / 'flags.txt').read_text()
  again = ['fedms', f'--flagfile={root}/flags.txt', f'--workdir={root}']
  capsys.readouterr()
  assert main.main([*again, '--resume']) == 0
  shown = capsys.readouterr().out
  assert main.main(['fedms', 'eval', f'--workdir={root}']) == 0
  row = next(x for x in shown.splitlines() if x.startswith('global expert'))
  assert row in capsys.readouterr().out
  assert main.main(['fedms', 'report', f'--workdir={root}']) == 0
  out = folder / 'out'
  words = ['fedms', 'export', f'--workdir={root}', '--what=global']
  assert main.main([*words, f'--out={out}']) == 0
  arrays = safetensors.numpy.load_file(out / 'parts.safetensors')
  assert arrays['network.out.kernel'].shape == (5, 3)
  assert main.main([*words[:3], '--what=client:1', f'--out={out}']) == 2
  assert main.main(['fedms', 'list', '--plugin=everything']) == 0
  told = capsys.readouterr().out
  assert 'mine alone' in told and 'schedules of plugins' in told


def test_the_template_runs_as_it_is(folder, monkeypatch):
  """A method whose option is a flag, and a schedule."""
  monkeypatch.chdir(folder)
  assert main.main(['fedms', 'new', 'my_method']) == 0
  assert main.main(['fedms', 'new', 'my_method']) == 2  # it is there
  sys.path.insert(0, str(folder / 'my_method'))
  own = ['--plugin=everything,my_method', '--algorithm.name=my_method',
         '--my_method.length=0.01', '--schedule=my_method_steps']  # fmt: skip
  words = [w for w in RUN if w.split('=')[0] not in
           {o.split('=')[0] for o in own}]  # fmt: skip
  found, _ = flags.parse_command([*words, *own], {})
  assert found.methods.my_method.length == 0.01
  text = flags.to_text(found)
  assert '--my_method.length=0.01\n' in text
  assert main.main([*words, *own, '--workdir=run']) == 0
  assert main.main(['fedms', 'eval', '--workdir=run']) == 0
  assert main.main([*words, *own, '--my_method.length=0']) == 2
  assert main.main(['fedms', 'new', 'numpy']) == 2
  assert main.main(['fedms', 'new', 'No-name']) == 2
  assert main.main(['fedms', 'new']) == 2


@pytest.mark.slow
def test_the_tests_of_the_template_pass(tmp_path):
  import os
  import subprocess

  run = [sys.executable, '-m']
  where = tmp_path / 'my_method'
  subprocess.run([*run, 'fedms_jax', 'new', str(where)], check=True)
  path = os.pathsep.join(['.', *sys.path])
  env = os.environ | {'PYTHONPATH': path}
  subprocess.run([*run, 'pytest', '-q'], check=True, cwd=where, env=env)


def test_an_installed_package_is_found_by_its_entry_points(folder):
  info = folder / 'mine-1.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text(
    'Metadata-Version: 2.1\nName: mine\nVersion: 1\n'
  )
  (info / 'entry_points.txt').write_text(
    '[fedms_jax.algorithms]\nmine = everything:ALGORITHMS\n'
    'gone = everything:NOTHING\nreal = declared:METHOD\n'
    '[fedms_jax.partitions]\nby_row = everything:by_row\n'
  )
  (folder / 'declared.py').write_text(
    'from fedms_jax import Method\n'
    'METHOD = Method("declared", "-", stages=lambda builder: [])\n'
  )
  assert set(plugins.names('algorithms')) == {'mine', 'gone', 'real'}
  assert 'everything' not in sys.modules  # nothing is imported for a list
  assert flags.parse(['fedms', '--algorithm.name=real'])
  assert catalog.find('real').summary == 'declared'
  assert flags.parse(['fedms', '--partition.name=by_row']).partition.name
  for name, said in (('mine', 'allowed'), ('gone', 'cannot be loaded')):
    with pytest.raises(ValueError, match=said):
      flags.parse(['fedms', f'--algorithm.name={name}'])


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (['--plugin=no_such_module'], 'no module'),
    (['--plugin=json'], 'declares nothing'),
    (['--plugin=.json'], 'no name of a module'),
    (['--plugin=everything', '--schedule=still2'], "'still'"),
    (['--plugin=everything', '--pretrain.mode=full', *RUN[2:]], 'begins as'),
    ([*RUN[1:], '--algorithm.name=fedms'], 'blocks'),
    (['--plugin=everything', '--model.blocks=3', *RUN[2:]], 'blocks'),
    (['--model.task=nothing'], 'no task of a plugin'),
    (['--observers=nobody'], 'no observer'),
  ],
)
def test_what_is_not_there_or_does_not_fit_is_told_in_a_line(
  folder, capsys, words, said
):
  assert main.main(['fedms', *words]) == 2
  told = capsys.readouterr().err.strip().splitlines()
  assert len(told) == 1 and said in told[0], told


def test_a_module_that_lacks_another_one_says_so(folder):
  (folder / 'broken.py').write_text('import absent_module\n')
  with pytest.raises(ModuleNotFoundError, match='absent_module'):
    plugins.load('broken')


def test_two_plugins_of_one_name_are_refused(folder):
  plugins.load('everything')
  with pytest.raises(ValueError, match='still'):
    plugins.add('schedules', 'still', lambda begin: None)


def test_what_was_given_from_python_is_not_looked_for_elsewhere():
  with registry.fresh():
    name = plugins.give('models', 'net', object())
    assert plugins.has('models', name)
  with pytest.raises(ValueError, match='given from Python'):
    plugins.find('models', name)


def test_a_config_from_before_a_plugin_keeps_its_options(folder):
  before = config.Config()
  sys.path.insert(0, str(folder))
  assert main.main(['fedms', 'new', str(folder / 'late_method')]) == 0
  sys.path.insert(0, str(folder / 'late_method'))
  plugins.load('late_method')
  assert catalog.known('late_method')
  values = config.values(before)
  assert 'late_method.length' not in values
  assert config.values(config.Config())['late_method.length'] == 1.0
