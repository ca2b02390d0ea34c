"""Attacks on what is sent: who, when, how far, and what stops them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax import channel
from fedms_jax.channel import attacks, privacy
from fedms_jax.core import reduction, tree
from fedms_jax.core.contract import Message, Received, Sender, identity
from fedms_jax.core.types import Public
from fedms_jax.server import averaged, robust
from fedms_jax.server.apart import apart
from tests import world

KEY = jax.random.key(3)
BAD = (1, 4)


def message(seed=0, weight=2.0):
  rng = np.random.default_rng(seed)
  update = {
    'blocks': {'a': jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)},
    'head': jnp.asarray(rng.normal(size=4), jnp.float32),
  }
  cover = {'blocks': jnp.full(3, weight), 'head': jnp.float32(weight)}
  extras = {'rank': {'blocks': jnp.full(3, 5.0)}}
  return Message(tree.scale(update, weight), extras, cover)


def encoded(how, sent, number=1, round=0, key=KEY):
  made = attacks.attack(how)
  sender = Sender(id=jnp.uint32(number), round=jnp.int32(round))
  return made.encode(made.init(KEY, sent), sent, key, sender)


@pytest.mark.parametrize('kind', attacks.SIMPLE)
def test_others_and_other_rounds_are_as_they_were(kind):
  how = attacks.Attack(kind, BAD, 3.0, start=2, stop=5)
  sent = message()
  for number, round in [(0, 3), (2, 3), (1, 1), (1, 5)]:
    world.same(encoded(how, sent, number, round), sent)
  for round in (2, 4):
    found = encoded(how, sent, 4, round)
    assert not np.allclose(found.update['head'], sent.update['head'])
    world.same((found.extras, found.cover), (sent.extras, sent.cover))


@pytest.mark.parametrize('kind', [*attacks.SIMPLE, *attacks.INFORMED])
def test_without_malicious_clients_a_round_is_bitwise_the_honest_one(kind):
  messages = [message(i) for i in range(3)]
  found = _round(attacks.Attack(kind, ()), messages)
  world.same(found, _round(None, messages))


def test_a_replacement_of_scale_one_is_honest():
  found = encoded(attacks.Attack('replacement', BAD, 1.0), message())
  world.same(found, message())


def test_a_replacement_goes_as_far_as_it_says_and_no_farther_than_its_bound():
  sent = message(weight=2.0)
  found = encoded(attacks.Attack('replacement', BAD, 7.0), sent)
  world.close(found.update, tree.scale(sent.update, 7.0))
  bounded = encoded(attacks.Attack('replacement', BAD, 7.0, bound=0.5), sent)
  norm = jnp.sqrt(tree.squared_norm(tree.scale(bounded.update, 1 / 2.0)))
  np.testing.assert_allclose(norm, 0.5, rtol=1e-5)  # of the change itself
  apart = encoded(
    attacks.Attack('replacement', BAD, 7.0, bound=0.5, weighed=False), sent
  )
  norm = jnp.sqrt(tree.squared_norm(apart.update))
  np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


def test_a_sign_is_flipped_and_noise_is_of_its_size():
  sent = message()
  flipped = encoded(attacks.Attack('sign_flip', BAD, 2.0), sent)
  world.close(flipped.update, tree.scale(sent.update, -2.0))
  wide = Message({'head': jnp.zeros(4000)}, {}, {'head': jnp.float32(3)})
  for weighed, std in ((True, 6.0), (False, 2.0)):
    how = attacks.Attack('gaussian', BAD, 2.0, weighed=weighed)
    noise = encoded(how, wide).update['head']
    np.testing.assert_allclose(np.std(noise), std, rtol=0.05)
  other = encoded(how, wide, key=jax.random.key(4)).update['head']
  assert not np.allclose(other, noise)


def _round(how, messages):
  """What a server gets, apart, of clients 0, 1, ... under an attack."""
  made = identity() if how is None else attacks.attack(how)
  state = made.init(KEY, messages[0])
  encode = jax.jit(made.encode)
  sent = [
    encode(state, m, KEY, Sender(id=jnp.uint32(i), round=jnp.int32(0)))
    for i, m in enumerate(messages)
  ]
  stack = jax.tree.map(lambda *xs: jnp.stack(xs), *sent)
  received = Received(*stack, jnp.ones(len(sent)), jnp.zeros(len(sent)))
  _, received = jax.jit(made.decode)(state, received, KEY)
  return received.update, received.extras, received.cover


@pytest.mark.parametrize('weighed', [True, False])
@pytest.mark.parametrize('kind', ['alie', 'ipm'])
def test_the_informed_lie_by_what_honest_clients_send(kind, weighed):
  weights = (2.0, 3.0, 5.0, 1.0, 4.0)
  messages = [message(i, w) for i, w in enumerate(weights)]
  scale = 1.5
  how = attacks.Attack(kind, BAD, scale, weighed=weighed)
  update, extras, _ = _round(how, messages)
  assert set(extras) == {'rank'}  # nobody is told who is malicious
  factors = np.array(weights) if weighed else np.ones(5)
  plain = np.stack([m.update['head'] for m in messages]) / factors[:, None]
  honest = plain[[0, 2, 3]]
  lie = honest.mean(0) - scale * honest.std(0)
  if kind == 'ipm':
    lie = -scale * honest.mean(0)
  for k in range(5):
    want = (lie if k in BAD else plain[k]) * factors[k]
    np.testing.assert_allclose(update['head'][k], want, rtol=2e-5)
  if kind == 'ipm':  # enough of them turn the mean around
    turned = _round(how._replace(scale=10.0), messages)[0]['head'].sum(0)
    if weighed:
      assert np.dot(turned, honest.mean(0)) < 0


def _numbers(values, weights):
  """Messages of one number each."""
  return [
    Message({'head': jnp.float32(v * w)[None]}, {}, {'head': jnp.float32(w)})
    for v, w in zip(values, weights, strict=True)
  ]


@pytest.mark.parametrize(
  ('kind', 'want'), [('min_max', 0.0), ('min_sum', -1 / 3)]
)
def test_a_lie_goes_as_far_as_honest_clients_do_by_hand(kind, want):
  """Of 0, 1 and 3 none is over 3 from another one, so that below the mean 0 is
  the farthest; the squared distances of 3 add up to 13, as those of -1/3 do."""
  values, weights = (0.0, 7.0, 1.0, 3.0, -5.0), (1.0, 2.0, 4.0, 1.0, 3.0)
  for direction in ('sign', 'unit', 'std'):  # of one number they are alike
    how = attacks.Attack(kind, BAD, direction=direction)
    found = _round(how, _numbers(values, weights))[0]['head'][:, 0]
    honest = np.array([0.0, 0, 4, 3, 0])
    for k in (0, 2, 3):
      assert found[k] == honest[k]
    np.testing.assert_allclose(found[1] / 2, want, atol=1e-6)
    np.testing.assert_allclose(found[4] / 3, want, atol=1e-6)


@pytest.mark.parametrize('direction', ['std', 'unit', 'sign'])
@pytest.mark.parametrize('kind', attacks.FITTED)
def test_a_fitted_lie_is_no_outlier(kind, direction):
  """By its own measure it is as far off as an honest client, to rounding."""
  messages = [message(i) for i in range(6)]
  how = attacks.Attack(kind, BAD, direction=direction)
  sent = _round(how, messages)[0]
  flat = np.concatenate(
    [x.reshape(6, -1) / 2.0 for x in jax.tree.leaves(sent)], axis=1
  ).astype(np.float64)
  np.testing.assert_allclose(flat[1], flat[4], rtol=1e-5)
  honest = np.delete(flat, BAD, axis=0)
  pairs = np.square(honest[:, None] - honest[None]).sum(-1)
  lie = np.square(honest - flat[1]).sum(-1)
  if kind == 'min_max':
    np.testing.assert_allclose(lie.max(), pairs.max(), rtol=1e-4)
  else:
    np.testing.assert_allclose(lie.sum(), pairs.sum(1).max(), rtol=1e-4)
  way = flat[1] - honest.mean(0)
  toward = {
    'std': -honest.std(0),
    'unit': -honest.mean(0),
    'sign': -np.sign(honest.mean(0)),
  }[direction]
  cosine = way @ toward / np.linalg.norm(way) / np.linalg.norm(toward)
  assert cosine == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize('kind', attacks.FITTED)
def test_where_nobody_is_honest_nothing_is_fitted(kind):
  found = _round(attacks.Attack(kind, (0, 1)), _numbers((2.0, 3.0), (1, 1)))
  np.testing.assert_array_equal(found[0]['head'], np.zeros((2, 1)))


@pytest.mark.parametrize('kind', attacks.FITTED)
def test_a_fitted_lie_compares_what_two_clients_both_hold(kind):
  """What others have where they hold nothing is not looked at."""
  messages = [message(i) for i in range(4)]

  def sent(noise):
    some = list(messages)
    for k in (0, 1):
      cover = some[k].cover['blocks'].at[0].set(0.0)
      a = some[k].update['blocks']['a'].at[0].set(noise)
      some[k] = some[k]._replace(
        update=some[k].update | {'blocks': {'a': a}},
        cover=some[k].cover | {'blocks': cover},
      )
    return _round(attacks.Attack(kind, (1,)), some)[0]

  blank, noisy = sent(0.0), sent(99.0)
  np.testing.assert_allclose(blank['head'], noisy['head'], rtol=1e-5)
  np.testing.assert_allclose(
    blank['blocks']['a'][1, 1:], noisy['blocks']['a'][1, 1:], rtol=1e-5
  )
  assert not np.allclose(blank['head'][1], messages[1].update['head'])


def test_a_lie_of_blocks_is_of_those_that_hold_them():
  messages = [message(i) for i in range(3)]
  cover = messages[1].cover['blocks'].at[0].set(0.0)
  blocks = {'a': messages[1].update['blocks']['a'].at[0].set(0.0)}
  messages[1] = messages[1]._replace(
    update=messages[1].update | {'blocks': blocks},
    cover=messages[1].cover | {'blocks': cover},
  )
  update, _, _ = _round(attacks.Attack('ipm', (1,), 1.0), messages)
  found = update['blocks']['a']
  np.testing.assert_array_equal(found[1, 0], np.zeros(2))
  want = -(found[0, 1:] + found[2, 1:]) / 2
  np.testing.assert_allclose(found[1, 1:], want, rtol=1e-5)


def test_z_is_that_of_the_paper():
  """Of 50 clients 24 are malicious: 26 - (50 / 2 + 1 - 24) of 26 must not be
  farther off."""
  found = float(attacks.usual_z(50, 24))
  assert found == pytest.approx(1.4261, abs=1e-3)  # Phi^-1(24 / 26)
  assert float(attacks.usual_z(10, 0)) == 0.0  # nobody to hide among


def test_informed_attacks_need_messages_apart():
  made = attacks.attack(attacks.Attack('alie', BAD))
  sent = encoded(attacks.Attack('alie', BAD), message())
  received = Received(*sent, jnp.float32(1), jnp.float32(0))
  with pytest.raises(ValueError, match='Keep them apart'):
    made.decode({}, received, KEY)


@pytest.mark.parametrize('scale', [1.0, 1e3, 1e30])
def test_a_clip_bounds_what_any_attacker_moves(scale):
  """By C / D, with noise or without: the clip comes after the attack."""
  clip, expected = 0.5, 4.0
  how = attacks.Attack('replacement', (1,), scale)
  both = channel.chain(
    attacks.attack(how), privacy.central(privacy.Central(clip, 0.0))
  )
  public = Public(
    jnp.float32(expected),
    {'blocks': jnp.full(3, expected), 'head': jnp.float32(expected)},
  )
  sent = message(weight=1.0)._replace(extras={})
  state = both.init(KEY, sent)
  moved = both.encode(state, sent, KEY, Sender(id=jnp.uint32(1)))
  received = Received(*moved, jnp.float32(1), jnp.float32(0), public)
  _, received = both.decode(state, received, KEY)
  step = averaged.divide(received.update, received.cover)
  shift = float(jnp.sqrt(tree.squared_norm(step)))
  assert shift <= clip / expected * (1 + 1e-5)


def test_a_median_stays_within_the_honest_of_a_majority():
  """Of 2 f + 1 clients f send what they like."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=(5, 6)).astype(np.float32)
  for lie in (1e6, -1e6, np.inf):
    lied = values.copy()
    lied[list(BAD)] = lie
    held = {'head': jnp.ones(5)}
    received = Received({'head': jnp.asarray(lied)}, {}, held, jnp.ones(5), 0.0)
    after = robust.median().merge({'head': jnp.zeros(6)}, received)['head']
    honest = np.delete(values, BAD, axis=0)
    assert (after >= honest.min(0)).all() and (after <= honest.max(0)).all()


