"""Methods that treat the two factors of LoRA apart: FFA-LoRA, RoLoRA, FedSA.

Where all clients of a round hold the same A, or the same B, the mean of the
products is the product of the means: the residual is zero by construction.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.algorithms.adapted import (
  Setting,
  fresh,
  one_model,
  server,
  together,
)
from fedms_jax.core import activation
from fedms_jax.core.contract import Algorithm, Received, Server
from fedms_jax.core.types import Plan, Roles, Tree
from fedms_jax.server import measures


def ffa_lora(setting: Setting, *, adapter: Tree | None = None) -> Algorithm:
  """FFA-LoRA (arXiv 2403.12313): A is random and frozen; B is averaged, and
  the head. A costs no bytes: all draw it from the seed."""
  blocks = setting.backbone.blocks

  def begin(key, before: Roles) -> Roles:
    whole = fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': whole}
    b = lora.leaves(whole['blocks'], 'b')
    return Roles(frozen, {'b_blocks': b, 'head': whole['head']}, {})

  def model(roles: Roles) -> Tree:
    a = lora.leaves(roles.frozen['start']['blocks'], 'a')
    stack = together(activation.at_rest(a, blocks), roles.shared['b_blocks'])
    return {'blocks': stack, 'head': roles.shared['head']}

  return one_model(setting, 'ffa_lora', begin, model, server=_exact(setting))


def rolora(setting: Setting, *, adapter: Tree | None = None) -> Algorithm:
  """RoLoRA (arXiv 2502.01755): in turn, a round trains and averages B with A
  frozen, and the next one A with B frozen; the head trains in all of them.

  The first round trains B: at its start B is 0, and A would get no gradient.
  """

  def begin(key, before: Roles) -> Roles:
    whole = fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': whole}
    return Roles(frozen, _halves(whole), {})

  def model(roles: Roles) -> Tree:
    s = roles.shared
    stack = together(s['a_blocks'], s['b_blocks'])
    return {'blocks': stack, 'head': s['head']}

  def masks(plan: Plan):
    other = {'a': 'b_blocks', 'b': 'a_blocks'}.get(plan.variant)
    shared = {'a_blocks': plan.active, 'b_blocks': plan.active}
    return shared | ({other: False} if other else {}), plan.active

  def variant(number: int, client: int) -> str:
    del client
    return 'ab'[number % 2 == 0]

  method = one_model(
    setting, 'rolora', begin, model, masks=masks, server=_exact(setting)
  )
  return method._replace(variant=variant)


def fedsa_lora(setting: Setting, *, adapter: Tree | None = None) -> Algorithm:
  """FedSA-LoRA (arXiv 2410.01463): A is averaged; B and the head stay with
  their client. There is no global model, hence no residual of one."""

  def begin(key, before: Roles) -> Roles:
    whole = fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': whole}
    halves = _halves(whole)
    return Roles(frozen, {'a_blocks': halves.pop('a_blocks')}, halves)

  def model(roles: Roles) -> Tree:
    own = roles.personal
    stack = together(roles.shared['a_blocks'], own['b_blocks'])
    return {'blocks': stack, 'head': own['head']}

  return one_model(
    setting,
    'fedsa_lora',
    begin,
    model,
    served='local',
    server=server(setting),
  )


def _halves(whole: Tree) -> Tree:
  """A model with its factors under keys of their own."""
  halves = {f'{x}_blocks': lora.leaves(whole['blocks'], x) for x in 'ab'}
  return halves | {'head': whole['head']}


def _exact(setting: Setting) -> Server:
  """Says in the metrics that these means miss nothing."""
  if setting.aggregator.reduction != 'sum':
    return server(setting)

  def nothing(before: Tree, received: Received):
    del before, received
    return {measures.RESIDUAL: jnp.float32(0)}

  measured = setting.aggregator._replace(measure=nothing)
  return server(setting._replace(aggregator=measured))
