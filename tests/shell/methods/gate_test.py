"""FedMS's gate, its rows and its handover, from flags."""

import jax
import numpy as np
import pytest

from fedms_jax.shell import build, config
from fedms_jax.shell.methods import gates, mixture
from tests import world
from tests.shell.methods.methods_test import bench

OWN = {'fedms__local_loss': 'own'}
FRESH = OWN | {'gate__rows': 'crossfit'}
MIXTURE = {'fedms__local_loss': 'mixture'}


def built(**flags):
  return mixture.STAGES['fedms'](bench('fedms', **two(flags)))


def two(flags):
  return {'algorithm__stage2_rounds': 2} | flags


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ({'gate__inputs': 'feature,mood'}, "names 'mood'; allowed: each once of"),
    ({'gate__inputs': 'feature,feature'}, "names 'feature'"),
    ({'gate__inputs': '', 'gate__odds_rate': 0.0}, 'Give --gate.odds_rate'),
    (
      {'gate__inputs': 'confidence', 'gate__mix': 'features'},
      '--gate.mix=features mixes what comes before them',
    ),
    (
      {'gate__public': 4, 'gate__rows': 'train'},
      '--gate.public=4 says nothing of --gate.rows=train',
    ),
    (
      {'gate__pull': 2.0, 'fedms__local_loss': 'mixture'},
      '--gate.pull=2.0 says nothing of --gate.rows=train',
    ),
    (
      FRESH | {'gate__rows': 'validation', 'gate__share': 0.5},
      '--gate.share=0.5 says nothing of --gate.rows=validation',
    ),
    (
      {'gate__kind': 'fixed', 'gate__odds_rate': 0.1},
      '--gate.odds_rate=0.1 says nothing of --gate.kind=fixed',
    ),
    (
      FRESH | {'gate__public': 4, 'data__public_fraction': 0.0},
      '--data.public_fraction=0',
    ),
    (
      {'fedms__handover': 'queue', 'schedule__name': 'dense'},
      '--schedule.name=dense',
    ),
    (
      {'fedms__handover': 'queue', 'algorithm__stage2_rounds': 0},
      '--algorithm.stage2_rounds=0',
    ),
  ],
)
def test_flags_that_say_nothing_are_refused(flags, said):
  with pytest.raises(ValueError) as error:
    built(**flags)
  assert said in str(error.value)


@pytest.mark.parametrize('text', ['half', '-1', '101', 'nan'])
def test_a_weight_of_class_shares_is_a_number_or_learned(text):
  values = {'algorithm.label_prior': text}
  with pytest.raises(ValueError, match='--algorithm.label_prior='):
    config.validate(config.from_values(values))


@pytest.mark.parametrize(
  ('flags', 'rows', 'odds'),
  [
    ({}, 'train', 0.0),
    ({'gate__kind': 'fixed'}, 'train', 0.0),
    ({'gate__odds_rate': 0.2}, 'train', 0.2),
    (FRESH, 'crossfit', 0.05),
    (OWN | {'gate__rows': 'validation'}, 'validation', 0.05),
  ],
)
def test_what_is_left_open_follows_from_the_rest(flags, rows, odds):
  found = gates.resolved(bench('fedms', **two(flags))).config.gate
  assert (found.rows, found.odds_rate) == (rows, odds)
  second = built(**flags)[1]
  assert (second.fresh is None) == (rows == 'train')
  _, before = world.first_stage()
  begin = second.algorithm.begin
  shapes = jax.eval_shape(begin, jax.random.key(0), before)
  there = shapes.shared | shapes.personal
  assert ('gate_odds' in there) == (odds > 0)


@pytest.mark.parametrize(
  ('flags', 'bias', 'rate'),
  [
    ({}, 2.6, 0.05),
    (OWN, 0.0, 1e-3),
    ({'fedms__local_loss': 'both'}, 0.0, 1e-3),
    (OWN | {'gate__bias': '-0.5'}, -0.5, 1e-3),
    (MIXTURE, 2.6, 0.05),
    (MIXTURE | {'gate__mix': 'features'}, 2.6, 0.05),
    (MIXTURE | {'gate__mix': 'probabilities'}, 0.0, 1e-3),
    (MIXTURE | {'gate__kind': 'fixed'}, 2.6, 0.05),
    (MIXTURE | {'gate__mix': 'top1'}, 0.0, 1e-3),
    (MIXTURE | {'client__optimizer': 'sgd'}, 0.0, 1e-3),
    (MIXTURE | {'client__optimizer': 'adamw'}, 2.6, 0.05),
    (MIXTURE | {'gate__bias': '0'}, 0.0, 0.05),
    (MIXTURE | {'client__personal_learning_rate': 0.0}, 2.6, 0.015),
    (MIXTURE | {'client__personal_learning_rate': 0.2}, 2.6, 0.2),
  ],
)
def test_a_local_expert_that_corrects_begins_as_a_small_part(flags, bias, rate):
  builder = bench('fedms', **two({'client__learning_rate': 0.015} | flags))
  assert gates.spec(gates.resolved(builder)).bias == bias
  assert build.rates(builder.config)['personal'] == pytest.approx(rate)
  assert built(**flags)


