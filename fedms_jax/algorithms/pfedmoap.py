"""pFedMoAP (arXiv 2410.10114): the prompts of other clients as fixed experts.

In a round a client begins with the mean prompt, trains it, and keeps and sends
what came of it. The server keeps the newest prompts of clients in a pool. A
client gets those nearest to the one it made before, and an attention gate of
its own weighs their class features, and its own prompt's, for each image:

  logits = local * s x t + s x' MHA(q = x', k = v = [t', e_1', ..., e_n']),

where x is the feature of the image, t and e_i those of a class by the own
prompt and the experts, all of length 1, s is CLIP's scale, and a prime takes
entries at even distances. A client that has not made a prompt yet, or finds
nobody's in the pool, has s x t alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora_products
from fedms_jax.algorithms import frozen_backbone, pool, soft_prompts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Prediction,
  Received,
  Server,
  Start,
)
from fedms_jax.core.types import ActiveSet, Batch, Plan, Roles, Tree
from fedms_jax.models import linear
from fedms_jax.models.family import Prompted
from fedms_jax.server.averaged import Aggregator, as_trained, averaged


class Choice(NamedTuple):
  """experts: prompts that are mixed, the own one included. pool: prompts that
  the server keeps. width, heads, scale: of the gate's attention, whose
  products are multiplied by `scale`. local: weight of the own prompt alone."""

  experts: int
  pool: int
  width: int
  heads: int
  scale: float
  local: float


class Experts(NamedTuple):
  """How the prompts of others are found, and mixed with a client's own."""

  setting: Setting
  prompted: Prompted
  choice: Choice

  @property
  def count(self) -> int:
    """Prompts of others, at most."""
    return min(self.choice.experts - 1, self.choice.pool)

  def of(self, roles: Roles) -> Tree:
    """Class features [n, C, P] of the others, and which there are."""
    own, text = roles.personal, roles.frozen['base']['text']
    prompts, held = pool.nearest(
      roles.frozen['server'], own['prompt'], own['ticket'], self.count
    )
    found = jax.lax.map(lambda x: self.prompted.features(text, x), prompts)
    return {'classes': found, 'held': held & ~pool.is_nobody(own['ticket'])}

  def mixed(self, roles: Roles, own, others: Tree, batch: Batch):
    """Logits by the prompt `own` alone, logits of the mixture, and its weight
    [B] on the own prompt."""
    x, base = batch['features'], roles.frozen['base']
    classes = self.prompted.features(base['text'], own)
    alone = frozen_backbone.class_logits(self.setting, roles.frozen, classes, x)
    direction = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    products, weight = attended(
      roles.personal['gate'],
      self.choice,
      direction,
      jnp.concatenate([classes[None], others['classes']]),
      jnp.concatenate([jnp.ones(1, bool), others['held']]),
    )
    scale = jnp.exp(base['final']['logit_scale'])
    both = self.choice.local * alone + scale * products
    some = jnp.any(others['held'])
    return alone, jnp.where(some, both, alone), jnp.where(some, weight, 1.0)


def pfedmoap(
  setting: Setting, prompted: Prompted, length: int, choice: Choice
) -> Algorithm:
  """pFedMoAP on prompts of `length` vectors before the names of the classes.

  Shared is the mean 'prompt'; the pool is the server's memory, and clients see
  it as frozen['server']. Personal are the 'prompt' that the client made last,
  its 'gate', and the 'ticket' by which the pool knows it.
  """
  form = soft_prompts.of_classes(setting, prompted, length)
  experts = Experts(setting, prompted, choice)

  def begin(key, frozen: Tree) -> Roles:
    found = form.fresh(key, frozen)['prompt']
    gate = _gate(jax.random.fold_in(key, 1), choice.width)
    own = {'prompt': found, 'gate': gate, 'ticket': pool.nobody()}
    return Roles(frozen, {'prompt': found}, own)

  def trained(roles: Roles, batch: Batch, start: Start):
    own = roles.shared['prompt']
    return experts.mixed(roles, own, start.prepared, batch)[1], 0.0

  def latest(roles: Roles):
    """The client's prompt; everybody's, if it never made one."""
    own = roles.personal
    new = pool.is_nobody(own['ticket'])
    return jnp.where(new, roles.shared['prompt'], own['prompt'])

  def models(roles: Roles, batch: Batch) -> Prediction:
    mine = latest(roles)
    others = experts.of(roles)
    alone, both, weight = experts.mixed(roles, mine, others, batch)
    shared = form.logits(roles.frozen, roles.shared, batch)
    logits = {'global': shared, 'local': alone, 'mixture': both}
    return Prediction(logits, {'own_weight': weight})

  def masks(plan: Plan):
    return plan.active, {'prompt': False, 'ticket': False}

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    """Once the pool is full: the mean prompt and the experts come down."""
    one = tree.nbytes(shapes.shared['prompt'])
    return float(one), float(one * (1 + experts.count))

  made = frozen_backbone.method(
    setting,
    form,
    'pfedmoap',
    begin,
    models,
    'mixture',
    lambda roles: {'prompt': latest(roles), 'gate': roles.personal['gate']},
    trained=trained,
    prepare=lambda start: experts.of(start.roles),
    masks=masks,
    server=_server(setting, choice.pool),
  )
  return made._replace(
    update=_with_ticket(made.update),
    traffic=traffic,
    passes=soft_prompts.with_text(form.passes, prompted, 2, once=experts.count),
    models=lambda roles: {
      'global': {'prompt': roles.shared['prompt']},
      'local': made.models(roles)['local'],
    },
  )


