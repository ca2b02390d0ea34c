"""Federated generative learning (FGL, arXiv 2306.16064), in feature space.

Clients send what a generator needs, once or a few times, and the server trains
on what it generates. In the paper that are prompts for a diffusion model; here
it is a Gaussian for each class in the features z of the frozen base, which is
our choice: a client sends of its rows the counts n_c [C], the sums of z by
class [C, D], and the sum of z z' [D, D], for z / sqrt(D), which are about as
long as one. The server adds all that up over the rounds, which gives

  mu_c = sum_c / n_c,   Sigma = (sum of z z' - sum_c n_c mu_c mu_c') / n,

draws z = mu_c + Sigma^(1/2) e, e normal, of the classes c that somebody has,
alike, and trains a head on them, from the one that the run begins with, by SGD
with the paper's momentum, decay and batch. A row counts as often as a client
looks at it, and a client as often as it is sampled: with one round of all
clients, once (the paper's one shot).

All that clients send are sums, so that a channel may clip them and add noise.
A clip scales all of a client's sums alike: its rows count for less, and what
they say of means and covariance stays as it is. A row is a message about
sqrt(3) long, so that a clip of that times n lets n rows of a client count.
Classes with next to no rows are taken for noise, and not drawn.

What comes after is FedAvg of the head from there (`tuned`), or any method that
starts from a head (`before`). That is ours here; a head of class means before
federated fine-tuning is FedNCM (arXiv 2306.03937), and a head that is fitted
before the features are tuned, arXiv 2202.10054.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, general
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import descent, tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Message,
  Received,
  Sender,
  Server,
  Start,
)
from fedms_jax.core.types import ActiveSet, Batch, Passes, Plan, Roles, Tree
from fedms_jax.models.tasks import weighted_mean

MOMENTUM, DECAY, BATCH = 0.9, 2e-4, 128  # of the server's SGD
LEAST = 1e-3  # of an even share of the rows; a class with less is not drawn
_SENT = 'statistics'


class Choice(NamedTuple):
  """What the server does in a round. per_class: examples of each class in an
  epoch. epochs, learning_rate: of its SGD. classes: C."""

  per_class: int
  epochs: int
  learning_rate: float
  classes: int

  @property
  def steps(self) -> int:
    """Steps of SGD in a round."""
    return -(-self.per_class * self.classes * self.epochs // BATCH)


def synthesized(setting: Setting, choice: Choice) -> Algorithm:
  """The rounds in which clients send statistics and the server makes a head.

  Frozen has 'base' and 'start', {'head'}; shared the 'head'; the statistics
  are the server's memory.
  """
  plain = general.probe(setting)

  def masks(plan: Plan):
    return {'head': False}, plan.active

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    """Statistics go up; nothing is needed to make them."""
    del plan, ever, cohort
    return float(tree.nbytes(_zeros(shapes, choice.classes))), 0.0

  return plain._replace(
    name='fgl/statistics',
    update=_counting(setting, choice),
    server=_server(setting, choice),
    masks=masks,
    passes=Passes(trained=0, frozen=1),
    traffic=traffic,
  )


def tuned(setting: Setting) -> Algorithm:
  """FedAvg of the head that `synthesized` has made, beside the first one."""
  plain = general.probe(setting)

  def begin(key, before: Roles) -> Roles:
    del key
    head = jax.tree.map(jnp.copy, before.shared['head'])
    frozen = {key: before.frozen[key] for key in ('base', 'start')}
    return Roles(frozen, {'head': head}, {})

  return plain._replace(name='fgl/tuned', begin=begin)


def before(algorithm: Algorithm) -> Algorithm:
  """An algorithm that starts from the head that `synthesized` has made, as from
  one that was pre-trained."""

  def begin(key, made: Roles) -> Roles:
    head = jax.tree.map(jnp.copy, made.shared['head'])
    return algorithm.begin(key, adapted.start(made.frozen['base'], head))

  return algorithm._replace(begin=begin)


def _zeros(roles: Roles, classes: int) -> Tree:
  """Statistics of nobody; roles may be shapes."""
  width = roles.shared['head']['kernel'].shape[0]
  return {
    'counts': jnp.zeros(classes),
    'sums': jnp.zeros((classes, width)),
    'squares': jnp.zeros((width, width)),
  }


def _counting(setting: Setting, choice: Choice) -> ClientUpdate:
  """Adds up the statistics of a client's rows; nothing is trained."""
  task, backbone = setting.task, setting.backbone

  def begin(start: Start):
    return _zeros(start.roles, choice.classes)

  def step(carry, start: Start, batch: Batch, key):
    del key
    x = batch['features'].astype(jnp.float32)
    held = batch['mask'].astype(jnp.float32)[:, None]
    x = jnp.where(held > 0, x, 0.0) * x.shape[-1] ** -0.5
    mine = held * jax.nn.one_hot(batch['labels'], choice.classes)
    found = {
      'counts': jnp.sum(mine, axis=0),
      'sums': mine.T @ x,
      'squares': x.T @ x,
    }
    base, head = start.roles.frozen['base'], start.roles.shared['head']
    logits = backbone.logits(base, head, batch['features'])
    sums = adapted.sums(task, logits, task.loss(logits, batch), batch)
    return tree.add(carry, found), sums

  def finish(carry, start: Start):
    return Message({}, {_SENT: carry}), start.roles.personal

  return ClientUpdate(begin, step, finish)


