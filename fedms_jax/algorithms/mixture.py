"""The mixture of FedMS's stage 2: a global expert, a local one, and the gate.

What the paper's abstract leaves open is our declared reconstruction; each such
choice is a field of `Personal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, token_logits
from fedms_jax.core.types import Backbone, Batch, Plan, Roles, Tree
from fedms_jax.models import gate


class Fit(NamedTuple):
  """How a gate is fitted to rows that the local expert has not trained on: so
  many steps of Adam on all of them, at a rate of the gate's network and one of
  its log-odds and of what measures add to them (`gate.MEASURES`), held by
  `pull` to where the gate began."""

  steps: int = 50
  rate: float = 1e-3
  odds_rate: float = 0.05
  pull: float = 10.0


LOSSES = ('mixture', 'own', 'both')


class Personal(NamedTuple):
  """The choices of stage 2.

  local_start: 'global' (copy of the global expert) or 'zero' (as the global
  expert started). local_loss: what trains the local expert: 'mixture', 'own'
  or 'both'. tower: gate features of the frozen base, or of a tower with LoRA
  of its own. scope: the gate, with its tower, is 'shared' (averaged), or
  'local' (of each client). upload: share of the blocks, from the input side,
  whose local LoRA is averaged too. rows: what the gate learns from: the rows
  that the local expert trains on ('train'), or `Start.fresh`, which are rows
  that it never trains on ('validation'), a share of the training rows that is
  kept from it ('holdout'), or from a second local expert alone, which stands
  for the first while the gate learns ('crossfit'). fit: where rows are fresh.
  """

  gate: gate.GateSpec
  local_start: str = 'global'
  local_loss: str = 'both'
  tower: str = 'frozen'
  scope: str = 'shared'
  upload: float = 0.0
  rows: str = 'train'
  fit: Fit = Fit()

  @property
  def fresh(self) -> bool:
    """Whether the gate learns from other rows than the local expert."""
    return self.rows != 'train'

  @property
  def likeness(self) -> bool:
    return 'likeness' in self.gate.inputs


def check(choice: Personal) -> None:
  """Raises `ValueError` for choices that do not go together."""
  if choice.upload and choice.tower == 'lora':
    raise ValueError(
      f'`Personal.upload`={choice.upload:g} does not go with '
      '`Personal.tower`=lora; allowed: one of them. Set the other to its '
      'default.'
    )
  if choice.local_loss not in LOSSES:
    raise ValueError(
      f'`Personal.local_loss`={choice.local_loss} is not allowed; allowed: '
      f'{", ".join(LOSSES)}.'
    )
  if not choice.fresh:
    return
  rows = f'`Personal.rows`={choice.rows} fits the gate on its own'
  if choice.local_loss != 'own':
    raise ValueError(
      f'{rows}, which `Personal.local_loss`={choice.local_loss} does not '
      'leave it to; allowed: own. Set `Personal.local_loss`=own.'
    )
  if choice.tower != 'frozen':
    raise ValueError(
      f'{rows} to what frozen parts give, and `Personal.tower`='
      f'{choice.tower} trains; allowed: frozen. Leave `Personal.tower` out.'
    )
  if choice.gate.kind == 'fixed':
    raise ValueError(
      f'{rows}, and a gate of kind fixed has nothing to fit; allowed: train. '
      'Leave `Personal.rows` out.'
    )


class Seen(NamedTuple):
  """What a mixture is made of: local logits [B, C], outputs [B, C or D] of the
  global and the local expert, what the gate reads, the local expert's head."""

  local: Any
  pair: Any
  features: Any
  mask: Any
  measures: Any = None
  head: Any = None


APART = 'apart_'  # of keys of the second local expert
GATES = ('gate', 'gate_odds')  # keys of what is learned of the gate


def uploaded(blocks: int, share: float) -> int:
  """How many of the lowest blocks `Personal.upload` stands for."""
  return math.ceil(share * blocks)


def gates(roles: Roles) -> Tree:
  """The gate and its tower, in whichever role they are."""
  there = any(key in roles.shared for key in GATES)
  return roles.shared if there else roles.personal


def global_logits(backbone: Backbone, roles: Roles, features):
  head = roles.frozen['global']['head']
  return adapted.logits(backbone, roles.frozen['base'], head, features)


def looked_up(backbone: Backbone, roles: Roles, batch: Batch):
  """The global expert's logits, from the column that there is."""
  if 'global_logits' in batch:
    return batch['global_logits']
  return global_logits(backbone, roles, batch['global_features'])


def local_expert(backbone: Backbone, choice: Personal, roles: Roles) -> Tree:
  """The local expert, with the server's blocks where those are averaged."""
  own, limit = roles.personal, uploaded(backbone.blocks, choice.upload)
  blocks = own['blocks']
  if limit:
    blocks = _stacked(roles.shared['blocks'], blocks, limit)
  return {'blocks': blocks, 'head': own['head']}


def upload_masks(blocks: int, upload: float) -> Callable:
  """The lowest `upload` share of the blocks is the server's, if active."""
  if not upload:
    return client.everywhere
  limit = uploaded(blocks, upload)

  def masks(plan):
    blocks = tuple(enumerate(plan.active))
    shared = tuple(a and b < limit for b, a in blocks)
    personal = tuple(a and b >= limit for b, a in blocks)
    return shared, personal

  return masks


