"""What one weighing of a language model's experts is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.models import gate

WIDTH = 6
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(2, 5, WIDTH)).astype(np.float32)
MASK = np.array([[True] * 5, [True] * 3 + [False] * 2])


def weights(level, features, mask=MASK, kind='softmax'):
  spec = gate.GateSpec(width=WIDTH, classes=0, kind=kind, level=level)
  params = gate.init(jax.random.key(0), spec)
  linear = params['linear'] | {
    'kernel': jax.random.normal(
      jax.random.key(1), params['linear']['kernel'].shape
    )
  }
  return spec, gate.weights(spec, params | {'linear': linear}, features, mask)


def changed(level, place):
  """Places of row 1 whose weights move when the features of one do."""
  other = FEATURES.copy()
  other[1, place] += 1
  _, before = weights(level, FEATURES)
  _, after = weights(level, other)
  moved = np.abs(np.asarray(before - after))[1].reshape(-1, 2).max(axis=1)
  return np.flatnonzero(moved > 1e-6).tolist()


def test_a_token_is_weighed_by_itself():
  assert changed('token', 1) == [1]


def test_the_running_gate_never_reads_on():
  assert changed('running', 1) == [1, 2, 3, 4]
  assert changed('running', 0) == [0, 1, 2, 3, 4]


def test_a_sequence_has_one_weighing_which_padding_leaves_alone():
  _, found = weights('sequence', FEATURES)
  assert found.shape == (2, 2, 1)
  assert changed('sequence', 0) == [0]
  assert changed('sequence', 4) == []  # padding
  assert changed('running', 4) == []


@pytest.mark.parametrize('level', ['token', 'running', 'sequence'])
@pytest.mark.parametrize('mix', ['logits', 'probabilities', 'top1'])
def test_a_mixture_of_equal_experts_is_the_expert(level, mix):
  spec, found = weights(level, FEATURES)
  np.testing.assert_allclose(found.sum(axis=-2), 1, rtol=1e-6)
  logits = jnp.asarray(RNG.normal(size=(2, 5, 9)), jnp.float32)
  logits = jax.nn.log_softmax(logits)
  mixed = gate.mix(
    spec._replace(mix=mix), found, jnp.stack([logits, logits], axis=-2)
  )
  np.testing.assert_allclose(mixed, logits, atol=1e-5)


def test_a_weight_of_one_picks_one_expert_for_all_tokens():
  spec = gate.GateSpec(width=WIDTH, classes=0, level='sequence')
  experts = jnp.asarray(RNG.normal(size=(2, 5, 2, 9)), jnp.float32)
  only = jnp.tile(jnp.array([0.0, 1.0])[None, :, None], (2, 1, 1))
  np.testing.assert_array_equal(
    gate.mix(spec, only, experts), experts[:, :, gate.LOCAL]
  )


def test_features_masks_and_weights_of_a_wrong_shape_are_refused():
  with pytest.raises(AssertionError):
    weights('token', FEATURES[..., :-1])
  with pytest.raises(AssertionError):
    weights('running', FEATURES, MASK[:, :-1])
  spec = gate.GateSpec(width=WIDTH, classes=9)
  experts = jnp.zeros((2, 5, 2, 9))
  for shape in ((2, 5, 3, 1), (2, 5, 2, 4), (2, 1)):
    with pytest.raises(AssertionError):
      gate.mix(spec, jnp.zeros(shape), experts)


def test_a_fixed_gate_has_nothing_to_learn():
  inputs = ('feature', 'confidence', 'likeness')
  spec = gate.GateSpec(width=WIDTH, classes=3, kind='fixed', inputs=inputs)
  assert gate.init(jax.random.key(0), spec) == {}
