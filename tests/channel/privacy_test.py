"""Private channels: the clip's bound, the noise's law, public denominators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.channel import privacy
from fedms_jax.core import tree
from fedms_jax.core.contract import Message, Received, Sender
from fedms_jax.core.types import Public
from fedms_jax.systems import banded

L, D = 3, 4.0
KEY = jax.random.key(7)


def message(blocks=(1.0, 0.0, 0.0), head=0.0, active=(1.0, 1.0, 1.0)):
  """A client's part, two numbers a block, an extra beside it."""
  rows = jnp.asarray(blocks)[:, None] * jnp.asarray([[0.6, 0.8]])
  update = {'blocks': {'a': rows}, 'head': jnp.full(2, head)}
  cover = {'blocks': jnp.asarray(active), 'head': jnp.float32(1)}
  return Message(update, {'more': {'head': jnp.zeros(2)}}, cover)


def public(holders=(D,) * L, clients=D):
  return Public(
    jnp.float32(clients),
    {'blocks': jnp.asarray(holders), 'head': jnp.float32(clients)},
  )


def released(how, messages, known=None, key=KEY, state=None):
  """(state, what the server gets) of messages of one round."""
  channel = privacy.central(how)
  if state is None:
    state = channel.init(KEY, message())
  sent = [channel.encode(state, m, KEY, Sender()) for m in messages]
  zero = jax.tree.map(jnp.zeros_like, channel.encode(state, message(), KEY,
                                                     Sender()))  # fmt: skip
  total = jax.tree.map(lambda *xs: sum(xs), zero, *sent)
  received = Received(*total, jnp.float32(len(sent)), jnp.float32(0))
  received = received._replace(public=known or public())
  return channel.decode(state, received, key)


def mean(received):
  return {
    key: received.update[key]['a'] / received.cover[key][:, None]
    if key == 'blocks'
    else received.update[key] / received.cover[key]
    for key in received.update
  }


def norm(a, b=None):
  diff = a if b is None else tree.subtract(a, b)
  return float(jnp.sqrt(tree.squared_norm(diff)))


CLIP = privacy.Central(1.0, 0.0)


def test_the_case_by_hand():
  """Four clients, of whom two hold either block, and a fifth with both."""
  sent = [message((1, 0, 0)), message((1, 0, 0)), message((0, 1, 0)),
          message((0, 1, 0))]  # fmt: skip
  known = public((2.0, 2.0, 0.0))
  _, four = released(CLIP, sent, known)
  np.testing.assert_allclose(
    mean(four)['blocks'][:2], [[0.6, 0.8]] * 2, atol=1e-6
  )
  _, five = released(CLIP, [*sent, message((0.6, 0.8, 0))], known)
  assert norm(five.update, four.update) == pytest.approx(1.0, abs=1e-6)
  # Nobody's message moves what sums are divided by.
  for a, b in ((four.cover, five.cover), (four.count, five.count)):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  'worst', [1e30, 1e38, np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30]
)
def test_one_client_moves_the_sum_by_no_more_than_the_clip(worst):
  usual = [message((0.3, 0.1, 0)), message((0.2, 0.4, 0.1), 0.3)]
  bad = message((worst, -worst, 2 * worst), worst)
  bad = bad._replace(
    extras={'more': {'head': jnp.full(2, worst)}},
    cover=jax.tree.map(lambda x: x * worst, bad.cover),
  )
  for clip in (0.01, 1.0, 50.0):
    how = privacy.Central(clip, 0.0)
    _, without = released(how, usual)
    _, with_it = released(how, [*usual, bad])
    moved = norm(
      (with_it.update, with_it.extras), (without.update, without.extras)
    )
    assert moved <= clip * (1 + 1e-5)
    jax.tree.map(np.testing.assert_array_equal, with_it.cover, without.cover)


