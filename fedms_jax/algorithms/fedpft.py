"""FedPFT (arXiv 2404.11536): clients tune a model whose MLPs are narrower.

The sub-model keeps attention, norms and embeddings, and of each MLP but those
at the ends the neurons with the largest weights; see `sub_model.py`. Before the
federated rounds the server trains these neurons on public rows so that each
block gives what that of the whole model does (`compressed`). Then clients train
LoRA on the sub-model, which fits the whole one as it is, for no layer that has
LoRA has changed its shape (`tuned`). Every `interval` rounds they also say how
often each neuron was at rest, and the server, with the LoRA that there is then,
trains the half that rests more once more, while the others stay.

Ours: a neuron is at rest where its activation is not positive, for that of a
GELU is seldom zero; it is counted on a client's first batch; both of the
server's trainings follow Adam, the later ones with fresh moments. In the ledger
what passes every `interval` rounds is spread over all of them, and what a
device keeps of activations is stated as of the whole model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedms_jax.adapters import taps
from fedms_jax.algorithms import adapted, sub_model
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.sub_model import Choice
from fedms_jax.core import activation, client, joined, tree
from fedms_jax.core.columns import inputs
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Prediction,
  Received,
  Server,
  Start,
)
from fedms_jax.core.types import (
  ActiveSet,
  Backbone,
  Batch,
  Passes,
  Plan,
  Roles,
  Tree,
)

_REST = 'rest'  # the extra that says how often neurons were at rest


def compressed(
  setting: Setting, choice: Choice, *, adapter: Tree | None = None
) -> Algorithm:
  """The server's training of the sub-model, as local training of one client
  that has the public rows; their labels are not read for it. Shared is
  'neurons'. adapter: see `adapted.fresh`."""
  backbone, task = setting.backbone, setting.task

  def begin(key, before: Roles) -> Roles:
    start = adapted.fresh(setting, key, before, adapter)
    base = before.frozen['base']
    held = sub_model.kept(base['blocks'], choice)
    frozen = {'base': base, 'start': start | {'kept': held}}
    neurons = sub_model.neurons(base['blocks'], held)
    return Roles(frozen, {'neurons': neurons}, {})

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    whole = joined.rest(roles.frozen['start'], backbone.blocks)
    base = roles.frozen['base']
    models = {'pretrained': base, 'emulator': _sub_model(roles)}
    found = {k: _logits(backbone, x, whole, batch) for k, x in models.items()}
    return Prediction(found, {})

  return Algorithm(
    name='fedpft/compressed',
    backbone=backbone.whole(),
    task=task,
    begin=begin,
    columns=lambda roles, batch, plan: _embedded(backbone, roles, batch),
    derived=('embedded',),
    update=_likening(setting, choice),
    predict=predict,
    server=adapted.server(setting),
    masks=_neurons_alone,
    served='emulator',
    passes=Passes(trained=1, frozen=1),
  )


def _neurons_alone(plan: Plan):
  del plan
  return {'neurons': True}, {}


def _sub_model(roles: Roles) -> Tree:
  """The base of the sub-model whose neurons are shared."""
  base, held = roles.frozen['base'], roles.frozen['start']['kept']
  return sub_model.smaller(base, roles.shared['neurons'], held)


def _likening(setting: Setting, choice: Choice) -> ClientUpdate:
  """Trains the neurons on what the sub-model misses."""
  backbone, task = setting.backbone, setting.task

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key, start
    base, first = roles.frozen['base'], roles.frozen['start']
    value, x = sub_model.missed(
      backbone, base, _sub_model(roles), first['blocks'], batch, choice
    )
    x = backbone.features(base, x, adapted.mask(backbone, batch))
    out = backbone.logits(base, first['head'], x)
    held = batch['mask'].astype(jnp.float32)
    loss = jnp.broadcast_to(value, held.shape), held
    return value, adapted.sums(task, out, loss, batch)

  optimizer = optax.adam(choice.learning_rate)
  return client.sgd(objective, optimizer, _neurons_alone)


def tuned(setting: Setting, choice: Choice) -> Algorithm:
  """FedAvg of LoRA and head on the sub-model of `compressed`. Predicts with the
  whole model ('global'), which users get, and as clients see it ('emulator').
  """
  backbone, blocks = setting.backbone, setting.backbone.blocks

  def begin(key, before: Roles) -> Roles:
    del key
    start = before.frozen['start'] | {'neurons': before.shared['neurons']}
    frozen = {'base': before.frozen['base'], 'start': start}
    mine = {key: start[key] for key in ('blocks', 'head')}
    return Roles(frozen, jax.tree.map(jnp.copy, mine), {})

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    now = joined.rest(roles.shared, blocks)
    first = joined.rest(roles.frozen['start'], blocks)
    base = roles.frozen['base']
    models = {
      'pretrained': (base, first),
      'global': (base, now),
      'emulator': (_small(roles.frozen), now),
    }
    found = {k: _logits(backbone, *x, batch) for k, x in models.items()}
    return Prediction(found, {})

  return Algorithm(
    name='fedpft/tuned',
    backbone=_cheaper(backbone, choice),
    task=setting.task,
    begin=begin,
    columns=lambda roles, batch, plan: _embedded(backbone, roles, batch),
    derived=('embedded',),
    update=_counting(setting, choice),
    predict=predict,
    server=_server(setting, choice),
    masks=client.everywhere,
    served='global',
    passes=Passes(trained=1),
    models=lambda roles: {'global': roles.shared},
    traffic=_traffic(choice),
    public=choice.steps * choice.batch if choice.interval else 0,
    held=_held(choice),
  )


def _embedded(backbone: Backbone, roles: Roles, batch: Batch) -> Batch:
  return {'embedded': backbone.embed(roles.frozen['base'], inputs(batch))}


def _logits(backbone: Backbone, base: Tree, whole: Tree, batch: Batch):
  """Logits of a base with LoRA and head as `client.join` gives them."""
  x = adapted.features(
    backbone, base, [whole['blocks']], batch['embedded'], batch, 0
  )
  return adapted.logits(backbone, base, whole['head'], x)


def _small(frozen: Tree) -> Tree:
  """The base of the sub-model as it is now."""
  start = frozen['start']
  neurons = frozen.get('server', start)['neurons']
  return sub_model.smaller(frozen['base'], neurons, start['kept'])


def _due(choice: Choice, round):
  """Whether the server aligns the sub-model after this round of the stage."""
  return (round + 1) % max(choice.interval, 1) == 0


def _counting(setting: Setting, choice: Choice) -> ClientUpdate:
  """Trains LoRA and head, and counts in the first step of rounds after which
  the server asks for it."""
  backbone, task = setting.backbone, setting.task

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key, start
    out = _logits(backbone, _small(roles.frozen), roles.shared, batch)
    return adapted.learned(task, batch, out)

  inner = client.sgd(objective, setting.optimizer, client.everywhere)
  if not choice.interval:
    return inner

  def nothing(start: Start) -> Tree:
    held = start.roles.frozen['start']['kept']
    return {'counts': jnp.zeros_like(held), 'seen': jnp.float32(0)}

  def begin(start: Start):
    return {'model': inner.begin(start), _REST: nothing(start)}

  def step(carry, start: Start, batch: Batch, key):
    first = (start.moment.step == 0) & _due(choice, start.moment.round)
    rest = jax.lax.cond(
      first,
      lambda: at_rest(setting, start.roles, batch),
      lambda: carry[_REST],
    )
    model, sums = inner.step(carry['model'], start, batch, key)
    return {'model': model, _REST: rest}, sums

  def finish(carry, start: Start):
    message, personal = inner.finish(carry['model'], start)
    return message._replace(extras={_REST: carry[_REST]}), personal

  return ClientUpdate(begin, step, finish, inner.sums)


def at_rest(setting: Setting, roles: Roles, batch: Batch) -> Tree:
  """{'counts' [L, F]: tokens at which each neuron of the sub-model is at rest,
  'seen': of how many}."""
  backbone = setting.model.adapted(taps.Tapped(setting.lora))
  base, x = _small(roles.frozen), batch['embedded']
  tokens = adapted.mask(backbone, batch)
  held = sub_model.weights(batch, x, tokens)
  whole = joined.rest(roles.shared, backbone.blocks)
  spans = activation.spans([whole['blocks']], 0)
  spans = activation.over(base['blocks'], spans)

  def behind(rest):
    return jnp.sum(backbone.run(taps.tapped(spans, rest, held), x, tokens))

  rest = jnp.zeros_like(roles.frozen['start']['kept'])
  return {'counts': jax.grad(behind)(rest), 'seen': jnp.sum(held)}


def _server(setting: Setting, choice: Choice) -> Server:
  """The mean of LoRA and head, and the alignment of the sub-model."""
  inner = adapted.server(setting, residual=True)

  def init(key, roles: Roles) -> Tree:
    neurons = jax.tree.map(jnp.copy, roles.frozen['start']['neurons'])
    return {'model': inner.init(key, roles), 'neurons': neurons}

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    roles, model, measured = inner.step(
      roles, memory['model'], received, context
    )
    public, neurons = context.public, memory['neurons']
    if public is not None and choice.interval:
      base, held = roles.frozen['base'], roles.frozen['start']['kept']
      rest = received.extras[_REST]
      share = rest['counts'] / jnp.maximum(rest['seen'], 1e-12)
      fixed = sub_model.at_work(share, held)
      neurons = jax.lax.cond(
        _due(choice, context.round) & (rest['seen'] > 0),
        lambda: sub_model.aligned(
          setting.backbone, base, neurons, roles.shared['blocks'], public,
          choice, held, fixed,
        ),
        lambda: neurons,
      )  # fmt: skip
    return roles, {'model': model, 'neurons': neurons}, measured

  return inner._replace(
    init=init,
    step=step,
    broadcast=lambda memory: {'neurons': memory['neurons']},
  )


def _dropped(mlp: Tree, choice: Choice) -> tuple[int, int]:
  """(neurons that a cut MLP loses, weights of one, without its bias)."""
  _, width, neurons = mlp['up']['kernel'].shape
  return neurons - choice.count(neurons), 2 * width


def _cheaper(backbone: Backbone, choice: Choice) -> Backbone:
  """The backbone in the ledger's terms: a block costs what it does on the mean
  without the neurons that are cut. All of the last one is counted, though the
  simulator computes no more of it than is read."""
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  lost, each = _dropped(shapes['blocks']['mlp'], choice)
  share = len(choice.cut(backbone.blocks)) / backbone.blocks
  spared = 2.0 * backbone.cost.tokens * lost * each * share
  cost = backbone.cost.whole()._replace(block=backbone.cost.block - spared)
  return backbone._replace(cost=cost)


def _held(choice: Choice):
  """What a client's device has: the sub-model, LoRA and head."""

  def held(shapes: Roles, plan: Plan) -> tuple[Roles, Plan]:
    base = shapes.frozen['base']
    mlp = base['blocks']['mlp']
    count = mlp['up']['kernel'].shape[2] - _dropped(mlp, choice)[0]
    cut = jnp.array(choice.cut(len(plan.active)))
    own = {k: x for k, x in base['blocks'].items() if k != 'mlp'}

    def apart(mlp: Tree) -> Tree:
      small = jax.tree.map(lambda x: x[cut], mlp)
      small = {
        'up': jax.tree.map(lambda x: x[..., :count], small['up']),
        'down': small['down'] | {'kernel': small['down']['kernel'][:, :count]},
      }
      ends = jax.tree.map(lambda x: x[: len(plan.active) - len(cut)], mlp)
      return {'small': small, 'ends': ends}

    own = own | {'mlp': jax.eval_shape(apart, mlp)}
    base = base | {'blocks': own}
    return Roles({'base': base}, shapes.shared, {}), plan

  return held


def _traffic(choice: Choice):
  """Bytes of a client: LoRA and head both ways; per alignment the counts up,
  and the neurons of the cut blocks down."""

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    del cohort
    up = float(tree.nbytes_of(shapes.shared, plan.active))
    down = float(tree.nbytes_of(shapes.shared, ever))
    if not choice.interval:
      return up, down
    neurons = shapes.frozen['start']['neurons']
    lost, each = _dropped(neurons, choice)
    width = neurons['up']['kernel'].shape[2]
    count = len(choice.cut(len(plan.active))) * (width - lost)
    each += 'bias' in neurons['up']
    up += 4.0 * (count + 1) / choice.interval
    return up, down + 4.0 * count * each / choice.interval

  return traffic
