"""Compressed messages: bytes as coded, what is lost comes later, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax import channel
from fedms_jax.channel import codecs, compression
from fedms_jax.core import inner_state, tree
from fedms_jax.core.contract import Message, Received, Sender, identity
from fedms_jax.core.wire import INNER, RESIDUAL
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.simulation.private_test import StopAfter

KEY = jax.random.key(1)
WHOLE = compression.Code('top_k', share=1.0)
FEW = compression.Code('top_k', share=0.2, feedback=True)


def message(values, weight=1.0):
  """Of a client with two blocks of four numbers, and eight beside them."""
  values = jnp.asarray(values, jnp.float32)
  update = {'blocks': {'a': values[:8].reshape(2, 4)}, 'head': values[8:]}
  update = tree.scale(update, weight)
  held = {'blocks': jnp.full(2, weight), 'head': jnp.float32(weight)}
  return Message(update, {}, held)


VALUES = np.random.default_rng(0).normal(size=16)


def with_channel(stages, made, feedback=False):
  out = []
  for stage in stages:
    algorithm = stage.algorithm
    if feedback:
      algorithm = inner_state.with_residual(algorithm)
    out.append(stage._replace(algorithm=algorithm._replace(channel=made)))
  return out


def test_each_block_of_each_leaf_is_a_vector():
  code = compression.Code('sign')
  sent = compression.up(code).encode((), message(VALUES), KEY, Sender())
  # Of four numbers signs and a size take 36 bits of 128.
  rows = abs(np.asarray(sent.update['blocks']['a']))
  np.testing.assert_allclose(
    rows, np.repeat(abs(VALUES[:8]).reshape(2, 4).mean(1), 4).reshape(2, 4),
    rtol=1e-6,
  )  # fmt: skip
  how = compression.codec(code)
  assert compression.nbytes(how, sent.update) == -(-(36 + 36 + 40) // 8)


def test_what_is_lost_is_sent_later():
  """Of a client that always has the same to send all of it arrives in time,
  whatever it weighs."""
  made = compression.up(FEW)
  kept = jax.tree.map(jnp.zeros_like, message(VALUES).update)
  total, rounds = kept, 40
  for t in range(rounds):
    weight = 1.0 + t % 3
    one = message(VALUES, weight)
    sent, kept = made.wire.keep((), one, KEY, Sender(), kept)
    total = tree.add(total, tree.scale(sent.update, 1 / weight))
  wanted = message(VALUES * rounds).update
  world.close(tree.add(total, kept), wanted, 1e-3)
  assert float(tree.squared_norm(kept)) < float(tree.squared_norm(wanted)) / 50
  # Without it most never does.
  plain = compression.up(FEW._replace(feedback=False))
  sent = plain.encode((), message(VALUES), KEY, Sender())
  assert np.count_nonzero(sent.update['head']) == 2


def test_a_decay_forgets_what_was_lost():
  made = compression.up(FEW._replace(decay=0.0))
  kept = jax.tree.map(jnp.ones_like, message(VALUES).update)
  sent, _ = made.wire.keep((), message(VALUES), KEY, Sender(), kept)
  plain = made.encode((), message(VALUES), KEY, Sender())
  world.same(sent.update, plain.update)


def test_common_numbers_are_those_of_all_clients():
  made = compression.up(compression.Code('random_k', share=0.25, common=True))
  state = made.wire.open(made.init(KEY, message(VALUES)), None, KEY)
  sent = [
    made.encode(state, message(VALUES + n), jax.random.key(n), Sender())
    for n in range(2)
  ]
  a, b = (np.asarray(s.update['head']) != 0 for s in sent)
  np.testing.assert_array_equal(a, b)
  other = made.wire.open(state, None, jax.random.key(99))
  again = made.encode(other, message(VALUES), KEY, Sender())
  c = np.asarray(again.update['blocks']['a']) != 0
  a = np.asarray(sent[0].update['blocks']['a']) != 0
  assert (np.asarray(again.update['head'] != 0) != b).any() or (a != c).any()


def group(algorithm, roles):
  return Meter(algorithm, roles, batch=4, slots=0).group(
    world.TOP, world.TOP.active, clients=2, newcomers=0, cohort=2,
    examples=1, steps=1, derived=0, scope='run',
  )  # fmt: skip


def test_the_ledger_counts_the_bits_of_the_code():
  algorithm, roles = world.first_stage()
  code = compression.Code('uniform', levels=16)
  both = channel.chain(compression.down(code), compression.up(code))
  plain, found = (
    group(algorithm._replace(channel=c), roles) for c in (identity(), both)
  )
  bits = 0
  for key, part in tree.narrow(roles.shared, world.TOP.active).items():
    for x in jax.tree.leaves(part):
      d = x.size  # of one block
      assert not tree.is_stacked(key) or len(x) == 1
      bits += min(32 * d, 4 * d + 64)
  size = -(-bits // 8)
  assert found.bytes_up == found.bytes_down == 2 * size
  assert 2 * size < plain.bytes_up / 2
  assert found.peak_client_bytes_up == size


@pytest.mark.parametrize('apart', [False, True])
def test_rounds_tell_what_an_entropy_coder_would_send(apart):
  """The mean of the clients that send; what arrives is as ever."""
  code = compression.Code('uniform', levels=4)
  plain = compression.up(code)
  made = compression.up(code._replace(entropy=True))
  how = compression.codec(code)
  state = made.init(KEY, message(VALUES))
  bits, sent = [], []
  for number in range(3):
    one, key = message(VALUES + number**2, 2.0), jax.random.key(number)
    got = made.encode(state, one, key, Sender())
    bits.append(float(compression.entropy_bits(how, one.update, key)))
    world.same(got.update, plain.encode((), one, key, Sender()).update)
    sent.append(got)
  nobody = jax.tree.map(jnp.zeros_like, sent[0])
  both = jax.tree.map(lambda *xs: jnp.stack(xs), *sent, nobody)
  count = jnp.array([1.0, 1, 1, 0])
  if not apart:
    both, count = jax.tree.map(lambda x: jnp.sum(x, 0), (both, count))
  state, found = made.decode(state, Received(*both, count, 0 * count), KEY)
  assert made.measure is not None and not found.extras
  told = float(made.measure(state)['coded_bytes'])
  assert told == pytest.approx(np.mean(bits) / 8)
  assert 0 < told <= compression.nbytes(how, message(VALUES).update) + 1


def test_an_entropy_coder_of_numbers_by_a_seed_is_refused():
  made = compression.up(compression.Code('random_k', entropy=True))
  with pytest.raises(ValueError, match=r'`Code.entropy` finds nothing'):
    made.encode({}, message(VALUES), KEY, Sender())


@pytest.mark.slow
def test_a_code_that_keeps_all_is_bitwise_the_plain_run():
  up = with_channel(world.stages(2), compression.up(WHOLE))
  _, state, records = world.simulate(up, scope='run')
  plain = world.reference()
  world.same(state.roles, plain[1].roles)
  for a, b in zip(records, plain[2], strict=True):
    assert a['train_loss'] == b['train_loss']


def test_clients_get_the_change_since_the_start_coded():
  """What has not changed arrives bitwise, blocks that never trained included;
  what has, to a step of the code."""
  _, roles = world.first_stage()
  moved = world.trained(roles).shared
  made = compression.down(compression.Code('uniform', levels=1 << 10))
  state = made.wire.begin((), roles.shared)
  world.same(made.wire.receive(state, roles.shared, KEY), roles.shared)
  found = made.wire.receive(state, moved, KEY)
  for x, y in zip(*map(jax.tree.leaves, (found, moved)), strict=True):
    assert float(jnp.max(jnp.abs(x - y))) < 2 * 1.5 / 1023
  assert not bool(tree.equal(found, moved))
  again = made.wire.receive(state, moved, jax.random.key(8))
  assert not bool(tree.equal(found, again))


CODED = channel.chain(
  compression.down(compression.Code('uniform')), compression.up(FEW)
)


def coded_run(**more):
  return world.simulate(
    with_channel(world.stages(2), CODED, feedback=True), **more
  )


@pytest.mark.slow
def test_a_resumed_run_has_what_its_clients_kept(tmp_path):
  from fedms_jax.persistence.run_store import Disk
  from fedms_jax.persistence.workdir import Workdir
  from fedms_jax.simulation import observer
  from fedms_jax.simulation.state import Preempted

  simulation, whole, _ = coded_run()
  for resume in (False, True):
    workdir = Workdir.open(tmp_path, 'flags', resume)
    keep = Disk(workdir, 1)
    try:
      if not resume:
        with pytest.raises(Preempted):
          coded_run(keep=keep, watch=StopAfter(1))
        continue
      fresh = world.driver.Simulation(
        world.federation(), world.start(),
        with_channel(world.stages(2), CODED, feedback=True),
        world.Options(cohort=3, batch_size=4, block=32),
        run_store=keep, observer=observer.Silent(),
      )  # fmt: skip
      found = fresh.run(keep.restore(fresh))
      world.same(found.roles.shared, whole.roles.shared)
      ids = np.arange(6)
      mine = [s.store(x).gather(ids) for s, x in
              ((fresh, found), (simulation, whole))]  # fmt: skip
      world.same(*(jax.device_get(m[INNER][RESIDUAL]) for m in mine))
      kept = jax.tree.leaves(mine[0][INNER][RESIDUAL])
      assert any(np.asarray(x).any() for x in kept)
    finally:
      keep.close()
      workdir.close()


def test_one_place_keeps_what_was_lost():
  with pytest.raises(ValueError, match=r'Wire.keep'):
    channel.chain(compression.up(FEW), compression.up(FEW))
  with pytest.raises(ValueError, match='no code; allowed: uniform'):
    compression.codec(compression.Code('zip'))
  assert codecs.count(0.01, 5) == 1
