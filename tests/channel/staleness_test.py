"""What late reports weigh, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.channel.staleness import Discount, discounted
from fedms_jax.core.contract import Context, Message, Received, Roles, Sender
from fedms_jax.server import averaged
from fedms_jax.server.mixing import mixing

BEFORE = {'head': jnp.array([10.0, 20.0])}


def sums(server, channel, clients):
  """What the server gets of (moved by, weight, staleness) of clients."""
  total = None
  for move, weight, tau in clients:
    message = Message(
      {'head': BEFORE['head'] + move}, {}, {'head': jnp.float32(1)}
    )
    sender = Sender(jnp.float32(tau)) if tau else Sender()
    sent = server.send(BEFORE, message, jnp.float32(weight), sender)
    if channel is not None:
      sent = channel.encode((), sent, jax.random.key(0), sender)
    one = Received(*sent, jnp.float32(1), jnp.float32(tau))
    total = one if total is None else jax.tree.map(jnp.add, total, one)
  return total


def after(server, channel, clients):
  roles = Roles({}, BEFORE, {})
  memory = server.init(jax.random.key(0), roles)
  received = sums(server, channel, clients)
  roles, *_ = server.step(roles, memory, received, Context(jax.random.key(0)))
  return np.asarray(roles.shared['head'])


@pytest.fixture
def plain():
  import optax

  return averaged.averaged(averaged.mean(), optax.sgd(1.0))


def test_fedbuff_divides_by_the_count_and_fedscale_by_the_weights(plain):
  """Moves 1 and 4, the second three steps old, so that s is a half."""
  clients = [(1.0, 1.0, 0), (4.0, 1.0, 3)]
  poly = Discount('poly')
  by_count = after(plain, discounted(poly, 'count'), clients)
  by_weight = after(plain, discounted(poly, 'weight'), clients)
  np.testing.assert_allclose(by_count, [11.5, 21.5], rtol=1e-6)
  np.testing.assert_allclose(by_weight, [12.0, 22.0], rtol=1e-6)


def test_a_fresh_message_is_left_as_it_is():
  message = Message({'head': jnp.ones(2)}, {}, {'head': jnp.float32(1)})
  for kind in ('constant', 'poly', 'hinge'):
    channel = discounted(Discount(kind))
    assert channel.encode((), message, None, Sender()) is message


def test_fedasync_mixes_whole_models():
  """alpha 0.6 of a model one step old, poly: a is 0.6 / sqrt 2; its model is
  at 7, for it began with another one."""
  import optax

  server = averaged.averaged(mixing(0.6, Discount('poly')), optax.sgd(1.0))
  found = after(server, None, [(-3.0, 5.0, 1)])
  a = 0.6 / 2**0.5
  expected = [(1 - a) * 10 + a * 7, (1 - a) * 20 + a * 17]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  whole = averaged.averaged(mixing(1.0, Discount()), optax.sgd(1.0))
  np.testing.assert_allclose(after(whole, None, [(-3.0, 5.0, 9)]), [7, 17])
