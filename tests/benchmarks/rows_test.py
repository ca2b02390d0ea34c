"""The rows of the benchmarks: every one can be built, and is its own."""

import itertools
import pathlib

import numpy as np
import pytest

from benchmarks import (
  black_box,
  methods,
  pretraining,
  schedules,
  search_and_seeds,
  tuning,
)
from fedms_jax.shell import build, config, flags
from fedms_jax.simulation.state import Handover

BLOCKS, ROUNDS = 6, 30


def active(entry):
  """What is active in each round for each of ten clients [T, 10, L]; the
  scores are such that every queue has settled."""
  words = [f'--{k}={v}' for k, v in entry.flags.items()]
  found = flags.parse(['fedms', *words])
  make = build.schedule(found.schedule, BLOCKS, ROUNDS, 'restart')
  importance = [1.0, 5.0, 2.0, 6.0, 3.0, 4.0]
  schedule = make(Handover(None, lambda: importance, 1000), found.seed)
  state, out = schedule.init, []
  scores = np.random.default_rng(0).random((10, BLOCKS)) * importance
  for t in range(ROUNDS):
    if schedule.by_scores is None:
      out.append(schedule.active(state, t, range(10)))
    else:
      out.append(schedule.by_scores(state, t, range(10), scores))
    state = schedule.observe(state, t, 0.5)
  return np.array(out)


ENTRIES = schedules.entries(BLOCKS, ROUNDS)
FOUND = {label: active(entry) for label, entry in ENTRIES.items()}


def test_there_are_many_schedules_and_no_two_are_equal():
  assert len(FOUND) >= 12
  # On equal scores, both queues settle when the even schedule is due.
  alike = {'queue', 'femam', 'linear'}
  for a, b in itertools.combinations(FOUND, 2):
    if not {a, b} <= alike:
      assert not np.array_equal(FOUND[a], FOUND[b]), (a, b)
  assert len({str(entry.flags) for entry in ENTRIES.values()}) == len(ENTRIES)


@pytest.mark.parametrize(
  'label',
  ['queue', 'queue_bottom_up', 'queue_importance', 'fixed', 'linear',
   'geometric', 'femam'],
)  # fmt: skip
def test_what_grows_begins_with_one_block_and_reaches_all(label):
  depth = FOUND[label].sum(-1)
  assert (depth[0] == 1).all() and (depth[-1] == BLOCKS).all()
  assert (np.diff(depth, axis=0) >= 0).all()


def test_budgets_are_thirds_of_the_depth():
  for label in ('fedquad', 'fedra', 'fed-hello', 'f3ocus', 'f3ocus_scores'):
    depth = FOUND[label].sum(-1)
    assert (depth == depth[0]).all()
    assert set(depth[0]) <= {2, 4, 6} and len(set(depth[0])) > 1
  fedquad = FOUND['fedquad']
  assert (np.diff(fedquad.astype(int), axis=-1) >= 0).all()  # from the output


def test_f3ocus_prefers_what_matters_and_uses_every_block():
  used = FOUND['f3ocus'].sum(1)
  assert (used == used[0]).all()  # the same sets in every round
  assert (np.diff(used[0][[0, 2, 4, 5, 1, 3]]) >= 0).all()  # by importance
  assert used[0].min() > 0 and np.ptp(used[0]) > 0
  assert not (FOUND['f3ocus'] == FOUND['f3ocus'][0]).all()  # others' turn


def test_half_of_the_blocks_is_half():
  assert (FOUND['ffdapt'].sum(-1) == 3).all()
  assert FOUND['droppeft'].sum(-1).mean() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize('blocks', [1, 2, 3, 12])
def test_schedules_fit_models_of_any_depth(blocks):
  for entry in schedules.entries(blocks, 3).values():
    words = [f'--{k}={v}' for k, v in entry.flags.items()]
    found = flags.parse(['fedms', *words]).schedule
    build.schedule(found, blocks, 3, 'restart')


