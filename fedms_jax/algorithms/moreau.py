"""pFedMe (arXiv 2006.08848): personal models by Moreau envelopes.

The envelope of a client's loss f at w is min over theta of f(theta) + pull /
2 ||theta - w||^2; its gradient at w is pull * (w - theta). The personal model
is theta, and the shared model w descends on the envelope. The server's mixing
(1 - beta) w + beta mean(w_k) is a server optimizer of learning rate beta.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from fedms_jax.algorithms import adapted, two_experts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, tree
from fedms_jax.core.contract import Algorithm, ClientUpdate, Message, Start
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Tree


def pfedme(
  setting: Setting,
  *,
  pull: float,
  steps: int,
  learning_rate: float,
  adapter: Tree | None = None,
) -> Algorithm:
  """pFedMe: of each batch, `steps` optimizer steps toward theta, and one step
  of w by `learning_rate` on the envelope.

  theta begins a round as w and goes on from batch to batch; clients keep the
  last one, which is what they are served with.
  """
  task = setting.task

  def loss(roles: Roles, batch: Batch, key, start: Start):
    del key
    own, plan = roles.personal, start.plan
    out = two_experts.logits(setting, roles.frozen, own, batch, plan)
    return adapted.learned(task, batch, out)

  update = envelope(loss, setting.optimizer, pull, steps, learning_rate)
  # A batch takes so many passes, one after another.
  return two_experts.pair(setting, 'pfedme', update, adapter=adapter)._replace(
    passes=Passes(trained=steps, frozen=0)
  )


def envelope(
  loss: Callable, optimizer, pull: float, steps: int, learning_rate: float
) -> ClientUpdate:
  """Descent of roles.shared on the Moreau envelope of a loss.

  loss: an objective of `client.sgd` that reads theta in roles.personal, a
  tree like roles.shared. optimizer: finds theta.
  """

  def pulled(roles: Roles, batch: Batch, key, start: Start):
    value, sums = loss(roles, batch, key, start)
    anchor = start.roles.shared
    away = two_experts.squared_distance(roles.personal, anchor)
    return value + pull / 2 * away, sums

  def theta_alone(plan: Plan):
    return {'blocks': False, 'head': False}, plan.active

  inner = client.sgd(pulled, optimizer, theta_alone)

  def sent(start: Start) -> Start:
    roles = start.roles
    return start.at(roles._replace(personal=roles.shared))

  def begin(start: Start):
    return {
      'theta': inner.begin(sent(start)),
      'w': tree.narrow(start.roles.shared, start.plan.active),
    }

  def step(carry, start: Start, batch: Batch, key):
    w = tree.widen(start.roles.shared, carry['w'], start.plan.active)
    now = start.at(sent(start).roles._replace(shared=w))

    def toward(theta, _):
      return inner.step(theta, now, batch, key)

    theta, sums = jax.lax.scan(toward, carry['theta'], None, length=steps)
    rate = learning_rate * pull
    part = jax.tree.map(
      lambda w, x: w - rate * (w - x), carry['w'], theta['train']['personal']
    )
    return {'theta': theta, 'w': part}, jax.tree.map(lambda x: x[-1], sums)

  def finish(carry, start: Start):
    _, theta = inner.finish(carry['theta'], sent(start))
    return Message(carry['w']), theta

  return ClientUpdate(begin, step, finish, inner.sums)
