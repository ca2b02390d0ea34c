"""One model of which a part stays with its client: local only, FedPer, FedRep.

What is not shared is personal: LoRA and head (local only), or the head
(FedPer, FedRep).
"""

from __future__ import annotations

import jax

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import tree
from fedms_jax.core.types import (
  Algorithm,
  Batch,
  ClientUpdate,
  Plan,
  Roles,
  Tree,
)


def local_only(setting: Setting, *, adapter: Tree | None = None) -> Algorithm:
  """Every client trains LoRA and head alone: nothing is sent or received."""
  return _split(setting, 'local', (), adapter)


def fedper(setting: Setting, *, adapter: Tree | None = None) -> Algorithm:
  """FedPer (arXiv 1912.00818): LoRA is shared, the head is personal, and both
  train at once."""
  return _split(setting, 'fedper', ('blocks',), adapter)


def fedrep(
  setting: Setting, head_share: float, *, adapter: Tree | None = None
) -> Algorithm:
  """FedRep (arXiv 2102.07078): FedPer, but the head trains first and the
  shared LoRA after it, while the other rests.

  head_share: of the local steps, in (0, 1).
  """
  plain = _split(setting, 'fedrep', ('blocks',), adapter)

  def head_masks(plan: Plan):
    return {'blocks': False}, plan.active

  def lora_masks(plan: Plan):
    return plan.active, {'head': False}

  def part(masks) -> ClientUpdate:
    return adapted.one_model(
      setting, 'fedrep', plain.begin, _whole, masks=masks
    ).update

  update = _in_turn(part(head_masks), part(lora_masks), head_share)
  return plain._replace(update=update)


def _split(
  setting: Setting,
  name: str,
  shared: tuple[str, ...],
  adapter: Tree | None,
) -> Algorithm:
  """Local training of one model whose keys `shared` are averaged."""

  def begin(key, before: Roles) -> Roles:
    whole = adapted.fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': whole}
    ours = {key: whole[key] for key in shared}
    own = {key: whole[key] for key in whole if key not in shared}
    return Roles(frozen, ours, own)

  if 'blocks' in shared:
    setting = adapted.measured(setting)
  return adapted.one_model(setting, name, begin, _whole, served='local')


def _whole(roles: Roles) -> Tree:
  return roles.shared | roles.personal


def _in_turn(
  head: ClientUpdate, body: ClientUpdate, share: float
) -> ClientUpdate:
  """`head` trains personal keys in the first `share` of the steps, `body`
  shared ones in the others, each on what the other has made so far."""

  def begin(roles: Roles, plan: Plan):
    return {'head': head.begin(roles, plan), 'body': body.begin(roles, plan)}

  def present(carry, roles: Roles, plan: Plan) -> Roles:
    shared, _ = body.finish(carry['body'], roles, plan)
    _, personal = head.finish(carry['head'], roles, plan)
    shared = tree.widen(roles.shared, shared, plan.active)
    return roles._replace(shared=shared, personal=personal)

  def step(carry, roles: Roles, batch: Batch, key, plan: Plan):
    now = present(carry, roles, plan)

    def turn(name: str, update: ClientUpdate):
      def taken():
        new, sums = update.step(carry[name], now, batch, key, plan)
        return carry | {name: new}, sums

      return taken

    first = batch['progress'] < share
    return jax.lax.cond(first, turn('head', head), turn('body', body))

  def finish(carry, roles: Roles, plan: Plan):
    shared, _ = body.finish(carry['body'], roles, plan)
    _, personal = head.finish(carry['head'], roles, plan)
    return shared, personal

  return ClientUpdate(begin, step, finish, head.sums)