def test_every_method_and_ablation_has_flags_of_its_own():
  found = methods.entries()
  assert {'fedms', 'fedms/no_gate', 'fedms/no_sal'} <= set(found)
  texts = set()
  for label, entry in found.items():
    words = [f'--{k}={v}' for k, v in entry.flags.items()]
    texts.add(flags.to_text(flags.parse(['fedms', *words])))
    assert entry.note and ',' not in label  # --methods is divided by commas
  assert len(texts) == len(found)


def test_an_axis_holds_what_its_row_has():
  rows = [e for e in methods.entries().values() if e.axis and not e.alone]
  assert len(rows) == 4
  for entry in rows:
    assert entry.flags[entry.axis.flag] in entry.axis.values
    for value in entry.axis.values:
      words = [f'--{k}={v}' for k, v in entry.flags.items()]
      found = flags.parse(['fedms', *words, f'--{entry.axis.flag}={value}'])
      config.validate(found)


def test_rows_without_a_rate_are_those_that_refuse_one_or_ask_once():
  rows = {k: e for k, e in methods.entries().items() if e.alone}
  assert {'fedkseed', 'bbt', 'fedbpt', 'blackvip', 'ncm', 'fgl'} <= set(rows)
  for entry in rows.values():
    for value in entry.axis.values if entry.axis else ():
      words = [f'--{k}={v}' for k, v in entry.flags.items()]
      config.validate(
        flags.parse(['fedms', *words, f'--{entry.axis.flag}={value}'])
      )
    assert entry.axis or entry.once


def test_every_row_is_of_a_family_and_families_are_chosen():
  known = methods.entries()
  assert all(entry.group for entry in known.values())
  found = search_and_seeds.chosen('split,ncm,-fedvz', known, 'methods', [])
  assert [entry.label for entry in found] == ['fedv', 'ncm']
  rest = search_and_seeds.chosen('-prompts', known, 'methods', list(known))
  gone = set(known) - {entry.label for entry in rest}
  assert gone == {x for x in known if known[x].group == 'prompts'}
  assert len(gone) == 8
  with pytest.raises(ValueError, match='all of .*black_box'):
    search_and_seeds.chosen('-nobody', known, 'methods', [])


def test_fgl_is_asked_once_or_followed_by_fedavg():
  words = (
    '--partition.num_clients=7 --cohort.size=5 --algorithm.stage1_rounds=4'
  ).split()
  found = methods.entries(flags.parse(['fedms', *words]))
  once, several = found['fgl'].flags, found['fgl/fedavg'].flags
  a = 'algorithm.stage'
  assert (once[f'{a}1_rounds'], once[f'{a}2_rounds']) == ('1', '0')
  assert once['cohort.size'] == '7' and 'cohort.size' not in several
  assert (several[f'{a}1_rounds'], several[f'{a}2_rounds']) == ('1', '13')


def test_rows_are_chosen_by_name():
  known = schedules.entries(2, 2)
  found = search_and_seeds.chosen('queue, dense', known, 'schedules', [])
  assert [entry.label for entry in found] == ['queue', 'dense']
  with pytest.raises(ValueError, match="--schedules has 'dens'"):
    search_and_seeds.chosen('dens', known, 'schedules', [])


@pytest.mark.parametrize('module', [methods, schedules])
def test_the_quick_benchmark_asks_for_runs_that_exist(
  module, tmp_path, monkeypatch
):
  monkeypatch.chdir(pathlib.Path(__file__).parents[2])
  asked = []

  def runner(found: config.Config, log):
    asked.append(found)
    raise ValueError('not run')

  module.main(['--quick', f'--out={tmp_path}'], runner)
  assert 3 <= len(asked) <= 4
  assert all(found.model.blocks == 2 for found in asked)