def test_what_is_within_the_clip_stays_bitwise():
  one = message((0.3, -0.2, 0.1), 0.25)
  sent = privacy.central(CLIP).encode({'clip': jnp.float32(1)}, one, KEY,
                                      Sender())  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, sent, one)
  free = privacy.central(privacy.Central(float('inf'), 0.0))
  far = message((1e6, 0, 0), 1e6)
  sent = free.encode({'clip': jnp.float32(jnp.inf)}, far, KEY, Sender())
  jax.tree.map(np.testing.assert_array_equal, sent, far)


def noise_of(how, key, known=None, state=None):
  state, found = released(how, [], known, key, state)
  return state, jnp.concatenate(
    [found.update['blocks']['a'].ravel(), found.update['head'],
     found.extras['more']['head']]
  )  # fmt: skip


def test_noise_is_gaussian_of_z_times_c_in_all_that_may_be_sent():
  stats = pytest.importorskip('scipy.stats')
  how = privacy.Central(0.5, 3.0, scale=0.25)
  keys = jax.random.split(jax.random.key(0), 1000)
  draws = jax.vmap(lambda k: noise_of(how, k)[1])(keys)
  assert stats.kstest(np.ravel(draws) / 0.375, 'norm').pvalue > 1e-3
  pairs = np.corrcoef(np.asarray(draws).T)[np.triu_indices(10, 1)]
  assert abs(pairs).max() < 0.15
  np.testing.assert_array_equal(draws[3], noise_of(how, keys[3])[1])


def test_blocks_that_nobody_may_send_get_no_noise_and_do_not_move():
  _, found = released(privacy.Central(1.0, 1.0), [], public((0.0, 2.0, 4.0)))
  rows = np.asarray(found.update['blocks']['a'])
  assert not rows[0].any() and rows[1:].all()
  np.testing.assert_array_equal(found.cover['blocks'], [0, 2, 4])


ADAPTIVE = privacy.Adaptive(quantile=0.5, rate=0.2, noise=0.0)


def clips(adaptive, rounds=60, first=0.1, clients=200):
  """The clip over rounds of clients whose norms are uniform in [0, 1]."""
  how = privacy.Central(first, 0.0, adaptive)
  channel, found = privacy.central(how), [first]
  state = channel.init(KEY, message())
  norms = jax.random.uniform(KEY, (rounds, clients))

  @jax.jit
  def step(state, norms):
    def one(size):
      return channel.encode(state, message((size, 0, 0)), KEY, Sender())

    sent = jax.vmap(one)(norms)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), sent)
    received = Received(*total, jnp.float32(clients), jnp.float32(0))
    received = received._replace(public=public(clients=clients))
    return channel.decode(state, received, KEY)[0]

  for t in range(rounds):
    state = step(state, norms[t])
    found.append(float(state['clip']))
  return found


def test_an_adaptive_clip_goes_to_the_quantile_of_the_norms():
  found = clips(ADAPTIVE)
  assert found[60] == pytest.approx(0.5, rel=0.1)
  # Its path is known, within the noise of 200 norms a round.
  np.testing.assert_allclose(
    [found[t] for t in (10, 20, 40)], [0.211, 0.320, 0.462], rtol=0.06
  )
  low = clips(ADAPTIVE._replace(quantile=0.2))
  assert low[60] == pytest.approx(0.2, rel=0.15)


def test_the_bit_leaves_the_server_s_sight_and_its_noise_is_measured():
  how = privacy.Central(1.0, 0.0, ADAPTIVE._replace(noise=1.0))
  sent = [message((2, 0, 0)), message((0.5, 0, 0))]
  state, found = released(how, sent)
  assert set(found.extras) == {'more'}
  shares = [float(released(how, sent, key=jax.random.key(i))[0]['within'])
            for i in range(300)]  # fmt: skip
  assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
  assert np.std(shares) == pytest.approx(1 / D, rel=0.15)
  measured = privacy.central(how).measure(state)
  # The clip of the round, not that of the next one.
  assert float(measured['clip']) == 1.0 != float(state['clip'])


