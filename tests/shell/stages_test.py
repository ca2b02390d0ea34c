"""--stages: what it says, and what it refuses."""

import pytest

from fedms_jax.shell import config
from fedms_jax.shell.config.stages import Phase, parse

TEXTS = {'model.name': 'gpt', 'model.head': 'causal_lm'}


def checked(**values):
  found = config.from_values(
    {key.replace('__', '.'): value for key, value in values.items()}
  )
  config.validate(found)
  return found


def test_phases_and_an_algorithm():
  found = parse('S200, F20x50,W3,S50,fedms')
  assert found.method == 'fedms'
  assert found.phases == (
    Phase('S', 1, 200), Phase('F', 20, 50), Phase('W', 3, 0), Phase('S', 1, 50)
  )  # fmt: skip


def test_phases_of_no_length_are_left_out():
  assert parse('S0,F2x3,F0x9,S4') == parse('F2x3,S4')
  assert parse('S7,F0') == parse('S7')


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('S', "'S' is no stage"),
    ('S2,', "'' is no stage"),
    ('F2x', "'F2x' is no stage"),
    ('S1,fedms,S2', 'the last'),
    ('S0,F0x2', 'nothing to do'),
    ('S99999999999', 'no stage'),
    ('S9999999999', 'at most'),
  ],
)
def test_what_is_no_pipeline_is_refused(text, said):
  with pytest.raises(ValueError, match=said):
    parse(text)


def test_the_algorithm_of_a_pipeline_is_the_run_s():
  assert checked(stages='S2,fedavg').algorithm.name == 'fedavg'
  assert checked(stages='S2').algorithm.name == 'fedms'
  with pytest.raises(ValueError, match='two algorithms'):
    checked(stages='S2,fedavg', algorithm__name='ditto')


@pytest.mark.parametrize(
  ('values', 'flag'),
  [
    ({'pretrain.mode': 'full'}, '--pretrain.mode'),
    ({'pretrain.epochs': 3}, '--pretrain.epochs'),
    ({'lora.init': 'folder'}, '--lora.init'),
    ({'pretrain.head': 'causal_lm'}, '--pretrain.head'),
    ({'data.public_fraction': 0.0}, '--data.public_fraction'),
    ({'client.state': 'kept', 'stages': 'W2x3'}, '--client.state'),
    ({'client.schedule': 'cosine', 'stages': 'F2'}, '--client.steps'),
    ({'client.schedule': 'cosine', 'stages': ''}, '--client.steps'),
    ({'stages': '', 'pretrain.head': 'causal_lm'}, '--pretrain.head'),
    ({'data.masks': 'fresh'}, '--data.masks'),
    ({'model.vocabulary': 500}, '--model.vocabulary'),
    ({'model.head': 'masked_lm'}, '--model.head'),
    ({'model.patch': 4}, '--model.patch'),
    ({'model.storage': 'int8'}, '--model.storage'),
    ({'stages': 'S2,fedms', 'pretrain.head': 'masked_lm'}, '--pretrain.head'),
  ],
)
def test_what_does_not_go_with_a_pipeline_is_refused(values, flag):
  usual = TEXTS | {'stages': 'S2'} | values
  with pytest.raises(ValueError, match=flag):
    found = config.from_values(usual)
    config.validate(found)
