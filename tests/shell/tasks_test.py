"""Runs over a sequence of tasks."""

import json
import types

import jax
import numpy as np
import pytest

from fedms_jax.algorithms import subspaces
from fedms_jax.cluster import memory
from fedms_jax.report import printed, single
from fedms_jax.shell import main, task_run
from fedms_jax.shell import tasks as shell_tasks
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import lifelong, observer
from tests import folders, world
from tests.shell.pipeline_test import IMAGES, SMALL, StopEachRound, made, run

PROBE = (*IMAGES, '--data.synthetic_classes=4', '--algorithm.name=linear_probe',
         '--pretrain.epochs=0', '--cohort.size=3')  # fmt: skip


@pytest.fixture(autouse=True)
def room_between():
  """Their runs compile more than a process has memory maps for."""
  yield
  memory.make_room(0.3)


def shared(state):
  return state.roles.shared


def test_one_task_is_the_plain_federation():
  plain, _, _ = run(made(*PROBE))
  one, _, simulation = run(made(*PROBE, '--tasks.count=1', '--tasks.head=kept'))
  world.same(shared(one), shared(plain))
  assert isinstance(simulation, lifelong.Lifelong)


@pytest.mark.slow
def test_what_does_nothing_is_finetuning():
  """EWC and LwF without weight."""
  end = [
    run(made(*PROBE, '--tasks.count=2', *words))[0]
    for words in ((), ('--tasks.method=ewc', '--tasks.weight=0'))
  ]
  world.same(shared(end[0]), shared(end[1]))
  heavy = run(made(*PROBE, '--tasks.count=2', '--tasks.method=ewc',
                   '--tasks.weight=10', '--client.optimizer=sgd'))  # fmt: skip
  light = run(made(*PROBE, '--tasks.count=2', '--client.optimizer=sgd'))
  moved = jax.tree.map(
    lambda x, y: float(np.abs(x - y).max()), shared(heavy[0]), shared(light[0])
  )
  assert max(jax.tree.leaves(moved)) > 1e-6


class StopIn(observer.Silent):
  """Asks to stop in the rounds of a stage."""

  def __init__(self, name):
    self.name, self.inside = name, False

  def stage(self, name, done, total):
    self.inside = name == self.name and not done

  def stop_requested(self):
    return self.inside


STREAM = (*PROBE, '--tasks.count=2', '--tasks.arrival=2')


@pytest.mark.parametrize(
  ('watch', 'more', 'stops'),
  [
    pytest.param(StopIn('global-2'), (), 2, marks=pytest.mark.slow),
    # Two stages of two rounds, and one that measures.
    pytest.param(StopEachRound(), ('--tasks.method=ewc',), 5,
                 marks=pytest.mark.slow),
  ],
  ids=['within a task', 'everywhere'],
)  # fmt: skip
def test_a_sequence_that_is_stopped_ends_the_same(watch, more, stops, tmp_path):
  """Its matrix and its stream included; the tasks.json is whole."""
  whole, _, plain = run(made(*STREAM, *more))
  state = None
  for _ in range(stops):
    assert state is None
    kept = tmp_path / 'tasks.json'
    if kept.exists():  # of rounds that a kill has lost
      told = json.loads(kept.read_text())
      told['arriving'].append([9, 0, 1.0, 2.0])
      kept.write_text(json.dumps(told))
    state, _, simulation = run(made(*STREAM, *more), tmp_path, watch)
  world.same(state.roles, whole.roles)
  assert simulation.found == plain.found
  assert json.loads((tmp_path / 'tasks.json').read_text()) == plain.found
  rows = sum(line[3] for line in plain.found['arriving'])
  assert rows == plain.federation.train.sizes().sum()


