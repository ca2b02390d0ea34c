"""Training by outputs alone, from flags: what runs, resumes and is refused."""

import json

import jax
import pytest

from fedms_jax.models.family import Model
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.shell import build, config, methods
from fedms_jax.simulation import driver, evaluation, observer
from fedms_jax.simulation.state import Preempted
from tests import world

USUAL = {
  'algorithm.stage1_rounds': 2,
  'algorithm.stage2_rounds': 0,
  'partition.num_clients': 6,
  'cohort.size': 3,
  'client.batch_size': 8,
  'client.epochs': 1,
  'columns.batch': 32,
  'prompt.length': 2,
}


def made(name, **flags):
  flat = {k.replace('__', '.'): v for k, v in flags.items()}
  found = config.from_values(USUAL | {'algorithm.name': name} | flat)
  config.validate(found)
  model = Model(world.backbone(), {})
  return methods.stages(found, model, world.CLASSES), found


class Stop(observer.Silent):
  """Asks to stop after each round."""

  def stop_requested(self):
    return True


def simulate(stages, found, folder, watch=None):
  """(evaluation, state, ledgers) of a run that may be resumed."""
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    try:
      simulation = driver.Simulation(
        evaluation.limited(world.federation(), 8, 0), world.start(),
        stages, build.options(found), run_store=keep,
        observer=watch or observer.Silent(),
      )  # fmt: skip
      state = simulation.run(keep.restore(simulation))
      scores = evaluation.evaluate(simulation, state, evaluation.Scope())
      return scores, state, simulation.ledgers
    finally:
      keep.close()


RUNS = {
  'rank': ('fedbpt', {'fedbpt__dimension': 4, 'fedbpt__server': 'rank'}),
  'bbt': ('bbt', {'bbt__dimension': 4, 'bbt__covariance': 'diagonal'}),
  'fedkseed': ('fedkseed', {'fedkseed__seeds': 9}),
  'blackvip': ('blackvip', {'blackvip__side': 2}),
  'mezo': ('mezo', {'mezo__kind': 'spsa', 'mezo__directions': 2}),
  'lora': ('mezo', {'mezo__trains': 'lora', 'lora__rank': 2}),
}
SLOW = RUNS.keys() - {'rank'}


@pytest.mark.parametrize(
  'run',
  [
    pytest.param(r, marks=[pytest.mark.slow] if r in SLOW else []) for r in RUNS
  ],
)
def test_two_rounds_an_evaluation_and_a_resumed_run(run, tmp_path):
  name, flags = RUNS[run]
  stages, found = made(name, **flags)
  (stage,) = stages
  scores, state, ledgers = simulate(stages, found, tmp_path / 'whole')
  assert set(scores['models']) == {'pretrained', stage.algorithm.served}
  assert ledgers[stage.name].queries > 0
  assert (ledgers[stage.name].bytes_up == 0) == (name == 'bbt')
  with pytest.raises(Preempted):
    simulate(stages, found, tmp_path / 'pieces', Stop())
  again, resumed, same = simulate(stages, found, tmp_path / 'pieces')
  world.same(resumed.roles, state.roles)
  world.same(resumed.memory, state.memory)
  assert json.dumps(again) == json.dumps(scores) and same == ledgers


@pytest.mark.parametrize(
  ('name', 'flags', 'said'),
  [
    ('fedkseed', {'client__optimizer': 'sgd'}, '--client.optimizer=sgd'),
    ('fedbpt', {'client__learning_rate': 0.1}, '--client.learning_rate=0.1'),
    ('bbt', {'client__max_norm': 2.0}, '--client.max_norm=2.0'),
    ('blackvip', {'client__momentum': 0.5}, '--client.momentum=0.5'),
    ('blackvip', {'model__head': 'contrast'}, '--model.head=contrast'),
    ('fedbpt', {'server__optimizer': 'adam'}, '--server.optimizer=adam'),
    (
      'fedbpt',
      {'fedbpt__server': 'rank', 'server__aggregator': 'median'},
      '--server.aggregator=median',
    ),
    (
      'mezo',
      {'mezo__trains': 'lora', 'schedule__order': 'importance'},
      '--schedule.order=importance',
    ),
    (
      'fedbpt',
      {'fedbpt__trains': 'lora', 'schedule__cap': 2},
      '--schedule.cap=2',
    ),
    ('mezo', {'client__state': 'kept'}, '--client.state=kept'),
  ],
)
def test_flags_that_a_method_has_no_use_for_are_refused(name, flags, said):
  with pytest.raises(ValueError) as error:
    made(name, **flags)
  assert said in str(error.value)


def test_options_reach_the_method():
  (stage,), _ = made('fedbpt', fedbpt__dimension=6, fedbpt__population=8)
  roles = jax.eval_shape(
    stage.algorithm.begin, jax.random.key(0), world.start()
  )
  assert roles.shared['search']['covariance'].shape == (6, 6)
  assert stage.algorithm.passes.queries == 8
  (stage,), _ = made('blackvip', blackvip__directions=3, blackvip__side=5)
  roles = jax.eval_shape(
    stage.algorithm.begin, jax.random.key(0), world.start()
  )
  assert roles.shared['pixels'].shape == (5, 5, 1)
  assert stage.algorithm.passes.queries == 6
