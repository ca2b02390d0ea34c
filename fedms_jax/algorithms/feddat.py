"""FedDAT (arXiv 2308.12305): a shared and an own adapter that teach each other.

Behind layers of each block there are bottleneck adapters, see
`adapters/bottleneck.py`: a shared one, an own one of each client, and, while a
client trains, a frozen copy of what the server sent. The teacher adds in each
layer half of what the own adapter gives and half of what the frozen copy does.
On a batch

  shared adapter: step on (1 - w) CE(shared) + w KL(teacher || shared),
  own adapter:    step on (1 - w) CE(teacher) + w KL(shared || teacher),

the second with the shared adapter that has just moved, and gradients through
the second argument of KL alone; w = 1/2 and temperature 1 in the paper. The
shared adapter is averaged by rows, heads are personal. Ours: the head moves in
the second step alone, and where the adapters are.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from fedms_jax.adapters import bottleneck
from fedms_jax.algorithms import adapted, distillation, two_experts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, tree
from fedms_jax.core.activation import Stack, at_rest
from fedms_jax.core.contract import Algorithm, ClientUpdate, Prediction, Start
from fedms_jax.core.types import Backbone, Batch, Passes, Plan, Roles, Tree
from fedms_jax.models.tasks import weighted_mean

_HALF = 0.5  # of the teacher, on the own adapter


class Models(NamedTuple):
  """The models of a client. backbone: with the bottlenecks of `spec`."""

  setting: Setting
  backbone: Backbone
  spec: bottleneck.Bottleneck

  def logits(self, frozen: Tree, stack: Stack, head: Tree, batch, plan: Plan):
    """Logits of the base with the adapters of a stack."""
    base, x = frozen['base'], batch['prefix']
    x = adapted.features(self.backbone, base, [stack], x, batch, plan.boundary)
    return self.backbone.logits(base, head, x)

  def teacher(self, own: Stack, sent: Tree) -> Stack:
    """The mixture of the own adapter and of what the server sent."""
    sent = at_rest(sent, self.backbone.blocks)
    joined = functools.partial(bottleneck.mixed, _HALF)
    return two_experts.combined(joined, own, sent)

  def learned(self, weight: float, student, teacher, batch: Batch):
    """(loss, metrics) of a student; its cross-entropy is what is logged."""
    task = self.setting.task
    loss = task.loss(student, batch)
    tokens = adapted.mask(self.backbone, batch)
    counted = distillation.weights(student, batch, tokens)
    pull = distillation.divergence(teacher, student, counted)
    total = (1 - weight) * weighted_mean(*loss) + weight * pull
    return total, adapted.sums(task, student, loss, batch)


def feddat(
  setting: Setting, spec: bottleneck.Bottleneck, weight: float
) -> Algorithm:
  """FedDAT with the bottlenecks of `spec`. weight: w, in [0, 1].

  Predicts 'global', the shared adapter with the client's head, and 'local', the
  teacher. Exported are bottlenecks, of 'local' both in one of twice the width.
  """
  backbone = setting.model.adapted(spec)
  models = Models(setting, backbone, spec)

  def begin(key, before: Roles) -> Roles:
    base, head = before.frozen['base'], before.frozen['head']
    blocks = spec.init(key, base['blocks'])
    frozen = {'base': base, 'start': {'blocks': blocks, 'head': head}}
    return Roles(frozen, {'blocks': blocks}, {'blocks': blocks, 'head': head})

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    base, blocks = roles.frozen['base'], roles.frozen['start']['blocks']
    boundary = plan.boundary
    return {'prefix': adapted.prefix(backbone, base, blocks, batch, boundary)}

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    start, own = roles.frozen['start'], roles.personal
    whole, head = adapted.at_rest(roles, backbone.blocks), own['head']
    mine = models.teacher(whole.personal['blocks'], roles.shared['blocks'])
    first = at_rest(start['blocks'], backbone.blocks)
    found = {
      'pretrained': (first, start['head']),
      'global': (whole.shared['blocks'], head),
      'local': (mine, head),
    }
    return Prediction(
      {
        name: models.logits(roles.frozen, stack, head, batch, plan)
        for name, (stack, head) in found.items()
      },
      {},
    )

  def exported(roles: Roles) -> dict[str, Tree]:
    own, shared = roles.personal, roles.shared['blocks']
    mine = bottleneck.mixed(_HALF, own['blocks'], shared)
    return {
      'global': {'bottleneck': shared},
      'local': {'bottleneck': mine, 'head': own['head']},
    }

  return Algorithm(
    name='feddat',
    backbone=backbone,
    task=setting.task,
    begin=begin,
    columns=columns,
    derived=('prefix',),
    update=_mutual(models, weight),
    predict=predict,
    server=adapted.server(setting),
    masks=client.everywhere,
    served='local',
    # Two with a backward pass, and two without, which cost as much as one.
    passes=Passes(trained=3, frozen=0),
    models=exported,
  )


def _mutual(models: Models, weight: float) -> ClientUpdate:
  """On each batch a step of the shared adapter, then one of the own one."""
  blocks, optimizer = models.backbone.blocks, models.setting.optimizer

  def shared_loss(roles: Roles, batch: Batch, key, start: Start):
    del key
    own, plan = roles.personal, start.plan
    mixed = models.teacher(own['blocks'], start.roles.shared['blocks'])
    student, teacher = (
      models.logits(roles.frozen, stack, own['head'], batch, plan)
      for stack in (roles.shared['blocks'], mixed)
    )
    return models.learned(weight, student, teacher, batch)

  def own_loss(roles: Roles, batch: Batch, key, start: Start):
    del key
    own, plan = roles.personal, start.plan
    mixed = models.teacher(own['blocks'], start.roles.shared['blocks'])
    moved = at_rest(roles.frozen['moved'], blocks)
    student, teacher = (
      models.logits(roles.frozen, stack, own['head'], batch, plan)
      for stack in (mixed, moved)
    )
    return models.learned(weight, student, teacher, batch)

  shared = client.sgd(shared_loss, optimizer, _masks(own=False))
  own = client.sgd(own_loss, optimizer, _masks(own=True))

  def begin(start: Start):
    return {'shared': shared.begin(start), 'own': own.begin(start)}

  def step(carry, start: Start, batch: Batch, key):
    roles, active = start.roles, start.plan.active
    personal = own.finish(carry['own'], start)[1]
    now = start.at(roles._replace(personal=personal))
    first, _ = shared.step(carry['shared'], now, batch, key)
    update = shared.finish(first, start)[0].update
    moved = tree.widen(roles.shared, update, active)['blocks']
    frozen = roles.frozen | {'moved': moved}
    now = start.at(roles._replace(frozen=frozen))
    second, sums = own.step(carry['own'], now, batch, key)
    return {'shared': first, 'own': second}, sums

  def finish(carry, start: Start):
    message, _ = shared.finish(carry['shared'], start)
    return message, own.finish(carry['own'], start)[1]

  return ClientUpdate(begin, step, finish, own.sums)


def _masks(own: bool):
  """What trains in the step of the own adapter, or of the shared one."""

  def masks(plan: Plan):
    if own:
      return {'blocks': False}, plan.active
    return plan.active, {'blocks': False, 'head': False}

  return masks
