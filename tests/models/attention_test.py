"""Attention: all implementations agree, and each is picked where it serves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.models import attention
from fedms_jax.models.attention import Device
from tests.lowering import accelerators

CPU, TPU, ROCM = Device('cpu'), Device('tpu'), Device('gpu')
AMPERE, HOPPER = Device('gpu', (8, 0)), Device('gpu', (9, 0))
LENGTHS = np.array([5, 2, 1])
MASK = np.arange(5) < LENGTHS[:, None]


def arrays(groups=2, dtype=jnp.float32, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  return [
    jax.random.normal(key, (3, 5, heads, 8), dtype)
    for key, heads in zip(keys, (4, groups, groups), strict=True)
  ]


def run(name, inputs, mask=None, causal=False):
  return attention.IMPLEMENTATIONS[name](*inputs, mask, causal)


def compiled(name, inputs, mask=None, causal=False):
  return jax.jit(lambda x: run(name, x, mask, causal))(inputs)


@pytest.fixture
def flash(monkeypatch):
  """XLA in place of cuDNN, which computes the same of the same arguments and
  wants all of them mapped alike."""
  real, seen = jax.nn.dot_product_attention, []

  def stand_in(q, k, v, *, implementation, **kwargs):
    seen.append(implementation)
    arrays = [q, k, v, *(x for x in kwargs.values() if hasattr(x, 'shape'))]
    mapped = [isinstance(x, jax.core.Tracer) for x in arrays]
    assert len(set(mapped)) == 1
    return real(q, k, v, implementation='xla', **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  yield seen
  assert set(seen) == {'cudnn'}


@pytest.mark.parametrize(
  ('groups', 'causal', 'mask'),
  [(4, False, None), (4, True, MASK), (2, False, MASK), (1, True, None)],
)
def test_implementations_agree(groups, causal, mask):
  """In value and gradient; padding is not compared, for nobody reads it."""
  inputs, seen = arrays(groups), MASK if mask is not None else np.ones((3, 5))

  def value(name):
    def total(inputs):
      out = run(name, inputs, mask, causal) * seen[..., None, None]
      return jnp.sum(jnp.sin(out)), out

    both = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, out), gradient = both(inputs)
    return [out, *gradient]

  for a, b in zip(value('xla'), value('matmuls'), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('cap', [0.0, 0.7])
def test_windows_caps_and_scales_are_those_of_their_formula(causal, cap):
  """In all that serves them, against plain NumPy in float64."""
  q, k, v = arrays(4)
  places = np.arange(5)
  seen = np.abs(places[:, None] - places) < 2
  if causal:
    seen &= places <= places[:, None]
  exact = [np.asarray(x, np.float64) for x in (q, k, v)]
  scores = 0.6 * np.einsum('bthd,bshd->bhts', *exact[:2])
  scores = cap * np.tanh(scores / cap) if cap else scores
  weights = np.where(seen, np.exp(scores), 0.0)
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bhts,bshd->bthd', weights, exact[2])
  window = jnp.int32(2)
  found = attention.attend(
    q, k, v, causal=causal, scale=0.6, cap=cap, window=window
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)
  if not cap:
    fused = attention.IMPLEMENTATIONS['xla']
    found = fused(q, k, v, None, causal, 0.6, window)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_flash_attention_is_left_where_it_knows_no_window_or_cap(monkeypatch):
  where = accelerators.ACCELERATORS['hopper']
  accelerators.pretend(monkeypatch, where)
  args = 3 * [jax.ShapeDtypeStruct((2, 16, 2, 8), 'bfloat16')]

  def lowered(**options):
    def attend(q, k, v):
      return attention.attend(q, k, v, causal=True, **options)

    return accelerators.lowered(attend, args, where)

  assert 'cudnn' in lowered(scale=0.3)
  assert 'cudnn' not in lowered(window=jnp.int32(4))
  assert 'cudnn' not in lowered(cap=2.0)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('mask', [None, MASK], ids=['whole', 'padded'])
def test_flash_attention_gets_arguments_of_the_same_meaning(
  flash, causal, mask
):
  found = compiled('cudnn', arrays(), mask, causal)
  expected = compiled('matmuls', arrays(), mask, causal)
  seen = MASK if mask is not None else np.ones((3, 5), bool)
  np.testing.assert_allclose(found[seen], expected[seen], atol=1e-5)
  assert np.isfinite(found).all()


@pytest.mark.parametrize('lone', [0, 1, 2])
def test_flash_attention_under_vmap_has_the_axis_everywhere(flash, lone):
  """Clients whose queries alone have LoRA share keys, values and mask."""
  inputs = arrays()
  many = jnp.stack([inputs[lone], 2 * inputs[lone]])

  def one(x):
    mine = [*inputs[:lone], x, *inputs[lone + 1 :]]
    return run('cudnn', mine, MASK)

  found = jax.vmap(one)(many)
  mine = [*inputs[:lone], many[1], *inputs[lone + 1 :]]
  alone = compiled('matmuls', mine, MASK)
  np.testing.assert_allclose(found[1][MASK], alone[MASK], atol=1e-5)


@pytest.mark.parametrize('accelerator', ['ampere', 'hopper'])
@pytest.mark.parametrize('tokens', [16, 17])
@pytest.mark.parametrize('masked', [False, True], ids=['whole', 'padded'])
@pytest.mark.parametrize('causal', [False, True], ids=['both', 'causal'])
@pytest.mark.parametrize('groups', [4, 2])
def test_jax_lets_flash_attention_be_trained(
  monkeypatch, accelerator, tokens, masked, causal, groups
):
  """JAX's own checks, which no stand-in has: of the gradient, under `vmap`, at
  odd and even numbers of tokens. The widest head that the device takes."""
  where = accelerators.ACCELERATORS[accelerator]
  accelerators.pretend(monkeypatch, where)
  width = {'ampere': 128, 'hopper': 256}[accelerator]

  def shape(*axes, dtype='bfloat16'):
    return jax.ShapeDtypeStruct(axes, dtype)

  def total(q, k, v, mask):
    out = attention.attend(q, k, v, mask, causal=causal)
    assert out.shape == q.shape
    return jnp.sum(jnp.sin(out.astype(jnp.float32)))

  # Clients whose queries and values alone have LoRA share the keys.
  gradient = jax.vmap(jax.grad(total, (0, 1, 2)), (0, None, 0, None))
  args = (
    shape(3, 2, tokens, 4, width),
    shape(2, tokens, groups, width),
    shape(3, 2, tokens, groups, width),
    shape(2, tokens, dtype='bool') if masked else None,
  )
  text = accelerators.lowered(gradient, args, where)
  assert text.count('@__cudnn$fmhaSoftmax(') == 1
  assert text.count('@__cudnn$fmhaSoftmaxBackward(') == 1
  even = tokens + tokens % 2  # of all clients at once
  assert f'(tensor<6x{even}x4x{width}xbf16>, ' in text


def test_the_token_that_makes_the_number_even_is_never_seen(flash):
  """Were it seen, its zeros would draw what attends to it toward zero."""
  inputs = [jnp.ones_like(x) for x in arrays()]
  for causal in (False, True):
    out = compiled('cudnn', inputs, None, causal)
    np.testing.assert_array_equal(out, np.ones_like(out))


def test_half_precision_stays_near_and_keeps_its_type():
  inputs = arrays(dtype=jnp.bfloat16)
  exact = compiled('matmuls', [x.astype(jnp.float32) for x in inputs], MASK)
  for name in ('xla', 'matmuls'):
    found = compiled(name, inputs, MASK)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      found.astype(jnp.float32)[MASK], exact[MASK], atol=0.05
    )


@pytest.mark.parametrize(
  ('device', 'dtype', 'per_head', 'chosen'),
  [
    (CPU, 'bfloat16', 64, 'matmuls'),
    (CPU, 'float32', 64, 'matmuls'),
    (TPU, 'bfloat16', 64, 'xla'),
    (ROCM, 'bfloat16', 64, 'xla'),
    (AMPERE, 'bfloat16', 64, 'cudnn'),
    (AMPERE, 'float16', 128, 'cudnn'),
    (AMPERE, 'float32', 64, 'xla'),
    (AMPERE, 'bfloat16', 60, 'xla'),
    (AMPERE, 'bfloat16', 136, 'xla'),
    (HOPPER, 'bfloat16', 256, 'cudnn'),
    (HOPPER, 'bfloat16', 264, 'xla'),
    (Device('gpu', (7, 5)), 'float16', 64, 'xla'),
  ],
)
def test_the_choice_is_a_function_of_device_type_and_width(
  device, dtype, per_head, chosen
):
  assert attention.choose(device, dtype, per_head) == chosen


def test_heads_that_are_split_over_devices_are_left_to_the_compiler(
  monkeypatch,
):
  where = accelerators.ACCELERATORS['ampere']
  accelerators.pretend(monkeypatch, where)
  monkeypatch.setattr(attention, '_split', [])
  args = 3 * [jax.ShapeDtypeStruct((2, 4, 2, 8), 'bfloat16')]
  assert 'cudnn' in accelerators.lowered(attention.attend, args, where)
  attention.leave_to_compiler()
  assert 'cudnn' not in accelerators.lowered(attention.attend, args, where)


@pytest.mark.parametrize(
  ('capability', 'found'),
  [('9.0', (9, 0)), ('12.1', (12, 1)), ('gfx90a', (0, 0)), (None, (0, 0))],
)
def test_the_capability_of_a_gpu_is_read(monkeypatch, capability, found):
  class Gpu:
    compute_capability = capability

  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(jax, 'local_devices', lambda: [Gpu()])
  assert attention.device.__wrapped__() == Device('gpu', found)


@pytest.mark.parametrize('wrong', ['queries', 'values', 'mask'])
def test_arrays_that_do_not_belong_together_are_refused(wrong):
  q, k, v = arrays()
  mask = MASK
  if wrong == 'queries':
    q = q[..., :4]
  elif wrong == 'values':
    v = v[:, :1]  # would be broadcast
  else:
    mask = mask[:, :1]
  with pytest.raises(AssertionError):
    attention.attend(q, k, v, mask)