def test_the_matrix_is_of_every_task_after_every_step():
  found = made(*PROBE, '--tasks.count=2', '--algorithm.stage1_rounds=12',
               '--client.learning_rate=0.03', '--cohort.size=4')  # fmt: skip
  _, _, simulation = run(found)
  told = task_run.summary(found, simulation.federation, simulation)['tasks']
  matrix = [step['pooled']['global'] for step in told['steps']]
  assert np.shape(matrix) == (2, 2)
  # Classes that nobody has met are never said, and old ones are forgotten.
  assert matrix[0][1] == told['before']['pooled']['global'][1] == 0
  assert matrix[0][0] > 0.4 and matrix[1][1] > 0.4, matrix
  assert matrix[1][0] < matrix[0][0] - 0.2, matrix
  scores = told['scores']['pooled']['global']
  assert scores['forgetting'] == pytest.approx(matrix[0][0] - matrix[1][0])
  assert told['kept_bytes'] == 0
  page = single.tasks.section(told)
  assert page.count('<table') == 3 and 'task 2' in page
  lines = printed.tasks.lines(told)
  assert any(line.startswith('tasks, global on pooled') for line in lines)


@pytest.mark.slow
def test_a_head_that_is_a_sum_forgets_nothing():
  found = made(*IMAGES, '--data.synthetic_classes=4', '--algorithm.name=ridge',
               '--tasks.count=2')  # fmt: skip
  tasks, _, _ = run(found)
  once, _, _ = run(made(*IMAGES, '--data.synthetic_classes=4',
                        '--algorithm.name=ridge'))  # fmt: skip
  world.close(shared(tasks), shared(once), atol=1e-3)


def test_which_classes_compete_and_which_are_learned():
  def arrays(*words):
    found = made(*PROBE, '--tasks.count=2', *words)
    home = worlds.world(found)
    (mine,) = shell_tasks.frozen(found, home.data).values()
    mine = {name: np.asarray(x) for name, x in mine.items()}
    tasks = shell_tasks.sequence(found, home.data).classes
    return mine['visible'], mine['learned'], mine['old'], tasks

  visible, learned, old, (a, b) = arrays()
  for task in range(2):
    np.testing.assert_array_equal(visible[:, task], [a, a | b])
    np.testing.assert_array_equal(old[:, task], [a & b, a])
  np.testing.assert_array_equal(learned, visible)
  new = arrays('--tasks.method=lwf')[1]
  np.testing.assert_array_equal(new[:, 0], [a, b])
  own = arrays('--tasks.identity=known')[0]
  np.testing.assert_array_equal(own[1], [a, b])


@pytest.mark.slow
def test_a_lora_for_each_task_is_stopped_and_goes_on(tmp_path):
  found = made(*IMAGES, '--data.synthetic_classes=4', '--tasks.count=2',
               '--algorithm.name=fedit', '--tasks.method=orthogonal_lora',
               '--client.learning_rate=0.1')  # fmt: skip
  whole, _, simulation = run(found)
  state = None
  while state is None:
    state, *_ = run(found, tmp_path, StopEachRound())
  world.same(state.roles, whole.roles)
  before = simulation.initial.frozen['base']['blocks']['attn']['q']['kernel']
  after = whole.roles.frozen['base']['blocks']['attn']['q']['kernel']
  assert float(np.abs(after - before).max()) > 1e-5


@pytest.mark.slow
def test_stages_of_fedms_go_on_from_task_to_task():
  found = made(*IMAGES, '--data.synthetic_classes=4', '--tasks.count=2',
               '--tasks.order=per_client')  # fmt: skip
  state, records, simulation = run(found)
  names = ['global-1', 'personal-1', 'global-2', 'personal-2']
  assert list(dict.fromkeys(r['stage'] for r in records))[1:] == names
  told = task_run.summary(found, simulation.federation, simulation)['tasks']
  assert {'mixture', 'global', 'local'} <= told['scores']['own'].keys()
  assert told['served'] == 'mixture' and state.round == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  'words',
  [
    ('--tasks.method=lwf',),
    ('--tasks.method=glfc', '--tasks.memory=8'),
    ('--tasks.method=replay', '--tasks.memory=8', '--tasks.blend=1'),
    ('--tasks.method=joint', '--tasks.name=domain'),
    ('--tasks.method=ewc', '--tasks.decay=0.5'),
    ('--tasks.name=label', '--tasks.repeats=2', '--tasks.order=staggered'),
  ],
)
@pytest.mark.parametrize('name', ['fedit', 'fedavg', 'fedprox', 'flora'])
def test_ways_to_remember_go_with_any_algorithm(name, words):
  found = made(*IMAGES, '--data.synthetic_classes=4', '--tasks.count=2',
               f'--algorithm.name={name}', *words)  # fmt: skip
  _, _, simulation = run(found)
  assert len(simulation.found['steps']) == found.tasks.count * (
    found.tasks.repeats
  )


