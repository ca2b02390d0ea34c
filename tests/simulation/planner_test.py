"""The planner: what it predicts is what programs take, and it says no early."""

import re

import jax
import numpy as np
import pytest

from fedms_jax.core import rounds, tree
from fedms_jax.core.types import Partition, Plan
from fedms_jax.data.cohorts import chunks
from fedms_jax.schedules import triggers
from fedms_jax.simulation import cohorts, planner
from fedms_jax.simulation.planner import Execution, Planner
from tests import world

PLANS = [world.TOP] * 6


def cohort(clients=6, steps=2, batch=4, held=2):
  rows = world.cohort_rows(clients, steps, batch)
  counts = (rows >= 0).any(2).sum(1)
  weights = np.ones(clients, np.float32)
  validation = rows[:, 0, :held]
  ids, lost = np.arange(clients), np.zeros(clients, bool)
  return cohorts.Cohort(0, ids, lost, rows, counts, weights, validation)


def task(stage=world.first_stage, of=None, plans=PLANS):
  """A round of the first of `Planner.choose`'s arguments; the rest of them."""
  algorithm, roles = stage()
  begun = cohorts.Round(
    algorithm, roles, (), (), of or cohort(len(plans)), plans, jax.random.key(0)
  )
  return begun, world.table(), plans


def scene(stage=world.first_stage, **kwargs):
  algorithm, roles = stage()
  return planner.Scene(algorithm, roles, world.table(), cohort(**kwargs), 6)


def choose(stage=world.first_stage, plans=PLANS, sent=0, told=None, **kwargs):
  tell = (told if told is not None else []).append
  return Planner('chunk', tell=tell, **kwargs).choose(
    *task(stage, plans=plans), sent
  )


def model_bytes(stage=world.first_stage):
  return tree.nbytes((stage()[1], world.table()))


def memory_for(clients, plan, stage=world.first_stage, program=None):
  """Memory in which that many clients fit under a plan, by a whisker."""
  program = program or planner.of_training
  few, more = (program(scene(stage), plan, n) for n in (2, 4))
  need = few + (clients - 2) * (more - few) / 2
  return 1.001 * need / 0.9 + model_bytes(stage)


@pytest.fixture(autouse=True, scope='module')
def compile_once():
  """The same programs are measured by many of these tests."""
  patch = pytest.MonkeyPatch()
  for name in ('of_training', 'of_scoring'):
    patch.setattr(planner, name, remembered(getattr(planner, name)))
  yield
  patch.undo()


def remembered(program):
  found = {}

  def measure(scene, plan, width):
    shape = scene.cohort.rows.shape[1:], scene.cohort.validation.shape[1:]
    key = scene.algorithm, plan, width, shape
    if key not in found:
      found[key] = program(scene, plan, width)
    return found[key]

  return measure


def test_memory_grows_by_the_same_for_each_client():
  """The law that the prediction rests on."""
  found = [planner.of_training(scene(), world.DENSE, n) for n in (2, 4, 8)]
  each = (found[1] - found[0]) / 2
  assert found[2] == pytest.approx(found[0] + 6 * each, rel=0.1)
  assert each > 0.5 * found[0] / 2


def test_as_many_fit_as_the_device_has_memory_for():
  """Of six clients, four fit at a time: two chunks of three."""
  told = []
  how = choose(memory=memory_for(4, world.TOP), told=told)
  assert (how.mode, how.width) == ('chunk', 3)
  assert re.fullmatch(
    r'fedms/global: 3 clients at a time: [\d.]+ kB each, [\d.]+ kB free',
    told[0],
  )
  assert choose(memory=1e9).width == 6


def test_what_lies_beside_the_clients_is_not_theirs():
  """A table that is sent each round is there twice."""
  enough, dense = memory_for(4, world.DENSE), [world.DENSE] * 6
  assert choose(memory=enough, plans=dense).width == 3
  sent = int(0.4 * enough)
  assert choose(memory=enough, plans=dense, sent=sent).width < 3


@pytest.mark.slow
def test_results_lie_there_until_they_are_fetched():
  """A personal stage has those of two rounds."""
  whole = memory_for(6, world.TOP, world.second_stage)
  assert choose(world.second_stage, memory=whole).width < 6


def test_deeper_plans_get_narrower_chunks():
  enough = memory_for(2, world.DENSE)
  wide = choose(memory=enough)
  narrow = choose(memory=enough, plans=[world.DENSE] * 6)
  both = choose(memory=enough, plans=[world.TOP] * 3 + [world.DENSE] * 3)
  assert narrow.width < wide.width
  assert both.width == narrow.width


def test_a_plan_that_holds_for_all_depths_is_made_once(monkeypatch):
  measured = []
  training = planner.of_training

  def counted(scene, plan, width):
    measured.append(plan)
    return training(scene, plan, width)

  monkeypatch.setattr(planner, 'of_training', counted)
  plan = Planner('chunk', memory=1e9)
  for plans in (PLANS, [world.DENSE] * 6, [world.GAP] * 6, PLANS):
    plan.choose(*task(plans=plans))
  assert measured == [world.DENSE]


