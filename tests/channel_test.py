"""The channel: one order, a state for each member, all that passes."""

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax import channel
from fedms_jax.core.contract import Message, Received, Sender, identity
from fedms_jax.systems.ledger import Meter
from tests import world

MESSAGE = Message({'head': jnp.arange(3.0)}, {}, {'head': jnp.float32(1)})


def affine(factor, offset):
  """Messages times a factor plus an offset, which the server takes back; the
  state counts the rounds."""

  def encode(state, message, key, sender):
    return jax.tree.map(lambda x: factor * x + offset, message)

  def decode(state, received, key):
    update = jax.tree.map(lambda x: (x - offset) / factor, received.update)
    return state + 1, received._replace(update=update)

  return identity()._replace(
    init=lambda key, message: jnp.int32(0), encode=encode, decode=decode,
    bytes=lambda size: size * factor, event=f'times {factor}',
  )  # fmt: skip


def test_a_chain_encodes_from_left_to_right_and_decodes_back():
  both = channel.chain(affine(2.0, 1.0), affine(4.0, 0.0))
  key = jax.random.key(0)
  state = both.init(key, MESSAGE)
  sent = both.encode(state, MESSAGE, key, Sender())
  np.testing.assert_array_equal(sent.update['head'], [4.0, 12.0, 20.0])
  received = Received(*sent, 1.0, 0.0)
  state, found = both.decode(state, received, key)
  np.testing.assert_array_equal(found.update['head'], MESSAGE.update['head'])
  assert [int(x) for x in state] == [1, 1]
  assert both.bytes(10.0) == 80.0 and both.event == ('times 2.0', 'times 4.0')
  assert channel.chain(identity()).event is None


def test_the_ledger_counts_what_is_on_the_wire():
  algorithm, roles = world.first_stage()
  half = identity()._replace(bytes=lambda size: size / 2)
  spent = [
    Meter(one, roles, batch=4, slots=0).group(
      world.DENSE, world.DENSE.active, clients=2, newcomers=0, cohort=2,
      examples=1, steps=1, derived=0, scope='run',
    )
    for one in (algorithm, algorithm._replace(channel=half))
  ]  # fmt: skip
  assert spent[1].bytes_up == spent[0].bytes_up / 2 > 0
  assert spent[1].bytes_down == spent[0].bytes_down


def test_an_identity_channel_is_bitwise_the_plain_run():
  plain = world.reference()
  stages = [
    stage._replace(
      algorithm=stage.algorithm._replace(channel=channel.chain(identity()))
    )
    for stage in world.stages(2)
  ]
  _, state, records = world.simulate(stages, scope='run')
  world.same(state.roles, plain[1].roles)
  for a, b in zip(records, plain[2], strict=True):
    assert a['train_loss'] == b['train_loss'] and a['score'] == b['score']