@pytest.mark.parametrize(
  ('flags', 'loss'),
  [
    ({}, 'mixture'),
    ({'gate__kind': 'fixed'}, 'mixture'),
    ({'gate__mix': 'features'}, 'mixture'),
    ({'gate__rows': 'crossfit'}, 'own'),
    ({'gate__rows': 'validation'}, 'own'),
    ({'gate__mix': 'top1'}, 'own'),
    ({'gate__mix': 'probabilities'}, 'own'),
    ({'client__optimizer': 'sgd'}, 'own'),
    ({'client__optimizer': 'sgd'} | MIXTURE, 'mixture'),
    (OWN, 'own'),
    ({'fedms__local_loss': 'both'}, 'both'),
  ],
)
def test_a_local_expert_corrects_where_it_can(flags, loss, monkeypatch):
  taken, made = [], mixture.fedms.personal_stage

  def seen(setting, choice):
    taken.append(choice.local_loss)
    return made(setting, choice)

  monkeypatch.setattr(mixture.fedms, 'personal_stage', seen)
  assert built(**flags)
  assert set(taken) == {loss}


def test_other_methods_have_their_personal_rate():
  flags = {'algorithm.name': 'ditto', 'client.learning_rate': 0.015}
  assert build.rates(config.from_values(flags))['personal'] == 1e-3


@pytest.mark.parametrize(
  ('flag', 'text'),
  [
    ('gate.bias', 'half'),
    ('gate.bias', 'inf'),
    ('client.personal_learning_rate', -0.5),
    ('client.personal_learning_rate', -2.0),
  ],
)
def test_a_start_or_a_rate_that_is_none_is_refused(flag, text):
  with pytest.raises(ValueError, match=f'--{flag}='):
    config.validate(config.from_values({flag: text}))


@pytest.mark.parametrize(
  ('head', 'inputs'),
  [
    ('classification', ('feature', 'confidence')),
    ('regression', ('feature',)),
    ('ordinal', ('feature',)),
  ],
)
def test_a_gate_reads_the_confidence_of_classes_alone(head, inputs):
  builder = bench('fedms', **two({'model__head': head}))
  assert gates.spec(gates.resolved(builder)).inputs == inputs
  flags = two({'model__head': head, 'gate__inputs': 'confidence'})
  builder = gates.resolved(bench('fedms', **flags))
  if head == 'classification':
    assert gates.spec(builder).inputs == ('confidence',)
    return
  with pytest.raises(ValueError, match='confidence, which is of classes'):
    gates.spec(builder)


@pytest.mark.parametrize(
  'flags', [{'gate__kind': 'fixed'}, {'gate__mix': 'features'}]
)
def test_without_logits_to_judge_a_gate_reads_the_feature_alone(flags):
  found = gates.spec(gates.resolved(bench('fedms', **two(flags))))
  assert found.inputs == ('feature',)


def test_rows_of_the_gate_are_those_of_the_flags():
  _, stage = built(**FRESH, gate__share=0.5, gate__public=3)
  rows = stage.fresh(world.federation(), np.arange(2), 0)
  data = world.federation()
  own = rows[:, :-3]
  assert own[own >= 0].tolist() == [
    x for k in range(2) for x in data.train.of(k)[:3]
  ]
  assert np.isin(rows[:, -3:], data.public).all()
  assert built(gate__rows='train')[1].fresh is None


def test_who_hands_over_has_no_number_of_rounds_beforehand():
  assert [stage.open for stage in built()] == [False] * 2
  assert [s.open for s in built(fedms__handover='validation')] == [True] * 2


def test_the_fit_of_the_gate_is_that_of_the_flags():
  flags = FRESH | {'gate__fit_steps': 7, 'gate__odds_rate': 0.2}
  builder = bench('fedms', **two(flags | {'gate__learning_rate': 0.0}))
  fit = gates.fit(builder)
  assert fit.steps == 7 and fit.odds_rate == 0.2
  assert fit.rate == builder.config.client.learning_rate