def test_depths_between_are_not_measured(monkeypatch):
  """Two programs do for any number of depths, and do not say too little."""
  measured, real = [], planner.of_training
  memory = memory_for(2, world.DENSE)

  def counted(scene, plan, width):
    if width > 1:  # of one client, only before it is refused
      measured.append(plan)
    return real(scene, plan, width)

  monkeypatch.setattr(planner, 'of_training', counted)
  middle = Plan((False, True, True), 1)
  plan = Planner('chunk', memory=memory)
  for one in (world.TOP, middle, world.DENSE, middle):
    plan.choose(*task(plans=[one] * 6))
  assert measured == [world.DENSE, world.TOP]
  predicted = plan._needed(counted, scene(), middle, 1, 4)
  found = real(scene(), middle, 4)
  # Of the last block less is computed, so that a line lies above it.
  assert found <= predicted <= 1.3 * found


def test_a_client_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='Lower `Options.batch_size`') as error:
    choose(memory=model_bytes() + 1000)
  assert re.match(
    r'not one client fits: while it is trained it takes [\d.]+ kB '
    r'\(fedms/global, depth 1\) beside model and data, and 900 B are free\.',
    str(error.value),
  )


def test_nor_one_whose_validation_rows_do_not():
  algorithm, roles = world.first_stage()
  many = cohort(clients=1)._replace(validation=np.zeros((1, 900), np.int32))
  one = planner.Scene(algorithm, roles, world.table(), many, 1)
  memory = planner.of_scoring(one, world.DENSE, 1) / 0.9 + model_bytes() - 5000
  free = 0.9 * (memory - model_bytes())
  assert planner.of_training(one, world.DENSE, 1) < free
  with pytest.raises(ValueError, match='scored .*`Options.validation_rows`'):
    Planner('chunk', memory=memory).choose(*task(of=many, plans=[world.DENSE]))


def test_what_is_fixed_is_not_planned():
  args = task()
  assert Planner('loop').choose(*args) == Execution('loop', 1)
  assert Planner('vmap').choose(*args) == Execution('vmap', 1)
  assert Planner('auto', 5, memory=1.0).choose(*args) == Execution('chunk', 5)


def test_a_cpu_takes_one_or_two_at_a_time():
  args = task()
  assert Planner('auto').choose(*args) == Execution('loop', 1)
  assert Planner('auto', devices=4).choose(*args) == Execution('chunk', 4)
  assert Planner('chunk').choose(*args) == Execution('chunk', 2)
  with pytest.raises(ValueError, match='not one client fits'):
    Planner('auto', memory=1.0).choose(*args)


def test_a_plan_is_for_one_of_several_devices():
  """Memory for three clients on each of two devices serves all six."""
  how = choose(memory=memory_for(3, world.TOP), devices=2)
  assert how.width == 6


def compiled(function):
  """Names of the functions that are compiled while this one runs."""
  names = []
  watched = [names]

  def note(event, seconds, **about):
    if event.endswith('backend_compile_duration'):
      for found in watched:
        found.append(about.get('fun_name', ''))

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    function()
  finally:
    watched.clear()
  return names


@pytest.mark.parametrize('tight', [False, True])
def test_a_stage_compiles_a_program_for_each_depth_and_two_more(tight):
  """Three depths in four rounds: where all clients fit, and where two do."""
  stage = world.stages(4, triggers.fixed(1, 3, interval=1, step=1))[0]
  stage = stage._replace(algorithm=stage.algorithm._replace(name='counted'))
  memory = memory_for(2, world.DENSE) if tight else 1e9
  names = compiled(
    lambda: world.simulate([stage], clients='chunk', memory=memory)
  )
  found = [name for name in names if 'step_chunk' in name]
  assert 3 <= len(found) <= 5


def test_chunks_compile_one_program_and_then_no_more():
  """Of clients whose numbers of steps differ widely. Only steps that some
  client of a chunk has are run."""
  data = world.federation()
  offsets = np.array([0, 2, 6, 14, 30, 60, 108])
  rows = np.concatenate([data.train.rows] * 3)
  data = data._replace(train=Partition(offsets, rows))
  run = {'clients': 'chunk', 'chunk': 2, 'cohort': 4, 'data': data}
  stage = world.stages(6, triggers.dense(world.BLOCKS))[0]
  count = rounds.step_chunk.program()._cache_size
  before = count()
  simulation, _, records = world.simulate([stage], **run)
  steps = -(-np.diff(offsets) // 4)
  assert count() == before + 1
  world.simulate([stage], **run)
  assert count() == before + 1
  sample, arrivals = simulation.sampler(0)
  for record in records:
    ids = sample(arrivals.init, record['round']).ids
    executed = sum(
      lanes * steps[ids][places].max()
      for places, lanes in chunks(steps[ids], 2, int, 2)
    )
    found = steps[ids].sum() / executed
    assert record['padding_efficiency'] == pytest.approx(found)


def test_one_width_serves_clients_of_like_length_and_another_those_of_unlike():
  args = task()
  how = {}
  for name, steps in (('like', [5] * 6), ('unlike', [60, 9, 8, 2, 2, 1])):
    plan = Planner('chunk', memory=1e9)
    plan.begin(np.array(steps))
    how[name] = plan.choose(*args).width
  assert how['like'] == 6 and how['unlike'] == 1


def test_one_by_one_nothing_is_padded():
  _, _, records = world.simulate(world.stages(1)[:1])
  assert {r['padding_efficiency'] for r in records} == {1.0}