REFUSED = {
  ('--tasks.method=ewc',): 'Set --tasks.count',
  ('--tasks.count=2', '--tasks.memory=3'): '--tasks.memory=3 is for',
  ('--tasks.count=2', '--tasks.method=replay'): '--tasks.memory=0 is for',
  ('--tasks.count=2', '--tasks.weight=3'): '--tasks.weight=3 is for',
  ('--tasks.count=2', '--tasks.choice=herding'): (
    '--tasks.choice=herding is for'
  ),
  ('--tasks.count=2', '--tasks.share=0.5'): '--tasks.share=0.5 is for',
  ('--tasks.count=2', '--tasks.name=column'): '--tasks.column= is for',
  ('--tasks.count=2', '--tasks.column=x'): '--tasks.column=x is for',
  ('--tasks.count=2', '--tasks.name=column', '--tasks.column=x'): (
    "--tasks.column='x' is not for the embedded source"
  ),
  ('--tasks.count=2', '--tasks.method=fot', '--algorithm.name=flora'): (
    'makes the factors of LoRA anew'
  ),
  ('--tasks.count=2', '--tasks.method=fot', '--algorithm.name=fedms'): (
    'several models'
  ),
  ('--tasks.count=2', '--algorithm.name=fedweit'): '--tasks.identity=unknown',
  (
    '--tasks.count=2',
    '--algorithm.name=fedweit',
    '--tasks.identity=known',
    '--tasks.method=joint',
  ): '--tasks.method=joint',
  ('--tasks.count=2', '--tasks.decay=0.5'): '--tasks.decay=0.5 is for',
  ('--tasks.count=2', '--tasks.temperature=3'): '--tasks.temperature=3 is for',
  ('--tasks.count=2', '--tasks.name=domain', '--tasks.identity=known'): (
    '--tasks.identity=known'
  ),
  ('--tasks.count=2', '--stages=S2'): '--stages=S2',
  ('--tasks.count=2', '--eval.adapt=1'): '--eval.adapt=1',
  ('--tasks.count=5',): '--tasks.count=5 tasks',
  ('--tasks.count=9', '--tasks.name=domain'): '--tasks.count=9 domains',
  ('--tasks.count=2', '--algorithm.name=scaffold', '--tasks.method=ewc'): (
    'control variates'
  ),
  ('--tasks.count=2', '--algorithm.name=fedms', '--tasks.method=lwf'): (
    'several models'
  ),
  ('--tasks.count=2', '--algorithm.name=ncm', '--tasks.method=joint'): (
    '--tasks.method=joint'
  ),
  ('--tasks.count=2', '--algorithm.name=ridge', '--tasks.order=staggered'): (
    '--tasks.order=staggered'
  ),
  ('--tasks.count=2', '--algorithm.name=ridge', '--tasks.arrival=2'): (
    '--tasks.arrival=2'
  ),
}


@pytest.mark.parametrize(('words', 'said'), REFUSED.items(), ids=str)
def test_what_means_nothing_is_refused(words, said, capsys):
  assert main.main(['fedms', *PROBE, *words]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count('\n') == 1


LANGUAGE = ('--model.name=gpt', '--model.head=causal_lm', '--tasks.count=2',
            '--tasks.name=column', '--tasks.column=label')  # fmt: skip


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ((), '--tasks.head=fresh'),
    (('--tasks.head=kept', '--tasks.method=lwf'), '--tasks.method=lwf'),
    (('--tasks.head=kept', '--tasks.name=label', '--tasks.column='),
     '--tasks.name=label'),
  ],
)  # fmt: skip
def test_what_is_of_classes_is_no_part_of_a_language_model(words, said, capsys):
  assert main.main(['fedms', *IMAGES, *LANGUAGE, *words]) == 2
  err = capsys.readouterr().err
  assert f'{said} does not go with --model.head=causal_lm' in err


