"""The programs of a run, of small models, as (function, shapes of arguments).

The one file here that knows the signatures of the engine. Sizes are chosen so
that an axis is known by its length: clients, rows, tokens, blocks, widths and
ranks all have lengths of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms, full, probe
from fedms_jax.cluster.placement import Placement
from fedms_jax.core import columns, inner_state, reduction, rounds, scoring
from fedms_jax.core.contract import Clients, Moment, Work
from fedms_jax.core.types import Plan, Roles
from fedms_jax.models import gate, pretrained, tasks
from fedms_jax.models.family import Options
from fedms_jax.server import averaged
from fedms_jax.simulation import derivation, needs

CLIENTS, BATCH, STEPS, ROWS, HELD, DEVICES = 7, 3, 12, 29, 19, 2
TOGETHER = 2  # steps that are one program
BLOCKS, WIDTH, MLP, WORDS, CLASSES, RANK = 4, 32, 48, 40, 13, 11
PROJECTED, HEADS, PER_HEAD = 34, 2, 16
TOKENS = {False: 10, True: 9}
IMAGE_TOKENS = {False: 6, True: 5}
ALL = Plan((True,) * BLOCKS, 0)  # a loop over blocks
TOP = Plan((False, False, True, True), 1)  # no loop; block 1 was active once

_NAMES = {
  'num_hidden_layers': BLOCKS,
  'hidden_size': WIDTH,
  'intermediate_size': MLP,
  'num_attention_heads': HEADS,
  'num_key_value_heads': 1,
  'vocab_size': WORDS,
  'max_position_embeddings': 64,
}
_IMAGES = _NAMES | {'image_size': 16, 'patch_size': 8}
CONFIGS: dict[str, dict[str, Any]] = {
  'vit': {'model_type': 'vit', **_IMAGES},
  'bert': {'model_type': 'bert', **_NAMES},
  'gpt2': {
    'model_type': 'gpt2',
    'n_layer': BLOCKS,
    'n_embd': WIDTH,
    'n_head': HEADS,
    'n_inner': MLP,
    'vocab_size': WORDS,
    'n_positions': 64,
  },
  'llama': {'model_type': 'llama', **_NAMES},
  'clip': {
    'model_type': 'clip',
    'vision_config': _IMAGES,
    'text_config': _NAMES | {'eos_token_id': WORDS - 1},
    'projection_dim': PROJECTED,
  },
}
OPTIONS = {
  'vit': Options(classes=CLASSES),
  'bert': Options(head='masked_lm'),
  'gpt2': Options(head='causal_lm'),
  'llama': Options(head='causal_lm'),
  'clip': Options(head='contrast', tower='both'),
}
TASKS = {
  'classification': tasks.classification(),
  'masked_lm': tasks.masked_lm(),
  'causal_lm': tasks.causal_lm(),
  'contrast': tasks.contrast(),
}


class Case(NamedTuple):
  """Which program of which run. kind: a key of `KINDS`. stage: of FedMS."""

  family: str
  kind: str = 'train'
  stage: int = 1
  dtype: str = 'float32'
  storage: str = 'float32'
  odd: bool = True  # the number of tokens
  plan: Plan = ALL

  def __str__(self):
    parts = (self.family, self.kind, self.stage, self.dtype, self.storage)
    odd, depth = ('even', 'odd')[self.odd], sum(self.plan.active)
    return '-'.join(map(str, (*parts, odd, depth)))


class Program(NamedTuple):
  """frozen: shapes of the arrays that are the same for all clients."""

  function: Callable
  args: tuple
  frozen: Any


class Scene(NamedTuple):
  """What a case is made of. raw: shapes of the raw columns, [1, ...]."""

  algorithm: Any
  roles: Roles
  raw: dict[str, Any]
  plan: Plan


def shape(*axes: int, dtype='int32'):
  return jax.ShapeDtypeStruct(axes, jnp.dtype(dtype))


KEY = jax.eval_shape(lambda: jax.random.key(0))


def program(case: Case) -> Program:
  return KINDS[case.kind](case)


@functools.cache
def _model(case: Case):
  """(backbone, task, LoRA's targets, level of the gate) of a case."""
  config = dict(CONFIGS[case.family])
  if case.family == 'vit' and not case.odd:
    config['model_type'] = 'deit'  # one token more
  options = OPTIONS[case.family]
  targets = ('attn/q', 'attn/v')
  if case.family == 'clip':
    targets = tuple(f'{t}/{x}' for t in ('image', 'text') for x in targets)
  level = {'gpt2': 'running', 'llama': 'running', 'bert': 'sequence'}
  options = Options(
    **options.__dict__ | {'dtype': case.dtype, 'storage': case.storage}
  )
  model = pretrained.model(config, options).backbone
  return model, TASKS[options.head], targets, level.get(case.family, 'token')


def _raw(case: Case, rows: int) -> dict[str, Any]:
  tokens = shape(rows, TOKENS[case.odd])
  images = shape(rows, 16, 16, 3, dtype='uint8')
  labels = shape(rows)
  return {
    'vit': {'inputs': images, 'labels': labels},
    'clip': {'inputs': images, 'labels': labels, 'texts': tokens},
    'bert': {'inputs': tokens, 'labels': labels, 'targets': tokens},
  }.get(case.family, {'inputs': tokens, 'labels': labels})


def _setting(case: Case) -> fedms.Setting:
  backbone, task, targets, _ = _model(case)
  return fedms.Setting(
    backbone, task, optax.adamw(1e-3), optax.sgd(1.0), averaged.mean(),
    lora.Spec(RANK, RANK, targets),
  )  # fmt: skip


def _start(case: Case) -> Roles:
  backbone, *_ = _model(case)
  return jax.eval_shape(
    lambda key: fedms.start(backbone.init(key), backbone.init_head(key)), KEY
  )


def _scene(case: Case) -> Scene:
  """A stage of FedMS, at its first round."""
  setting = _setting(case)
  algorithm = fedms.global_stage(setting)
  roles = jax.eval_shape(algorithm.begin, KEY, _start(case))
  if case.stage == 2:
    *_, level = _model(case)
    classes = CLASSES if case.family == 'vit' else 0
    spec = gate.GateSpec(setting.backbone.width, classes, level=level)
    algorithm = fedms.personal_stage(setting, fedms.Personal(spec))
    roles = jax.eval_shape(algorithm.begin, KEY, roles)
  return Scene(algorithm, roles, _raw(case, ROWS), case.plan)


def _table(scene: Scene):
  """Raw columns, and derived ones where there is a prefix to look up."""
  if not scene.plan.boundary:
    return scene.raw
  shared = scene.roles._replace(personal=None)
  return scene.raw | columns.shapes(
    scene.algorithm, shared, scene.raw, scene.plan
  )


def _wide(tree, *axes: int):
  return jax.tree.map(lambda x: shape(*axes, *x.shape, dtype=x.dtype), tree)


def _cohort(scene: Scene, clients: int):
  """Arguments of a round's training, but for what is static."""
  roles = scene.roles
  totals = reduction.empty_shapes(scene.algorithm, roles)
  its = Clients(
    ids=shape(clients, dtype='uint32'),
    personal=_wide(roles.personal, clients),
    rows=shape(clients, STEPS, BATCH),
    weights=shape(clients, dtype='float32'),
  )
  work = Work(_table(scene), KEY, Moment(*[shape()] * 4))
  return roles._replace(personal=None), work, totals, its


def _of_a_chunk(which: str, devices: int = 1):
  """A program of the training of `CLIENTS` on each of the devices, two steps
  at a time."""

  def made(case: Case) -> Program:
    return _chunk(which, _scene(case), CLIENTS, devices)

  return made


def _chunk(which: str, scene: Scene, clients: int, devices: int = 1) -> Program:
  """A program of the training of so many clients on each of the devices."""
  function = getattr(rounds, f'{which}_chunk').__wrapped__
  mesh = Placement(devices).mesh
  roles, work, totals, its = _cohort(scene, devices * clients)
  if mesh is not None:
    totals = _wide(totals, devices)
  args = needs.arguments(
    scene.algorithm, scene.plan, roles, work, totals, its,
    together=TOGETHER, mesh=mesh,
  )  # fmt: skip
  static, given = args._asdict()[which][:3], args._asdict()[which][3:]
  return Program(
    lambda *rest: function(*static, *rest), given, scene.roles.frozen
  )


def _evaluate(case: Case) -> Program:
  """All predictions on rows of each client's own."""
  scene = _scene(case)
  roles = scene.roles
  look = scoring.Look(scene.algorithm, Plan(ALL.active, case.plan.boundary))

  def run(*args):
    return scoring.evaluate_chunk.__wrapped__(look, *args)

  args = (
    roles._replace(personal=None),
    _table(scene),
    _wide(roles.personal, CLIENTS),
    shape(CLIENTS, HELD),
  )
  return Program(run, args, roles.frozen)


def _columns(case: Case) -> Program:
  """The derived columns of a block of rows, of lower boundaries, too."""
  scene = _scene(case)

  def run(roles, raw):
    return derivation.derive.__wrapped__(
      scene.algorithm, roles, raw, case.plan, tuple(range(case.plan.boundary))
    )

  roles = scene.roles._replace(personal=None)
  return Program(run, (roles, scene.raw), scene.roles.frozen)


def _pretrain(case: Case) -> Program:
  """A step of the server's own: of all weights, or of a frozen model's head."""
  whole = case.storage == 'float32'
  method = full.full_model if whole else probe.linear_probe
  algorithm = inner_state.central(method(_setting(case)))
  roles = jax.eval_shape(algorithm.begin, KEY, _start(case))
  roles, *_ = jax.eval_shape(lambda: reduction.begin(algorithm, roles, 0))
  raw = _raw(case, ROWS)
  if not whole:
    raw = raw | columns.shapes(algorithm, roles, raw, ALL)
  return _chunk('step', Scene(algorithm, roles, raw, ALL), 1)


def _server(case: Case) -> Program:
  """The server's step."""
  scene = _scene(case)
  algorithm, roles = scene.algorithm, scene.roles

  def run(*args):
    return reduction.close.__wrapped__(algorithm, *args)

  roles, memory, channel = jax.eval_shape(
    lambda: reduction.begin(algorithm, scene.roles, 0)
  )
  totals = reduction.empty_shapes(algorithm, roles)
  args = (roles, memory, channel, totals, KEY, shape())
  return Program(run, args, roles.frozen)


KINDS: dict[str, Callable[[Case], Program]] = {
  'begin': _of_a_chunk('begin'),
  'train': _of_a_chunk('step'),
  'finish': _of_a_chunk('finish'),
  'spread': _of_a_chunk('step', DEVICES),
  'spread-finish': _of_a_chunk('finish', DEVICES),
  'evaluate': _evaluate,
  'columns': _columns,
  'pretrain': _pretrain,
  'server': _server,
}
