"""Learning rates are inputs of a round: they are followed, and compile
nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax import schedules
from fedms_jax.core.contract import Moment, Start
from fedms_jax.core.types import Plan, Roles
from fedms_jax.models.family import Model
from fedms_jax.schedules import triggers
from fedms_jax.server import optimizers
from fedms_jax.shell import build, config, methods, pipeline
from fedms_jax.simulation.state import Stage
from tests import world

TOLD = {'shared': 0.3, 'personal': 0.02, 'gate': 0.001}
PARAMS = {
  'shared': {'head': jnp.array([1.0, -2.0]), 'gate': jnp.array([3.0])},
  'personal': {'head': jnp.array([0.5]), 'apart_head': jnp.array([2.0])},
}
SLOPE = jax.tree.map(lambda x: jnp.sin(7 * x), PARAMS)


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_a_rate_that_is_an_input_is_one_that_is_a_number(name):
  how = {'momentum': 0.9, 'weight_decay': 0.1, 'max_norm': 1.0}
  known = optimizers.client(name, **TOLD, **how)
  asks = optax.with_extra_args_support(optimizers.client(name, **how))
  first, second = known.init(PARAMS), asks.init(PARAMS)
  assert jax.tree.structure(first) == jax.tree.structure(second)
  rates = {key: jnp.float32(x) for key, x in TOLD.items()}
  start = Start(Roles({}, {}, {}), Plan((), 0), Moment(rates=rates))
  plain, _ = known.update(SLOPE, first, PARAMS)
  if name == 'sgd':  # whose first step is the gradient at the rate
    for role, key, rate in (('personal', 'apart_head', 'personal'),
                            ('shared', 'gate', 'gate')):  # fmt: skip
      expected = -TOLD[rate] * SLOPE[role][key]
      np.testing.assert_allclose(plain[role][key], expected, rtol=1e-6)
  for _ in range(2):
    moves, first = known.update(SLOPE, first, PARAMS)
    others, second = asks.update(SLOPE, second, PARAMS, start=start)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), moves, others
    )
  missing = start._replace(moment=Moment(rates={'shared': rates['shared']}))
  with pytest.raises(ValueError, match="'personal'.*'shared'"):
    asks.update(SLOPE, second, PARAMS, start=missing)


def fedit(rate):
  """(the one stage of FedAvg of LoRA, the learning rates) of flags."""
  found = config.from_values(
    {'algorithm.name': 'fedit', 'lora.targets': ','.join(world.TARGETS),
     'client.learning_rate': rate, 'lora.rank': 2}
  )  # fmt: skip
  (made,) = methods.stages(found, Model(world.backbone(), {}), world.CLASSES)
  rates = build.rates(found)
  dense = schedules.schedule(triggers.dense(3), range(3))
  return Stage('global', made.algorithm, 1, lambda _: dense), rates


def test_another_learning_rate_compiles_nothing_and_is_followed():
  names, watched = [], []

  def note(event, seconds, **about):
    if event.endswith('backend_compile_duration') and watched:
      names.append(about.get('fun_name', ''))

  jax.monitoring.register_event_duration_secs_listener(note)
  moved = {}
  for rate in (0.01, 0.02):
    stage, rates = fedit(rate)
    assert rates['shared'] == rate
    watched[:] = [rate] if moved else []
    _, state, _ = world.simulate([stage], rates=rates)
    start = world.start()
    fresh = stage.algorithm.begin(jax.random.key(0), start).shared['head']
    moved[rate] = jax.tree.leaves(state.roles.shared['head'])[0]
    moved[rate] = np.asarray(moved[rate] - jax.tree.leaves(fresh)[0])
  watched.clear()
  assert not [name for name in names if 'chunk' in name]
  assert np.abs(moved[0.02]).max() > 1.5 * np.abs(moved[0.01]).max() > 0


def test_phases_of_a_pipeline_have_a_rate_of_their_own():
  found = config.from_values(
    {'stages': 'F2x3,S1', 'pretrain.client_rate': 0.5,
     'client.personal_learning_rate': 0.25}
  )  # fmt: skip
  federated, server = found.pipeline.phases
  told = pipeline._local(found, federated)[1]['rates']
  assert (told['shared'], told['personal']) == (0.5, 0.25)
  assert 'rates' not in pipeline._local(found, server)[1]
  assert build.rates(found)['shared'] == 0.003
