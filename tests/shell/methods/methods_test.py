"""Every method of the families `lora` and `general`, from flags to figures."""

import json
import math

import numpy as np
import pytest

from fedms_jax.algorithms import lora_merging
from fedms_jax.core import tree
from fedms_jax.models.family import Model
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import printed
from fedms_jax.shell import build, config
from fedms_jax.shell.methods import general, lora
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation import driver, evaluation, observer
from fedms_jax.simulation.state import Preempted
from tests import world

STAGES = lora.STAGES | general.STAGES
PERSONAL = {'fedsa_lora', 'hetlora', 'scaffold'}
RESIDUAL = {
  'fedit', 'ffa_lora', 'rolora', 'flora', 'fedex_lora', 'flexlora', 'hetlora',
  'fedprox', 'scaffold', 'lora_fair', 'fedfn',
}  # fmt: skip
USUAL = {
  'algorithm.stage1_rounds': 2,
  'algorithm.stage2_rounds': 0,
  'lora.rank': 2,
  'lora.alpha': 4.0,
  'partition.num_clients': 6,
  'cohort.size': 3,
  'client.batch_size': 4,
  'client.epochs': 1,
  'columns.batch': 32,
}


def bench(name, **flags):
  flat = {k.replace('__', '.'): v for k, v in flags.items()}
  found = config.from_values(USUAL | {'algorithm.name': name} | flat)
  config.validate(found)
  return Builder(found, Model(world.backbone(), {}), world.CLASSES)


class Stop(observer.Silent):
  """Asks to stop after each round."""

  def stop_requested(self):
    return True


def simulate(stages, options, folder, watch=None):
  """(evaluation, simulation, state, records) of a run that may be resumed."""
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    try:
      records = observer.Recorder()
      watchers = observer.Observers(records, *([watch] if watch else []))
      simulation = driver.Simulation(
        evaluation.limited(world.federation(), 8, 0),
        world.start(), stages, options, run_store=keep, observer=watchers,
      )  # fmt: skip
      state = simulation.run(keep.restore(simulation))
      found = evaluation.evaluate(simulation, state, evaluation.Scope())
      return found, simulation, state, records.records
    finally:
      keep.close()


# Others fold, or train a part, too; and these run elsewhere.
SLOW = {*general.STAGES, *lora.STAGES} - {'scaffold', 'hetlora'}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in STAGES
  ],
)
def test_two_rounds_an_evaluation_and_a_resumed_run(name, tmp_path):
  made = bench(name)
  stages, options = STAGES[name](made), build.options(made.config)
  whole = simulate(stages, options, tmp_path / 'whole')
  found, simulation, state, records = whole
  assert len(records) == 2
  for record in records:
    assert math.isfinite(record['train_loss'])
    assert ('aggregation_residual' in record) == (name in RESIDUAL)
  served = stages[0].algorithm.served
  assert set(found['models']) == {'pretrained', served}
  assert any('local' in line for line in printed.scores(
    found | printed.reading(stages[0].algorithm.task)
  )) == (served == 'local')  # fmt: skip
  assert bool(tree.size(state.roles.personal)) == (name in PERSONAL)
  entry = simulation.ledgers[stages[0].name]
  assert entry.bytes_up > 0 and entry.client_flops > 0

  with pytest.raises(Preempted):
    simulate(stages, options, tmp_path / 'pieces', Stop())
  again, other, resumed, _ = simulate(stages, options, tmp_path / 'pieces')
  world.same(resumed.roles, state.roles)
  assert json.dumps(again) == json.dumps(found)
  assert other.ledgers == simulation.ledgers


@pytest.mark.parametrize(
  'aggregator',
  [
    pytest.param('median', marks=pytest.mark.slow),
    'trimmed_mean',
    pytest.param('krum', marks=pytest.mark.slow),
  ],
)
def test_robust_aggregators_by_a_flag(aggregator):
  made = bench(
    'rolora', server__aggregator=aggregator, cohort__size=5,
    server__optimizer='momentum', schedule__budgets='1,3',
    schedule__name='dense',
  )  # fmt: skip
  stages = STAGES['rolora'](made)
  _, state, records = world.simulate(stages, cohort=5)
  assert math.isfinite(records[-1]['train_loss'])
  for leaf in (*state.roles.shared['a_blocks']['attn']['q'].values(),):
    assert np.isfinite(leaf).all()


def test_mixed_ranks_are_an_even_draw_by_client():
  made = bench('hetlora', lora__rank=8, lora__ranks='2,4,8')
  drawn = [made.rank_of()(i) for i in range(600)]
  assert drawn == [made.rank_of()(i) for i in range(600)]
  counts = [drawn.count(rank) for rank in (2, 4, 8)]
  assert sum(counts) == 600 and min(counts) > 150
  other = bench('hetlora', lora__rank=8, lora__ranks='2,4,8', seed=1)
  assert drawn != [other.rank_of()(i) for i in range(600)]
  variant = STAGES['hetlora'](made)[0].algorithm.variant
  assert [variant(5, i) for i in range(9)] == drawn[:9]