def _stacked(below: Tree, above: Tree, limit: int) -> Tree:
  """Stacked LoRA that is another one from block `limit` on."""
  return jax.tree.map(
    lambda x, y: jnp.concatenate([x[:limit], y[limit:]]), below, above
  )


def origin(choice: Personal) -> str:
  """Which frozen expert the local one starts as a copy of."""
  return 'global' if choice.local_start == 'global' else 'start'


class Experts(NamedTuple):
  """Both experts and the gate, of roles as `client.join` gives them.

  see: (roles, batch, plan, detach, apart, shared) -> `Seen`. detach: no
  gradient to the local expert. apart: its second stands for it. shared: the
  global expert's logits, where they are there already. weigh: (roles, seen) ->
  (weights [B, E, ...], mixed logits [B, C]).
  """

  see: Callable[..., Seen]
  weigh: Callable[[Roles, Seen], tuple[Any, Any]]


def local_features(
  setting: Setting, choice: Personal, roles: Roles, batch, plan, key: str = ''
):
  """Features of the local expert, or of that whose keys begin with `key`."""
  limit = uploaded(setting.backbone.blocks, choice.upload)
  stacks = [roles.personal[f'{key}blocks']]
  if limit:
    shared = roles.shared['blocks']
    full = _stacked(shared.full, stacks[0].full, limit)
    stacks = [shared, stacks[0]._replace(full=full)]
  return adapted.features(
    setting.backbone,
    roles.frozen['base'],
    stacks,
    batch['prefix'],
    batch,
    plan.boundary,
  )


def _gate_features(setting: Setting, choice: Personal, roles, batch, plan):
  """Frozen features, or those of the gate's own tower."""
  if choice.tower == 'frozen':
    return batch['base_features']
  return adapted.features(
    setting.backbone,
    roles.frozen['base'],
    [gates(roles)['gate_blocks']],
    batch['gate_prefix'],
    batch,
    plan.boundary,
  )


def _measures(setting: Setting, choice: Personal, roles: Roles, batch, pair):
  """What the gate reads beside features, [B, m]; None: nothing."""
  found = []
  if 'confidence' in choice.gate.inputs:
    both = jnp.stack(pair, axis=-2)
    found.append(gate.confidence(jax.lax.stop_gradient(both)))
  if choice.likeness:
    own, everyone = roles.personal['gate_profile'], roles.shared['gate_profile']
    x = adapted.directions(setting, batch)
    found.append(jax.lax.stop_gradient(gate.likeness(x, own, everyone)))
  return jnp.concatenate(found, axis=-1) if found else None


def _weights(spec: gate.GateSpec, roles: Roles, seen: Seen):
  """How the gate of these roles weighs what is seen, see `gate.weights`."""
  found = gates(roles)
  return gate.weights(
    spec,
    found.get('gate', {}),
    seen.features,
    seen.mask,
    measures=seen.measures,
    odds=found.get('gate_odds'),
  )


def experts(setting: Setting, choice: Personal) -> Experts:
  """What mixes the two experts."""
  backbone, spec = setting.backbone, choice.gate

  def mix(weights, *pair):
    return gate.mix(spec, weights, jnp.stack(pair, axis=-2))

  def see(
    roles: Roles,
    batch: Batch,
    plan: Plan,
    detach=False,
    apart=False,
    shared=None,
  ) -> Seen:
    key = APART if apart else ''
    base, head = roles.frozen['base'], roles.personal[f'{key}head']
    features = local_features(setting, choice, roles, batch, plan, key)
    local = adapted.logits(backbone, base, head, features)
    if detach:  # the mixture's loss trains nothing of the local expert
      head = jax.lax.stop_gradient(head)
    if spec.mix == 'features':
      pair = (batch['global_features'], features)
      pair = jax.lax.stop_gradient(pair) if detach else pair
    else:
      inner = token_logits.constant(local) if detach else local
      other = looked_up(backbone, roles, batch) if shared is None else shared
      pair = (other, inner)
    return Seen(
      local,
      pair,
      _gate_features(setting, choice, roles, batch, plan),
      adapted.mask(backbone, batch),
      _measures(setting, choice, roles, batch, pair),
      head,
    )

  def weigh(roles: Roles, seen: Seen):
    weights = _weights(spec, roles, seen)
    if spec.mix == 'features':
      x = mix(weights, *seen.pair)
      base = roles.frozen['base']
      return weights, adapted.logits(backbone, base, seen.head, x)
    by_token = _by_token(weights, seen.pair[0])
    return weights, token_logits.combined(mix, by_token, *seen.pair)

  return Experts(see, weigh)


def _by_token(weights, logits):
  """Weights that fit logits [B, T, C]: those of a sequence hold for each of its
  tokens."""
  return weights[:, None] if weights.ndim < len(logits.shape) + 1 else weights


def gate_stats(weights, mask) -> dict[str, Any]:
  """Weight of the global expert and entropy in nats, one per example: means
  over its tokens, mask [B, T], where they are weighed apart."""

  def per_example(x):
    if x.ndim == 1:
      return x
    held = jnp.ones(x.shape) if mask is None else mask.astype(x.dtype)
    return jnp.sum(x * held, -1) / jnp.maximum(jnp.sum(held, -1), 1.0)

  return {
    'gate_weight': per_example(jnp.mean(weights[..., gate.GLOBAL, :], -1)),
    'gate_entropy': per_example(gate.entropy(weights)),
  }
