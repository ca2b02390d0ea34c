"""Stage 2 of FedMS whose gate learns from rows that the local expert has not
trained on. All of it is ours, and no part of the paper's abstract.

A local expert is right on rows that it has fitted, so a gate that learns from
these learns that the local expert is always right. Here the local expert trains
by its own loss alone, without the frozen towers; when it is done, both experts
are frozen for the round, their outputs on fresh rows are computed once, and the
gate is fitted to them. That is done in each round: experts and gate alternate.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, mixture, profiles
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.mixture import APART, GATES, Experts, Fit, Personal
from fedms_jax.core import client, descent, tree
from fedms_jax.core.activation import Stack
from fedms_jax.core.contract import ClientUpdate, Start
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Tree
from fedms_jax.models.tasks import weighted_mean

PROFILE = 'gate_profile'


def passes(choice: Personal) -> Passes:
  """What stage 2 computes, for the ledger."""
  read = choice.gate.kind != 'fixed' and 'feature' in choice.gate.inputs
  frozen = 1 + (read or choice.likeness)
  if not choice.fresh:
    return Passes(trained=1 + (choice.tower == 'lora'), frozen=frozen)
  return Passes(
    trained=1 + (choice.rows == 'crossfit'),
    frozen=int(choice.likeness),
    ahead=frozen - int(choice.likeness),
    fresh=frozen + 1,
  )


def without(masks: Callable, choice: Personal, *names: str) -> Callable:
  """The masks by key, where keys of these names do not train."""
  if not choice.fresh and not choice.likeness:
    return masks
  stacked = ('blocks', f'{APART}blocks', 'gate_blocks')

  def narrowed(plan: Plan):
    return tuple(
      {key: blocks for key in stacked} | dict.fromkeys(names, False)
      for blocks in masks(plan)
    )

  return narrowed


def update(
  setting: Setting, choice: Personal, experts: Experts, masks: Callable
) -> ClientUpdate:
  """Local training of the local expert, then of the gate."""
  narrowed = without(masks, choice, *GATES, PROFILE)
  plain = client.sgd(_own_loss(setting, choice), setting.optimizer, narrowed)
  inner = profiled(setting, choice, plain)

  def finish(carry, start: Start):
    message, personal = inner.finish(carry, start)
    shared = message.update
    whole = tree.widen(start.roles.shared, shared, masks(start.plan)[0])
    roles = Roles(start.roles.frozen, whole, personal)
    found = {k: v for k, v in mixture.gates(roles).items() if k in GATES}
    if start.fresh is not None:
      rows = start.fresh, start.plan
      found = _fitted_gate(setting, choice, experts, roles, found, *rows)
    if choice.scope == 'local':
      return message, personal | found
    return message._replace(update=shared | found), personal

  return inner._replace(finish=finish)


def _own_loss(setting: Setting, choice: Personal) -> Callable:
  """The loss of the local expert by itself, and of its second, if any."""
  backbone, task = setting.backbone, setting.task

  def seen(roles: Roles, batch: Batch, plan: Plan):
    x = mixture.local_features(setting, choice, roles, batch, plan)
    base, head = roles.frozen['base'], roles.personal['head']
    local = adapted.logits(backbone, base, head, x)
    loss = task.loss(local, batch)
    return loss, adapted.sums(task, local, loss, batch)

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    if choice.rows == 'crossfit':
      (values, weights), sums = _of_both(
        lambda now: seen(now, batch, start.plan), roles
      )
      kept = weights[1] * ~batch['held'] if 'held' in batch else weights[1]
      total = weighted_mean(values[0], weights[0])
      total += weighted_mean(values[1], kept)
      return total, jax.tree.map(lambda x: x[0], sums)
    (values, weights), sums = seen(roles, batch, start.plan)
    if choice.rows == 'holdout' and 'held' in batch:
      weights = weights * ~batch['held']
    return weighted_mean(values, weights), sums

  return objective


def _of_both(function: Callable, roles: Roles):
  """What a function makes of roles with the local expert and with its second
  in its place, stacked: both are one program, and not one beside the other."""
  first, second = (
    {name: roles.personal[f'{key}{name}'] for name in ('blocks', 'head')}
    for key in ('', APART)
  )
  active = first['blocks'].active
  arrays = [
    (x['blocks'].full, x['blocks'].part, x['head']) for x in (first, second)
  ]
  stacked = jax.tree.map(lambda *pair: jnp.stack(pair), *arrays)

  def of(full, part, head):
    own = {'blocks': Stack(full, part, active), 'head': head}
    return function(roles._replace(personal=roles.personal | own))

  return jax.vmap(of)(*stacked)


def _fitted_gate(
  setting: Setting,
  choice: Personal,
  experts: Experts,
  roles: Roles,
  found: Tree,
  rows: Batch,
  plan: Plan,
) -> Tree:
  """The gate, fitted to the outputs of both experts on the fresh rows."""
  whole = adapted.at_rest(roles, setting.backbone.blocks)
  apart = choice.rows == 'crossfit'
  seen = experts.see(whole, rows, plan, detach=True, apart=apart)
  role = 'personal' if choice.scope == 'local' else 'shared'

  def loss(gates: Tree):
    now = whole._replace(**{role: getattr(whole, role) | gates})
    mixed = experts.weigh(now, seen)[1]
    values, weights = setting.task.loss(mixed, rows)
    return jnp.sum(values * weights)

  return fitted(loss, found, choice.fit)


def fitted(loss: Callable, gates: Tree, fit: Fit) -> Tree:
  """What of a gate lowers a loss, summed over rows, plus pull / 2 times the
  squared distance from where the gate began.

  The sum lets many rows say more than few; the pull is what one row's loss
  weighs against, and keeps a few sure rows from moving log-odds without end.
  """

  def held(params: Tree, number):
    del number
    away = tree.squared_norm(tree.subtract(params, gates))
    return loss(params) + fit.pull / 2 * away

  optimizer = optax.multi_transform(
    {'network': optax.adam(fit.rate), 'odds': optax.adam(fit.odds_rate)},
    jax.tree_util.tree_map_with_path(_part, gates),
  )
  return descent.descended(held, gates, optimizer, jnp.arange(fit.steps))[0]


def _part(path, _) -> str:
  """The part of a gate that a leaf is of: its network, or what is added to the
  log-odds themselves, a constant and the weights of a few measures."""
  keys = [entry.key for entry in path]
  return 'odds' if 'gate_odds' in keys or 'measures' in keys else 'network'


def profiled(
  setting: Setting, choice: Personal, update: ClientUpdate
) -> ClientUpdate:
  """Also makes the client's profile, the mean of its rows' frozen features,
  of norm 1, and sends it to be averaged; for a gate that reads likeness."""
  if not choice.likeness:
    return update

  def send(message, personal, profile):
    mean = {PROFILE: profile}
    message = message._replace(update=message.update | mean)
    return message, personal | mean

  return profiles.profiled(setting, update, send)