def test_only_fedms_activates_its_blocks_one_by_one():
  """SAL is a part of FedMS: other papers' methods train all blocks."""
  for label, entry in methods.entries().items():
    dense = entry.flags.get('schedule.name') == 'dense'
    own = label.startswith('fedms') and label != 'fedms/no_sal'
    assert dense != own, label


PROMPTS = black_box.entries(16, 5)


def parsed(entry, usual, **more):
  flagged = entry.flags | more
  words = [*usual, *(f'--{k}={v}' for k, v in flagged.items())]
  return flags.parse(['fedms', *words])


@pytest.mark.parametrize('label', PROMPTS)
def test_a_client_passes_its_batch_as_often_under_every_prompt(label):
  entry = PROMPTS[label]
  found = parsed(entry, black_box.USUAL)
  own = getattr(found.methods, found.algorithm.name, None)
  if label == 'gradient':
    each = 3  # forward, and twice as much back
  elif hasattr(own, 'population'):
    each = own.population
  else:
    each = 2 * getattr(own, 'directions', 1)
  assert each * found.client.steps == pytest.approx(black_box.PASSES, abs=1)
  clients = found.algorithm.stage1_rounds * found.cohort.size
  assert clients == 16 * 5
  for value in entry.axis.values:
    config.validate(parsed(entry, black_box.USUAL, **{entry.axis.flag: value}))
  assert entry.flags[entry.axis.flag] in entry.axis.values


def test_a_setting_is_that_of_the_best_mean_over_seeds(monkeypatch):
  entry = PROMPTS['mezo']._replace(label='mezo')
  low, middle, high = entry.axis.values
  told = {'1': {low: 0.9, middle: 0.7, high: None},
          '2': {low: 0.2, middle: 0.6, high: 0.9}}  # fmt: skip

  def search(game, jobs, values):
    (seed,) = {job.flags['seed'] for job in jobs}
    assert [job.flags[entry.axis.flag] for job in jobs] == list(values)
    return {
      value: score and tuning.Tried(score)
      for value, score in told[seed].items()
    }

  monkeypatch.setattr(tuning, 'search', search)
  (found,), scores = black_box.tuned(None, [entry], ['1', '2'])
  assert found.flags[entry.axis.flag] == middle
  assert scores['mezo'] == {
    low: pytest.approx(0.55), middle: pytest.approx(0.65), high: None
  }  # fmt: skip


def test_every_row_of_pretraining_takes_as_many_steps():
  found = pretraining.entries(40, [4, 10])
  texts = set()
  for row, entry in found.values():
    made = parsed(entry, (*pretraining.INNER, *pretraining.USUAL))
    config.validate(made)
    phases, method = made.pipeline
    assert not method
    steps = [p.steps * (1 if p.kind == 'S' else p.rounds) for p in phases]
    assert sum(steps) == 40
    assert {p.steps for p in phases if p.kind == 'F'} == (
      {row.every} if row.every else set()
    )
    texts.add(flags.to_text(made))
  assert len(texts) == len(found) == 19


@pytest.mark.parametrize(
  'name',
  'fedkseed bbt fedbpt blackvip ncm ridge fgl fgl/fedavg fedit mezo'.split(),
)
def test_what_is_shared_of_descent_is_for_rows_that_descend(name):
  """Clients with steps of their own refuse it; all others have it."""
  shared = {'learning_rate': 7e-4, 'personal_learning_rate': 2, 'momentum': 0.5}
  entry = methods.entries()[name]
  words = [f'--client.{k}={v}' for k, v in shared.items()]
  words += [f'--{k}={v}' for k, v in entry.flags.items()]
  found = flags.parse(['fedms', *words]).client
  usual = config.ClientConfig()
  for field, value in shared.items():
    expected = getattr(usual, field) if entry.alone else value
    assert getattr(found, field) == expected
  descends = ('fgl/fedavg', 'fedit', 'mezo')
  assert entry.alone == (name not in descends)
