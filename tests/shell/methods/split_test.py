"""FedV and FedVZ from flags: runs that are resumed, and what is refused."""

import json
import math

import pytest

from fedms_jax.shell import build
from fedms_jax.shell.methods import split
from fedms_jax.simulation.state import Preempted
from tests import world
from tests.shell.methods.methods_test import Stop, bench, simulate


@pytest.mark.parametrize('name', split.STAGES)
def test_two_rounds_an_evaluation_and_a_resumed_run(name, tmp_path):
  made = bench(name, schedule__name='dense')
  stages, options = split.STAGES[name](made), build.options(made.config)
  found, simulation, state, records = simulate(
    stages, options, tmp_path / 'whole'
  )
  assert all(math.isfinite(record['train_loss']) for record in records)
  assert {record['step_messages'] > 0 for record in records} == {True}
  assert set(found['models']) == {'pretrained', 'global'}
  with pytest.raises(Preempted):
    simulate(stages, options, tmp_path / 'pieces', Stop())
  again, other, resumed, _ = simulate(stages, options, tmp_path / 'pieces')
  world.same(resumed.roles, state.roles)
  assert json.dumps(again) == json.dumps(found)
  assert other.ledgers == simulation.ledgers


@pytest.mark.parametrize(
  ('name', 'flags', 'said'),
  [
    ('fedv', {'fedv__first': 3}, '--fedv.first=3 and --fedv.last=1'),
    ('fedvz', {'fedvz__last': 4}, 'the 3 blocks'),
    ('fedv', {'lora__ranks': '1,2'}, '--lora.ranks=1,2'),
    ('fedvz', {'model__name': 'a/b', 'model__head': 'contrast'}, 'has two'),
  ],
)
def test_what_does_not_fit_is_refused(name, flags, said):
  with pytest.raises(ValueError) as error:
    split.STAGES[name](bench(name, **flags))
  assert said in str(error.value)