@pytest.mark.parametrize('name', ['flora', 'flexlora', 'hetlora'])
def test_a_run_at_mixed_ranks(name):
  stages = STAGES[name](bench(name, lora__ranks='1,2'))
  _, state, records = world.simulate(stages)
  assert math.isfinite(records[-1]['train_loss'])
  assert records[-1]['aggregation_residual'] > 0


@pytest.mark.slow
def test_a_schedule_that_looks_at_the_cohort_is_resumed(tmp_path):
  """Also from the importance that the first rounds measured."""
  made = bench(
    'fedit', schedule__name='fixed', schedule__interval=1, schedule__cap=2,
    schedule__order='balanced', schedule__budgets='1,2', cohort__size=5,
    schedule__balance=9.0, algorithm__stage1_rounds=3,
  )  # fmt: skip
  stages, options = STAGES['fedit'](made), build.options(made.config)
  *_, state, records = simulate(stages, options, tmp_path / 'whole')
  assert records[0]['active'] == 2**world.BLOCKS - 1  # dealt over the cohort
  for _ in range(2):
    with pytest.raises(Preempted):
      simulate(stages, options, tmp_path / 'pieces', Stop())
  *_, resumed, _ = simulate(stages, options, tmp_path / 'pieces')
  assert resumed.importance == state.importance
  world.same(resumed.roles, state.roles)


def test_a_schedule_by_scores_of_personal_models_is_resumed(tmp_path):
  made = bench(
    'fedsa_lora', schedule__name='dense', schedule__order='f3ocus',
    schedule__budgets='1,2',
  )  # fmt: skip
  stages, options = STAGES['fedsa_lora'](made), build.options(made.config)
  _, simulation, state, records = simulate(stages, options, tmp_path / 'whole')
  assert {record['depth'] for record in records} < {1.0, 4 / 3, 5 / 3, 2.0}
  with pytest.raises(Preempted):
    simulate(stages, options, tmp_path / 'pieces', Stop())
  _, other, resumed, _ = simulate(stages, options, tmp_path / 'pieces')
  world.same(resumed.roles, state.roles)
  assert other.ledgers == simulation.ledgers


PRUNED = {'hetlora__prune': 0.5, 'hetlora__pull': 3.0, 'cohort__size': 6}


def test_pruned_ranks_are_kept_and_resumed(tmp_path):
  made = bench('hetlora', **PRUNED, algorithm__stage1_rounds=3)
  stages, options = STAGES['hetlora'](made), build.options(made.config)
  *_, state, records = simulate(stages, options, tmp_path / 'whole')
  ranks = [record['mean_rank'] for record in records]
  assert ranks[0] <= 2 and ranks == sorted(ranks)[::-1] and ranks[-1] < ranks[0]
  found = []
  for _ in range(2):
    with pytest.raises(Preempted):
      simulate(stages, options, tmp_path / 'pieces', Stop())
  *_, resumed, rest = simulate(stages, options, tmp_path / 'pieces')
  found += [record['mean_rank'] for record in rest]
  assert found == ranks[-1:]
  world.same(resumed.roles, state.roles)


@pytest.mark.parametrize('gamma', [0.0, 1.0])
def test_without_pruning_hetlora_has_no_state_and_the_same_numbers(gamma):
  made = bench('hetlora', hetlora__prune=gamma)
  stages = STAGES['hetlora'](made)
  _, state, records = world.simulate(stages)
  assert not tree.size(state.roles.personal)
  assert 'mean_rank' not in records[-1]
  plain = lora_merging.hetlora(made.setting(merges=True))
  plain = stages[0]._replace(algorithm=plain)
  world.same(world.simulate([plain])[1].roles, state.roles)


@pytest.mark.parametrize(
  ('name', 'flags', 'said'),
  [
    (name, {'lora__ranks': '1,2'}, '--lora.ranks=1,2')
    for name in ('fedit', 'fedex_lora', 'fedavg', 'scaffold')
  ]
  + [
    (name, {'server__aggregator': 'median'}, '--server.aggregator=median')
    for name in ('flora', 'hetlora', 'scaffold')
  ]
  + [
    ('hetlora', {'lora__ranks': '1,3'}, 'rank 3'),
    ('hetlora', {'lora__ranks': 'two'}, 'no list of ranks'),
    ('hetlora', {'lora__init': 'x'}, '--hetlora.prune=0.99'),
    ('flexlora', {'server__optimizer': 'adam'}, '--server.optimizer=adam'),
    (
      'fedavg',
      {'model__name': 'a/b', 'model__storage': 'int8'},
      '--model.storage=int8',
    ),
    ('fedit', {'server__aggregator': 'krum'}, '--server.byzantine=1'),
    ('fedit', {'server__aggregator': 'trimmed_mean'}, '--server.trim=0.2'),
  ],
)
def test_flags_that_a_method_has_no_use_for_are_refused(name, flags, said):
  with pytest.raises(ValueError) as error:
    STAGES[name](bench(name, **flags))
  assert said in str(error.value)
