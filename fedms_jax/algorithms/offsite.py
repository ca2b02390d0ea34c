"""FedOT: federated offsite tuning (offsite-tuning, arXiv 2302.04870; federated
in FederatedScope-LLM, arXiv 2309.00363).

Clients never see the whole model. They get its first and last blocks, where the
adapter is, and an emulator of what lies between: some of these blocks, evenly
spread, frozen. They train the adapter before and behind the emulator; the
server averages it, and plugs it into the whole model, which is what it serves.

Ours: the adapter is LoRA on these blocks and the head (the paper trains the
blocks themselves), and the emulator is what is left of the blocks, without the
distillation that the paper has as an option. In the ledger a client computes
the emulator; its memory is stated with all of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedms_jax.algorithms import adapted, fedms
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import activation, client, joined
from fedms_jax.core.columns import inputs
from fedms_jax.core.contract import Algorithm, Prediction, Start
from fedms_jax.core.types import (
  ActiveSet,
  Backbone,
  Batch,
  Plan,
  Roles,
  Span,
  Tree,
)
from fedms_jax.models.tasks import weighted_mean


class Choice(NamedTuple):
  """ends: blocks at either end that have the adapter. kept: share of the others
  that the emulator has, in [0, 1]."""

  ends: int
  kept: float

  def adapter(self, blocks: int) -> ActiveSet:
    """Which of the blocks have the adapter."""
    return tuple(
      b < self.ends or b >= blocks - self.ends for b in range(blocks)
    )

  def held(self, blocks: int) -> ActiveSet:
    """Which of the blocks a client has: the emulator's are evenly spread over
    the middle."""
    middle = blocks - 2 * self.ends
    count = round(self.kept * middle)
    # The middles of `count` equal pieces.
    places = (np.arange(count) + 0.5) * middle / max(count, 1)
    chosen = {self.ends + int(place) for place in places}
    ends = self.adapter(blocks)
    return tuple(ends[b] or b in chosen for b in range(blocks))


def fedot(
  setting: Setting, choice: Choice, *, adapter: Tree | None = None
) -> Algorithm:
  """FedOT on LoRA and head. Predicts with the whole model ('global'), which
  users get, and as clients see it ('emulator'). adapter: see `adapted.fresh`.

  Raises:
    ValueError: the ends are more than the blocks.
  """
  backbone, task = setting.backbone, setting.task
  blocks = backbone.blocks
  if 2 * choice.ends > blocks:
    raise ValueError(
      f'`Choice.ends`={choice.ends} at either end are more than the {blocks} '
      f'blocks of the model; allowed: 1 to {blocks // 2}. Lower it.'
    )
  ends, held = choice.adapter(blocks), choice.held(blocks)
  plain = fedms.global_stage(setting, adapter=adapter)

  def masks(plan: Plan):
    mine = tuple(a and b for a, b in zip(plan.active, ends, strict=True))
    return mine, mine

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    base, lora = roles.frozen['base'], roles.frozen['start']['blocks']
    x = backbone.embed(base, inputs(batch))
    below = activation.prefix(base['blocks'], lora, plan.boundary)
    mask = adapted.mask(backbone, batch)
    short = backbone.run(emulated(below, held), x, mask)
    return plain.columns(roles, batch, plan) | {'emulator_prefix': short}

  def emulator(base: Tree, whole: Tree, batch: Batch, plan: Plan):
    """Logits as a client computes them."""
    spans = activation.spans([whole['blocks']], plan.boundary)
    spans = activation.over(base['blocks'], emulated(spans, held))
    mask = adapted.mask(backbone, batch)
    x = backbone.run(spans, batch['emulator_prefix'], mask)
    x = backbone.features(base, x, mask)
    return backbone.logits(base, whole['head'], x)

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    out = emulator(roles.frozen['base'], roles.shared, batch, start.plan)
    loss = task.loss(out, batch)
    return weighted_mean(*loss), adapted.sums(task, out, loss, batch)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    found = plain.predict(roles, batch, plan).logits
    whole = joined.rest(roles.shared, blocks)
    seen = emulator(roles.frozen['base'], whole, batch, plan)
    return Prediction(found | {'emulator': seen}, {})

  return plain._replace(
    name='fedot',
    backbone=_shorter(backbone, held),
    columns=columns,
    deeper=None,
    derived=('prefix', 'emulator_prefix'),
    update=client.sgd(objective, setting.optimizer, masks),
    predict=predict,
    masks=masks,
  )


def emulated(spans: Sequence[Span], held: ActiveSet) -> tuple[Span, ...]:
  """Spans without the blocks that are not held."""
  found = []
  for span in spans:
    edges = [
      b
      for b in range(span.start, span.stop + 1)
      if _at(held, b, span) != _at(held, b - 1, span)
    ]
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
      first, last = start - span.start, stop - span.start
      params = activation.cut(span.params, first, last)
      found.append(Span(start, stop, params))
  return tuple(found)


def _at(held: ActiveSet, block: int, span: Span) -> bool:
  return span.start <= block < span.stop and held[block]


def _shorter(backbone: Backbone, held: ActiveSet) -> Backbone:
  """The backbone in the ledger's terms: all of its blocks cost what those do
  that are held."""
  cost, share = backbone.cost.whole(), sum(held) / len(held)
  return backbone._replace(
    cost=cost._replace(
      block=cost.block * share, activation=cost.activation * share
    )
  )