def _gate(key, width: int) -> Tree:
  """The four linear layers of the attention."""
  keys = jax.random.split(key, 4)
  return {
    name: {
      'kernel': jax.random.normal(k, (width, width)) * width**-0.5,
      'bias': jnp.zeros(width),
    }
    for name, k in zip('qkvo', keys, strict=True)
  }


def attended(gate: Tree, choice: Choice, x, classes, held):
  """x' MHA(x', classes', classes') [B, C], and the weight of the first expert
  [B], a mean over classes and heads.

  x: [B, P] of length 1. classes: [E, C, P]. held: which experts exist, bool
  [E].
  """
  step = x.shape[-1] // choice.width

  def small(y):
    return y[..., ::step][..., : choice.width]

  def heads(name, y):
    y = linear.apply(gate[name], small(y))
    return y.reshape(*y.shape[:-1], choice.heads, -1)

  q, k, v = heads('q', x), heads('k', classes), heads('v', classes)
  scores = choice.scale * jnp.einsum('bhd,echd->bche', q, k)
  weights = jax.nn.softmax(jnp.where(held, scores, -jnp.inf), axis=-1)
  found = jnp.einsum('bche,echd->bchd', weights, v)
  found = linear.apply(gate['o'], found.reshape(*found.shape[:2], -1))
  products = jnp.einsum('bd,bcd->bc', small(x), found)
  return products, jnp.mean(weights[..., 0], axis=(1, 2))


def _with_ticket(update: ClientUpdate) -> ClientUpdate:
  """Keeps what the prompt has become, and names it by the client's ticket."""

  def begin(start: Start):
    ticket = start.roles.personal['ticket']
    return {'model': update.begin(start), 'ticket': ticket}

  def step(carry, start: Start, batch: Batch, key):
    model, sums = update.step(carry['model'], start, batch, key)
    new = pool.draw(jax.random.fold_in(key, 1))
    old = carry['ticket']
    ticket = jnp.where(pool.is_nobody(old), new, old)
    return {'model': model, 'ticket': ticket}, sums

  def finish(carry, start: Start):
    message, personal = update.finish(carry['model'], start)
    ticket = carry['ticket']
    mine = {'prompt': message.update['prompt'], 'ticket': ticket}
    extras = {'owner': {'ticket': ticket}}
    return message._replace(extras=extras), personal | mine

  return ClientUpdate(begin, step, finish, update.sums)


def _server(setting: Setting, size: int) -> Server:
  """The weighted mean of prompts that stay apart, and the pool of them."""

  def merge(before, received: Received) -> Tree:
    del before
    share = lora_products.shares(received.cover['prompt'])
    return {'prompt': lora_products.mean(received.update['prompt'], share)}

  inner = averaged(Aggregator(as_trained, 'stack', merge), setting.outer)

  def init(key, roles: Roles) -> Tree:
    found = pool.empty(size, roles.shared['prompt'])
    return {'model': inner.init(key, roles), 'pool': found}

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    roles, model, measured = inner.step(
      roles, memory['model'], received, context
    )
    found = pool.renewed(
      memory['pool'],
      received.update['prompt'],
      received.extras['owner']['ticket'],
      received.cover['prompt'] > 0,
    )
    return roles, {'model': model, 'pool': found}, measured

  return inner._replace(
    init=init, step=step, broadcast=lambda memory: memory['pool']
  )
