"""Methods for networks of a user's own, of which nothing is known but paths.

Two keys train, 'body' and 'head', each shared or personal: leaves by path, or
of a body with LoRA its {'a', 'b'}. What never trains is frozen['base']. Rules
of the methods are those of their papers; that they apply to all weights, or to
LoRA and head, as the network says, is ours.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedms_jax.adapters import lora
from fedms_jax.algorithms import adapted, general, personal, two_experts
from fedms_jax.algorithms import scaffold as control
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, tree
from fedms_jax.core.contract import Algorithm, ClientUpdate, Prediction, Start
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Tree
from fedms_jax.models.network import Form

BOTH = ('body', 'head')


def fedavg(setting: Setting, form: Form) -> Algorithm:
  """FedAvg (arXiv 1602.05629); with a server optimizer FedOpt (arXiv
  2003.00295)."""
  return _model(setting, form, 'fedavg', BOTH)


def fedprox(setting: Setting, form: Form, mu: float) -> Algorithm:
  """FedProx (arXiv 1812.06127): mu / 2 ||w - w_t||^2 beside the loss."""
  optimizer = optax.chain(general.proximal(mu), setting.optimizer)
  changed = setting._replace(optimizer=optimizer)
  return _model(changed, form, 'fedprox', BOTH)


def scaffold(setting: Setting, form: Form, population: int) -> Algorithm:
  """SCAFFOLD (arXiv 1910.06378), see `algorithms/scaffold.py`. population: N,
  clients that may be sampled."""
  optimizer = control.corrected(setting.optimizer)
  plain = _model(setting._replace(optimizer=optimizer), form, 'scaffold', BOTH)
  return control.controlled(plain, adapted.server(setting), population)


def local(setting: Setting, form: Form) -> Algorithm:
  """Every client trains alone: nothing is sent or received."""
  return _model(setting, form, 'local', ())


def fedper(setting: Setting, form: Form) -> Algorithm:
  """FedPer (arXiv 1912.00818): the body is shared, the head personal, and both
  train at once."""
  return _model(setting, form, 'fedper', ('body',))


def fedrep(setting: Setting, form: Form, head_share: float) -> Algorithm:
  """FedRep (arXiv 2102.07078): FedPer, but the head trains first, in the share
  `head_share` of the local steps, and the body after it."""

  def part(masks) -> ClientUpdate:
    return _model(setting, form, 'fedrep', ('body',), masks).update

  head = part(lambda plan: ({'body': False}, plan.active))
  body = part(lambda plan: (plan.active, {'head': False}))
  update = personal.in_turn(head, body, head_share)
  return _model(setting, form, 'fedrep', ('body',))._replace(update=update)


def ditto(setting: Setting, form: Form, pull: float) -> Algorithm:
  """Ditto (arXiv 2012.04221): an own model v beside the shared w, which follows
  the gradient of its loss plus pull * (v - w), where w is what the server sent.
  Both train at once, on the same batches."""
  plain = _model(setting, form, 'ditto', BOTH)

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    return roles._replace(personal=roles.shared)

  def objective(roles: Roles, batch: Batch, key, start: Start):
    own, shared = (
      _logits(setting, form, roles.frozen, whole, batch, key)
      for whole in (roles.personal, roles.shared)
    )
    away = two_experts.squared_distance(roles.personal, start.roles.shared)
    total, sums = adapted.learned(setting.task, batch, own, shared)
    return total + pull / 2 * away, sums

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    found = {'global': roles.shared, 'local': roles.personal}
    return Prediction(
      {
        name: _logits(setting, form, roles.frozen, whole, batch)
        for name, whole in found.items()
      },
      {},
    )

  def models(roles: Roles) -> dict[str, Tree]:
    found = {'global': roles.shared, 'local': roles.personal}
    return {
      k: _merged(setting, form, roles.frozen, x) for k, x in found.items()
    }

  return plain._replace(
    begin=begin,
    update=client.sgd(
      objective,
      setting.optimizer,
      client.everywhere,
      gradient=setting.gradient,
    ),
    predict=predict,
    served='local',
    passes=plain.passes._replace(trained=2),
    models=models,
  )


def _model(
  setting: Setting,
  form: Form,
  name: str,
  shared: tuple[str, ...],
  masks: Callable = client.everywhere,
) -> Algorithm:
  """Local training of one network whose keys `shared` are averaged."""
  served = 'global' if shared == BOTH else 'local'

  def begin(key, before: Roles) -> Roles:
    fixed, whole = _parts(setting, form, key, before.frozen['base'])
    own = {k: whole.pop(k) for k in BOTH if k not in shared}
    return Roles({'base': fixed}, whole, own)

  def whole(roles: Roles) -> Tree:
    # Personal trees may hold more than the model, such as controls.
    return {k: (roles.personal | roles.shared)[k] for k in BOTH}

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del start
    out = _logits(setting, form, roles.frozen, whole(roles), batch, key)
    return adapted.learned(setting.task, batch, out)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    out = _logits(setting, form, roles.frozen, whole(roles), batch)
    return Prediction({served: out}, {})

  def models(roles: Roles) -> dict[str, Tree]:
    return {served: _merged(setting, form, roles.frozen, whole(roles))}

  return Algorithm(
    name=f'networks/{name}',
    backbone=setting.model,
    task=setting.task,
    begin=begin,
    columns=lambda roles, batch, plan: {},
    derived=(),
    update=client.sgd(
      objective, setting.optimizer, masks, gradient=setting.gradient
    ),
    predict=predict,
    server=adapted.server(setting),
    masks=masks,
    served=served,
    passes=Passes(trained=1, full=True),
    models=models,
  )


def _parts(setting: Setting, form: Form, key, base: Tree) -> tuple[Tree, Tree]:
  """(what never trains, {'body', 'head'}) to begin with. base: the network's
  parameters, as its backbone makes them."""
  leaves = tree.flat(base['network'])
  body = {path: leaves[path] for path in form.body}
  if form.network.lora:
    kernels = tree.nested({f'{p}/kernel': x[None] for p, x in body.items()})
    spec = _spec(setting, form)
    fresh = tree.flat(spec.init(key, kernels))
    body = {path: x[0] for path, x in fresh.items()}
  fixed = {'network': tree.nested({p: leaves[p] for p in form.fixed})}
  head = tree.nested({path: leaves[path] for path in form.head})
  return fixed, {'body': tree.nested(body), 'head': head}


def _spec(setting: Setting, form: Form) -> lora.Spec:
  """The LoRA of the run, on the kernels of the network."""
  return lora.Spec(setting.lora.rank, setting.lora.alpha, form.body)


def _leaves(form: Form, frozen: Tree, whole: Tree) -> dict:
  """All leaves by path, kernels with LoRA as they were."""
  leaves = tree.flat(frozen['base']['network']) | tree.flat(whole['head'])
  return leaves if form.network.lora else leaves | tree.flat(whole['body'])


def _adapters(form: Form, whole: Tree) -> dict:
  """(A, B) by the path of a kernel."""
  return lora.pairs(whole['body']) if form.network.lora else {}


def _added(setting: Setting, leaves: dict, pairs: dict) -> dict:
  """The leaves with LoRA in their kernels."""
  scale = setting.lora.scale
  new = {path: leaves[path] + scale * (a @ b) for path, (a, b) in pairs.items()}
  return leaves | new


def _logits(setting: Setting, form: Form, frozen, whole, batch, key=None):
  """Logits of a batch. key: of the step; None: nothing is trained."""
  network = form.network
  pairs = _adapters(form, whole)
  beside = {p: x for p, x in pairs.items() if p in form.beside}
  rest = {p: x for p, x in pairs.items() if p not in form.beside}
  leaves = _added(setting, _leaves(form, frozen, whole), rest)
  params, x = form.whole(leaves), batch['inputs']
  if beside and network.adapted is not None:
    scale = setting.lora.scale
    return network.adapted(params, beside, scale, x, key)
  return network.apply(params, x, key)


def _merged(setting: Setting, form: Form, frozen: Tree, whole: Tree) -> Tree:
  """What has become of the network: {'network': leaves by path}."""
  leaves = _leaves(form, frozen, whole)
  leaves = _added(setting, leaves, _adapters(form, whole))
  return {'network': tree.nested(jax.tree.map(jnp.asarray, leaves))}
