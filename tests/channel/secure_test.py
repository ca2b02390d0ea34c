"""Secure sums: exact, hidden, and opened by enough of the clients alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.channel import discrete, masks, protocol, secure
from fedms_jax.core import reduction, tree
from fedms_jax.core.contract import Message, Received, Sender
from fedms_jax.core.types import Plan
from fedms_jax.core.wire import Opening
from tests import world

KEY = jax.random.key(11)
K, L, D = 7, 3, 5
IDS = np.array([3, 4, 9, 11, 20, 21, 40], np.uint32)
WEIGHTS = np.array([1, 4, 2, 8, 3, 5, 1], np.float32)
HELD = np.array([True, False, True])
HOW = secure.Secure(16, 1.0, 8.0, K, L)
RNG = np.random.default_rng(0)
CHANGES = 0.3 * RNG.normal(size=(K, 2, D)).astype(np.float32)
OTHERS = 0.3 * RNG.normal(size=(K, D)).astype(np.float32)


def message(k, rows=2):
  """What client k sends, weighed: two blocks that train of three, and more."""
  w = WEIGHTS[k]
  update = {
    'blocks': {'a': jnp.asarray(w * CHANGES[k][:rows])},
    'head': jnp.asarray(w * OTHERS[k]),
  }
  held = {'blocks': jnp.full(rows, w), 'head': jnp.float32(w)}
  return Message(update, {'more': {'head': jnp.asarray(OTHERS[k][:2])}}, held)


def opened(how, there=None, ids=IDS, key=KEY):
  """The channel, and its state in a round."""
  made = secure.secure(how)
  there = np.ones(len(ids), bool) if there is None else there
  held = {'blocks': jnp.asarray(HELD), 'head': jnp.bool_(True)}
  state = made.init(key, message(0))
  return made, made.wire.open(state, Opening(ids, there, held), key)


def total(messages):
  """The sum of messages as the engine has it, at the places of the blocks."""
  one = jax.tree.map(lambda *xs: jnp.stack(xs), *messages)
  at = np.flatnonzero(HELD)
  found = jax.tree.map(lambda x: jnp.sum(x, axis=0), one)

  def placed(x):
    return jnp.zeros((L, *x.shape[1:]), x.dtype).at[at].set(x)

  for part in (found.update, found.cover):
    part['blocks'] = jax.tree.map(placed, part['blocks'])
  return Received(*found, jnp.float32(len(messages)), jnp.float32(0))


def encoded(made, state, k):
  key = jax.random.fold_in(KEY, int(IDS[k]))
  return made.encode(state, message(k), key, Sender(id=jnp.uint32(IDS[k])))


def all_messages():
  return jax.tree.map(lambda *xs: jnp.stack(xs), *map(message, range(K)))


def wide(made, state, messages):
  """What all clients send, [K, ...]."""
  keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.asarray(IDS))

  def one(message, key, i):
    return made.encode(state, message, key, Sender(id=i))

  return jax.vmap(one)(messages, keys, jnp.asarray(IDS))


@functools.cache
def program(how):
  @jax.jit
  def go(there, messages):
    made, state = opened(how, there)
    sent = wide(made, state, messages)

    def kept(x):
      here = there.reshape((K,) + (1,) * (x.ndim - 1))
      return jnp.where(here, x, jnp.zeros_like(x))

    sent = jax.tree.map(kept, sent)
    found = total([tree.rows(sent, k) for k in range(K)])
    count = jnp.sum(there).astype(jnp.float32)
    return made.decode(state, found._replace(count=count), KEY)

  return go


def run(how, lost=()):
  """(the state, what the server gets) of a round of which some are lost."""
  there = np.array([k not in lost for k in range(K)])
  return program(how)(there, all_messages())


def plain(lost=()):
  return total([message(k) for k in range(K) if k not in lost])


def test_the_sum_is_that_of_the_messages_to_a_step_of_each():
  state, found = run(HOW)
  wanted = plain()
  step = HOW.range * HOW.weight / HOW.levels
  for a, b in zip(
    jax.tree.leaves((found.update, found.extras)),
    jax.tree.leaves((wanted.update, wanted.extras)), strict=True,
  ):  # fmt: skip
    assert float(jnp.max(jnp.abs(a - b))) < K * step
  # Whole weights are exact.
  world.same(found.cover, wanted.cover)
  assert float(state['aborted']) == float(state['saturated']) == 0.0
  assert set(found.extras) == {'more'}


LOSSES = ((), (2,), (0, 6), (1, 2), (3,))


@pytest.mark.parametrize('neighbors', [0, 4])
def test_masked_is_bitwise_ideal_whoever_is_lost(neighbors):
  how = HOW._replace(neighbors=neighbors, threshold=4 if not neighbors else 3)
  ideal = how._replace(masked=False)
  opened_once = 0
  for lost in LOSSES:
    a, b = run(how, lost), run(ideal, lost)
    assert float(a[0]['aborted']) == float(b[0]['aborted'])
    if not float(a[0]['aborted']):
      opened_once += 1
      world.same(a[1], b[1])
      wanted = plain(lost).cover
      world.same(a[1].cover, wanted)
  assert opened_once >= 4


def test_a_message_alone_tells_nothing():
  """It differs from what is sent without masks in about every bit, and anew in
  each round."""
  made, state = opened(HOW)
  bare, same = opened(HOW._replace(masked=False))
  other = opened(HOW, key=jax.random.key(99))[1]
  a, b, c = (
    np.asarray(jax.jit(encoded, static_argnums=(0, 2))(m, s, 0).update['head'])
    for m, s in ((made, state), (bare, same), (made, other))
  )
  assert (a != b).all() and (a != c).all() and a.dtype == np.uint32
  drawn = np.asarray(
    [masks.bits(HOW, masks.like_of(message(0)), jax.random.key(i))[1]
     for i in range(200)]
  )  # fmt: skip
  bits = (drawn[..., None] >> np.arange(32)) & 1
  assert abs(bits.mean() - 0.5) < 0.02


def test_with_too_few_nothing_is_opened():
  how = HOW._replace(threshold=5)
  state, found = run(how, (0, 1, 2))
  assert float(state['aborted']) == 1.0
  assert not any(
    np.asarray(x).any()
    for x in jax.tree.leaves((found.update, found.extras, found.cover))
  )
  assert float(found.count) == 0.0
  assert float(run(how, (0, 1))[0]['aborted']) == 0.0
  # So it is where more are wanted than open a secret.
  made, state = opened(how, np.arange(K) > 1)
  assert bool(masks.alive(how, state))
  assert not bool(masks.alive(how._replace(survivors=6), state))


def test_everybody_needs_neighbors_that_are_left():
  """On a ring with two neighbors each, two of them are needed, itself
  included: of neighbors that are lost together the round dies."""
  how = HOW._replace(neighbors=2, threshold=2)
  ring = np.asarray(opened(how)[1]['ring'])
  place = {int(i): p for p, i in enumerate(ring)}
  for a, b in itertools.combinations(range(K), 2):
    apart = abs(place[int(IDS[a])] - place[int(IDS[b])])
    apart = min(apart, K - apart)
    there = np.array([k not in (a, b) for k in range(K)])
    _, state = opened(how, there)
    alive = bool(masks.alive(how, state))
    # Next to each other each has one left; two apart, the one between none.
    assert alive == (apart > 2)


def test_any_order_and_any_chunks_are_bitwise_one_sum():
  """Sums of whole numbers do not depend on their order, as float sums do."""
  ideal = HOW._replace(masked=False)

  @functools.partial(jax.jit, static_argnums=0)
  def at_once(how):
    return wide(*opened(how), all_messages())

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def alone(how, k):
    return encoded(*opened(how), k)

  for how in (ideal, HOW):
    stacked = at_once(how)
    for k in (0, 3):
      world.same(tree.rows(stacked, k), alone(how, k))
  stacked = at_once(ideal)
  sent = [tree.rows(stacked, k) for k in range(K)]
  algorithm, _ = world.first_stage()
  plan = Plan(tuple(HELD.tolist()), 0)

  def none(x, key):
    rows = (L, *x.shape[1:]) if tree.is_stacked(key) else x.shape
    return jnp.zeros(rows, x.dtype)

  def zeros(part):
    return {
      key: jax.tree.map(lambda x, key=key: none(x, key), value)
      for key, value in part.items()
    }

  first = Received(
    zeros(sent[0].update),
    {n: zeros(x) for n, x in sent[0].extras.items()},
    zeros(sent[0].cover), jnp.float32(0), jnp.float32(0),
  )  # fmt: skip

  def added(chunks):
    found = first
    for chunk in chunks:
      part = jax.tree.map(lambda x, c=chunk: x[np.array(c)], stacked)
      found = reduction.collect(
        algorithm, found, part, jnp.ones(len(chunk), bool), plan
      )
    return found

  whole = added([range(K)])
  world.same(added([[k] for k in range(K)]), whole)
  world.same(added([[6, 0], [3, 1, 5], [4, 2]]), whole)


def test_what_is_out_of_range_is_cut_and_told():
  narrow = HOW._replace(range=0.1)
  state, found = run(narrow)
  far = [np.abs(CHANGES) > 0.1, np.abs(OTHERS) > 0.1]
  wanted = plain().update['head']
  assert float(jnp.max(jnp.abs(found.update['head'] - wanted))) > 0.1
  # Weighed less than the largest weight, less is out of range.
  outside = [
    np.abs(WEIGHTS[:, None] * x.reshape(K, -1) / 8) > 0.1
    for x in (CHANGES, OTHERS)
  ]
  outside.append(np.abs(OTHERS[:, :2]) / 8 > 0.1)
  share = np.concatenate(outside, axis=1).mean()
  assert float(state['saturated']) == pytest.approx(share, abs=1e-3) and far
  assert float(run(HOW)[0]['saturated']) == 0.0


def test_nobody_weighs_more_than_the_largest_weight():
  low = HOW._replace(weight=2.0)
  state, found = run(low)
  np.testing.assert_array_equal(
    found.cover['head'], np.minimum(WEIGHTS, 2).sum()
  )
  cut = np.minimum(WEIGHTS, 2)[:, None] * OTHERS
  np.testing.assert_allclose(
    found.update['head'], cut.sum(0), atol=K * 2 / low.levels
  )
  assert float(state['saturated']) > 0.4


def test_random_rounding_has_the_right_mean():
  coarse = HOW._replace(bits=4, masked=False)
  made, state = opened(coarse)

  def one(key):
    sent = made.encode(state, message(3), key, Sender(id=IDS[3]))
    return secure._signed(coarse, sent.update['head'])

  found = np.asarray(jax.vmap(one)(jax.random.split(KEY, 3000)))
  step = coarse.range * coarse.weight / coarse.levels
  error = found.mean(0) * step - np.asarray(message(3).update['head'])
  assert (abs(error) < 5 * found.std(0) * step / 3000**0.5 + 1e-6).all()
  assert found.std() > 0


def test_wrapped_sums_are_decoded_in_whole_numbers():
  """float32 alone would lose the low bits of these."""
  how = HOW._replace(bits=30, most=4, modulus=32)
  numbers = jnp.array([2**31 + 1, 2**31 - 1, 0, 2**32 - 3], jnp.uint32)
  signed = jax.lax.bitcast_convert_type(numbers, jnp.int32)
  np.testing.assert_array_equal(
    secure._signed(how, numbers), np.asarray(signed, np.float32)
  )
  small = HOW._replace(modulus=20)
  numbers = jnp.array([5, 2**19 - 1, 2**19, 2**20 - 7], jnp.uint32)
  np.testing.assert_array_equal(
    secure._signed(small, numbers), [5, 2**19 - 1, -(2**19), -7]
  )


@pytest.mark.parametrize('clients', [2, 7, 10, 100, 1000])
@pytest.mark.parametrize('bits', [8, 16])
def test_the_least_modulus_holds_the_largest_sum_and_no_less_does(
  clients, bits
):
  how = HOW._replace(bits=bits, most=clients)
  largest = clients * how.levels
  assert largest < 2 ** (how.word - 1) and largest >= 2 ** (how.word - 2)
  with pytest.raises(ValueError, match=r'Secure.modulus.*do not hold'):
    protocol.check(how._replace(modulus=how.word - 1))


def test_what_could_be_opened_by_few_is_refused():
  for threshold in (3, 8):
    with pytest.raises(ValueError, match=r'Secure.threshold.*4 to 7'):
      protocol.check(HOW._replace(threshold=threshold))
  with pytest.raises(ValueError, match=r'Secure.survivors`=8'):
    protocol.check(HOW._replace(survivors=8))
  with pytest.raises(ValueError, match='the sum of one client'):
    protocol.check(HOW._replace(most=1))
  with pytest.raises(ValueError, match=r'Secure.modulus`=36'):
    protocol.check(HOW._replace(bits=30, most=50))
  with pytest.raises(ValueError, match=r'Secure.most'):
    opened(HOW._replace(most=4), ids=IDS)


def test_bytes_are_those_of_the_protocol():
  """By hand: two keys, sealed and revealed shares, m bits a number."""
  how = HOW._replace(neighbors=4)
  made = secure.secure(how)
  k = 5
  assert made.wire.keys.early + made.wire.keys.up == 64 + k * 100 + 36 * k
  assert made.wire.keys.down == 64 * k + 100 * k
  numbers = 2 * D + D + 2 + 1 + 1
  assert how.word == 19
  part = {'blocks': {'a': np.zeros((2, D))}, 'head': np.zeros(D)}
  assert made.wire.coded(part) == -(-numbers * 19 // 8)
  half = secure.secure(how._replace(share=0.5))
  assert half.wire.coded(part) == -(-(2 * 3 + 3 + 4) * 19 // 8)


NOISY = HOW._replace(
  bits=12, weight=1.0, noise=discrete.Noise(total=0.5, least=4), threshold=4
)


def test_noise_that_all_make_is_in_the_sum_masked_or_not():
  """Its variance is that of those who are there; nobody tells what is out of
  range; masked or not, the sum is bitwise the same."""
  for lost in ((), (0, 6)):
    a, b = run(NOISY, lost), run(NOISY._replace(masked=False), lost)
    assert float(a[0]['aborted']) == 0.0
    world.same(a[1], b[1])
    assert float(a[0]['saturated']) == 0.0
  made, state = opened(NOISY._replace(masked=False))
  nothing = jax.tree.map(jnp.zeros_like, message(0))

  @jax.jit
  @jax.vmap
  def draws(key):
    sent = made.encode(state, nothing, key, Sender())
    return secure._signed(NOISY, sent.update['head'])

  found = np.asarray(draws(jax.random.split(KEY, 2000))) / NOISY.levels
  assert found.std() == pytest.approx(0.5 / 2, rel=0.03)
  # The sum of all has room.
  assert NOISY.word > NOISY._replace(noise=None).word