@functools.cache
def _global():
  return world.first_stage()


@pytest.mark.slow
def test_a_server_that_is_told_apart_takes_the_same_step():
  algorithm, roles = _global()
  rows = world.cohort_rows(clients=3)
  plain = world.train(algorithm, roles, rows)[0]
  roles, memory, _ = reduction.begin(algorithm, roles, 0)
  server = apart(algorithm.server)
  assert server.reduction == 'stack' and apart(server) is server
  assert apart(algorithm.server) is server  # programs are shared
  made = algorithm._replace(server=server)
  work = world.Work(world.table(), jax.random.key(5))
  got = world.rounds.train(
    made, world.DENSE, roles, work, None, world.clients(rows)
  )[0]
  shared = world.close_round(made, roles, got, memory)[0].shared
  world.close(shared, plain)


def test_the_engine_says_who_sends_and_when():
  """A sign flip of client 1 alone turns the mean of one client around."""
  algorithm, roles = _global()
  rows = world.cohort_rows(clients=1)
  before = roles.shared

  def moved(how, number):
    own = algorithm
    if how is not None:
      own = algorithm._replace(channel=attacks.attack(how))
    ids = np.array([number], np.uint32)
    after = world.train(own, roles, rows, ids=ids)[0]
    return tree.subtract(after, before)

  how = attacks.Attack('sign_flip', (1,))
  world.same(moved(how, 0), moved(None, 0))
  world.close(moved(how, 1), tree.scale(moved(None, 1), -1.0))
