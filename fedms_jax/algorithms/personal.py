"""One model of which a part stays with its client: local only, FedPer, FedRep.

What is not shared is personal: LoRA and head (local only), or the head
(FedPer, FedRep).
"""

from __future__ import annotations

import jax

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, tree
from fedms_jax.core.contract import Algorithm, ClientUpdate, Start
from fedms_jax.core.types import Batch, Plan, Roles, Tree


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
      setting,
      'fedrep',
      plain.begin,
      _whole,
      masks=masks,
      server=plain.server,
    ).update

  update = in_turn(part(head_masks), part(lora_masks), head_share)
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

  return adapted.one_model(
    setting,
    name,
    begin,
    _whole,
    served='local',
    server=adapted.server(setting, residual='blocks' in shared),
  )


def _whole(roles: Roles) -> Tree:
  return roles.shared | roles.personal


def in_turn(
  head: ClientUpdate, body: ClientUpdate, share: float
) -> ClientUpdate:
  """`head` trains personal keys in the first `share` of the steps, `body`
  shared ones in the others, each on what the other has made so far."""

  def begin(start: Start):
    return {'head': head.begin(start), 'body': body.begin(start)}

  def step(carry, start: Start, batch: Batch, key):
    message, personal = finish(carry, start)
    shared = tree.widen(start.roles.shared, message.update, start.plan.active)
    now = start.at(start.roles._replace(shared=shared, personal=personal))

    def turn(name: str, update: ClientUpdate):
      def taken():
        new, sums = update.step(carry[name], now, batch, key)
        return carry | {name: new}, sums

      return taken

    first = client.progress(start.moment) < share
    return jax.lax.cond(first, turn('head', head), turn('body', body))

  def finish(carry, start: Start):
    message, _ = body.finish(carry['body'], start)
    _, personal = head.finish(carry['head'], start)
    return message, personal

  return ClientUpdate(begin, step, finish, head.sums)