def test_noise_follows_the_clip_that_was_used():
  how = privacy.Central(1.0, 1.0, ADAPTIVE._replace(quantile=0.3))
  state, first = noise_of(how, KEY)
  again, second = noise_of(how, KEY, state=state)
  ratio = float(state['clip'])
  assert ratio != 1.0 and float(again['used']) == ratio
  np.testing.assert_allclose(second, first * ratio, rtol=1e-5)


def test_private_masks_are_decided_by_noisy_counts():
  how = privacy.Central(1.0, 0.0, counts=0.1, most=2)
  sent = [message(active=(0, 1, 1)) for _ in range(4)]
  _, found = released(how, sent, public(clients=9.0))
  counts = np.asarray(found.cover['blocks'])
  assert counts[0] == 0.0  # under the least count, whatever the noise
  assert (abs(counts[1:] - 4) < 0.5).all() and (counts[1:] != 4).all()
  assert float(found.cover['head']) == 9.0
  # Of one that says it has held more than it may, the first ones count.
  greedy = privacy.central(how).encode(
    {'clip': jnp.float32(1)}, message(active=(7.0, 1.0, 1.0)), KEY, Sender()
  )
  np.testing.assert_array_equal(greedy.cover['blocks'], [1, 1, 0])


def test_private_masks_put_noise_on_all_blocks():
  how = privacy.Central(1.0, 1.0, counts=0.1, most=2)
  _, found = released(how, [], public((0.0, 0.0, D)))
  assert np.asarray(found.update['blocks']['a']).all()


def test_one_band_is_bitwise_independent_noise():
  plain = privacy.Central(1.0, 2.0)
  one = plain._replace(coefficients=banded.coefficients(9, 1))
  np.testing.assert_array_equal(noise_of(plain, KEY)[1], noise_of(one, KEY)[1])


def test_correlated_noise_adds_up_to_less():
  """The variance of the running sum is that of the matrices."""
  rounds, bands, draws = 8, 4, 600
  column = banded.coefficients(rounds, bands)
  how = privacy.Central(1.0, 1.0, coefficients=column)
  channel = privacy.central(how)

  def run(key):
    state, out = channel.init(KEY, message()), []
    for t in range(rounds):
      state, noise = noise_of(how, jax.random.fold_in(key, t), state=state)
      out.append(noise)
    return jnp.cumsum(jnp.stack(out), axis=0)

  sums = jax.jit(jax.vmap(run))(jax.random.split(KEY, draws))
  expected = banded.squared_errors(np.array(column), rounds)
  np.testing.assert_allclose(np.var(sums, axis=(0, 2)), expected, rtol=0.06)
  assert expected[-1] < rounds / 2


def test_local_noise_is_each_client_s_own():
  channel = privacy.local(0.5, 2.0)
  keys = jax.random.split(jax.random.key(1), 2000)

  def one(key):
    sent = channel.encode((), message((9, 0, 0)), key, Sender())
    return sent.update['blocks']['a']

  found = np.asarray(jax.vmap(one)(keys))
  np.testing.assert_allclose(found.mean(0)[0], [0.3, 0.4], atol=0.08)
  np.testing.assert_allclose(found.std(0), 1.0, rtol=0.08)


def test_what_cannot_be_private_is_refused():
  channel = privacy.central(CLIP)
  state = channel.init(KEY, message())
  sent = channel.encode(state, message(), KEY, Sender())
  received = Received(*sent, jnp.float32(1), jnp.float32(0))
  with pytest.raises(ValueError, match='the stage a guard'):
    channel.decode(state, received, KEY)
  apart = received._replace(count=jnp.ones(2), public=public())
  with pytest.raises(ValueError, match='keeps them apart'):
    channel.decode(state, apart, KEY)
  cover = message().cover | {'blocks': {'a': jnp.ones(L)}}
  with pytest.raises(ValueError, match="'blocks'.*leaf by leaf"):
    channel.init(KEY, message()._replace(cover=cover))