@pytest.mark.slow
@pytest.mark.parametrize(
  'words',
  [
    ('--tasks.method=fot', '--tasks.share=0.5'),
    ('--tasks.method=replay', '--tasks.memory=4', '--tasks.choice=herding'),
    ('--tasks.method=ewc',),
  ],
  ids=lambda words: words[0],
)
def test_a_language_model_meets_domains(words, tmp_path):
  folder = folders.texts(tmp_path, 90)
  found = made(
    *SMALL, f'--data.source={folder}', '--data.train_split=test',
    '--data.input_column=text', '--data.max_tokens=24', *LANGUAGE,
    '--tasks.head=kept', '--algorithm.name=fedit', *words,
  )  # fmt: skip
  state, _, simulation = run(found)
  told = task_run.summary(found, simulation.federation, simulation)['tasks']
  served = [s['pooled']['global'] for s in told['steps']]
  assert told['nats'] and np.shape(served) == (2, 2)
  assert (np.array(served) < -0.5).all()  # minus the loss of a token
  assert 'in nats' in single.tasks.section(told)
  assert any('in nats' in line for line in printed.tasks.lines(told))
  data = simulation.federation
  of = data.table.columns['task']
  assert not of[data.public].any() and set(of[data.train.rows]) == {0, 1}
  if 'herding' in words[-1]:
    assert data.table.columns['rank'][data.train.rows].min() == 0
  if words[0] == '--tasks.method=fot':
    kept = state.roles.frozen['tasks'][subspaces.KEPT]
    assert all(float(np.trace(x[0])) >= 1 for x in kept.values())


@pytest.mark.slow
def test_shielded_tasks_are_stopped_and_go_on(tmp_path):
  found = made(*IMAGES, '--data.synthetic_classes=4', '--tasks.count=2',
               '--algorithm.name=fedit', '--tasks.method=fot',
               '--client.learning_rate=0.1')  # fmt: skip
  whole, _, _ = run(found)
  state = None
  while state is None:
    state, *_ = run(found, tmp_path, StopEachRound())
  world.same(state.roles, whole.roles)
  # Directions are kept of the first task, and none of the second is needed.
  kept = whole.roles.frozen['tasks'][subspaces.KEPT]
  assert all(float(np.trace(x[0])) >= 1 for x in kept.values())


def test_losses_are_scores_with_a_minus():
  sums = {'loss/a': np.array([[6.0, 2.0]]), 'score/a': np.array([[1.0, 2.0]])}
  for perplexity, expected in ((True, [-6, 2]), (False, [1, 2])):
    task = types.SimpleNamespace(perplexity=perplexity)
    stage = types.SimpleNamespace(algorithm=types.SimpleNamespace(task=task))
    simulation = types.SimpleNamespace(stages=[stage])
    found = lifelong._models(simulation, sums)
    assert list(found) == ['a'] and found['a'][0].tolist() == expected


def test_a_teacher_needs_a_model_that_all_have(capsys):
  words = ('--algorithm.name=fedper', '--tasks.count=2', '--tasks.method=lwf')
  assert main.main(['fedms', *PROBE, *words]) == 2
  assert '--tasks.method' in capsys.readouterr().err


def test_worlds_of_equal_data_share_it():
  first = worlds.world(made(*PROBE, '--tasks.count=2'))
  second = worlds.world(
    made(*PROBE, '--tasks.count=2', '--tasks.method=joint'), first
  )
  assert second.data is first.data
  # One object for all tasks, so that none compiles anything again.
  assert first.stages[0].algorithm is first.stages[1].algorithm
  views = [
    w.stages[1].view(w.data).train.sizes().sum() for w in (first, second)
  ]
  assert views[0] < views[1] == first.data.train.sizes().sum()