def _server(setting: Setting, choice: Choice) -> Server:
  """Adds up statistics, and makes the head anew of them."""

  def init(key, roles: Roles) -> Tree:
    del key
    return _zeros(roles, choice.classes)

  def send(before, message: Message, weight, sender: Sender) -> Message:
    del before, sender
    counts = jnp.where(weight > 0, 1.0, 0.0)
    return message._replace(extras=tree.scale(message.extras, counts))

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    some = received.extras[_SENT]
    total = tree.add(memory, some)
    head = learned(setting, roles.frozen, gaussians(total), choice, context.key)
    came = jnp.any(some['counts'] > 0)
    new = tree.where(came, {'head': head}, {'head': roles.shared['head']})
    return roles._replace(shared=new), total, {}

  return Server(init, send, 'sum', step)


class Gaussians(NamedTuple):
  """held: classes that somebody has, bool [C]. means: [C, D]. root: a square
  root of the covariance that all share, [D, D]."""

  held: jax.Array
  means: jax.Array
  root: jax.Array


def gaussians(statistics: Tree) -> Gaussians:
  """What the sums say, however they are scaled together; noise may have made a
  covariance that is none, of which the negative part is dropped."""
  n, total = statistics['counts'], statistics['sums']
  classes, width = total.shape
  rows = jnp.sum(n)
  held = (n > 0.0) & (n > LEAST * rows / classes)
  means = jnp.where(held, 1.0 / jnp.where(held, n, 1.0), 0.0)[:, None] * total
  spread = statistics['squares'] - means.T @ (n[:, None] * means)
  spread = spread / jnp.where(rows > 0.0, rows, 1.0)
  values, vectors = jnp.linalg.eigh((spread + spread.T) / 2)
  # The symmetric one: signs of single vectors would be an accident.
  root = (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :]) @ vectors.T
  length = width**0.5  # of the features, in what is sent
  return Gaussians(held, length * means, length * root)


def drawn(found: Gaussians, key, count: int):
  """(features [count, D], classes int32 [count]) of the classes that are held,
  alike."""
  which, noise = jax.random.split(key)
  even = jnp.where(found.held, 0.0, -jnp.inf)
  even = jnp.where(jnp.any(found.held), even, 0.0)
  labels = jax.random.categorical(which, even, shape=(count,))
  e = jax.random.normal(noise, (count, found.means.shape[1]))
  return found.means[labels] + e @ found.root, labels.astype(jnp.int32)


def learned(
  setting: Setting, frozen: Tree, found: Gaussians, choice: Choice, key
) -> Tree:
  """The head that SGD on drawn features makes of that of the start."""
  backbone, task = setting.backbone, setting.task
  optimizer = optax.chain(
    optax.add_decayed_weights(DECAY),
    optax.sgd(choice.learning_rate, momentum=MOMENTUM),
  )

  def loss(head, number):
    x, labels = drawn(found, jax.random.fold_in(key, number), BATCH)
    batch = {'labels': labels, 'mask': jnp.ones(BATCH, bool)}
    logits = backbone.logits(frozen['base'], head, x)
    return weighted_mean(*task.loss(logits, batch))

  head, numbers = frozen['start']['head'], jnp.arange(choice.steps)
  return descent.descended(loss, head, optimizer, numbers)[0]
