"""The training programs of real models, compiled and not run, and the memory
that XLA gives them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import columns, reduction, rounds, scoring, tree
from fedms_jax.core.contract import Clients, Moment, Work
from fedms_jax.core.types import Plan, Roles
from fedms_jax.models import gate, pretrained, tasks
from fedms_jax.models.family import Options
from fedms_jax.server import averaged
from fedms_jax.simulation import needs
from fedms_jax.systems.ledger import Meter

SLOTS = 2  # of AdamW
STEPS = 4
TASKS = {
  'classification': tasks.classification(),
  'masked_lm': tasks.masked_lm(),
  'causal_lm': tasks.causal_lm(),
  'contrast': tasks.contrast(),
}
_LEVELS = {'causal_lm': 'running', 'masked_lm': 'sequence'}


class Case(NamedTuple):
  """A program. config: of config.json. options: of the model. size: (clients,
  batch, tokens). depth: active blocks. stage: of FedMS."""

  config: dict[str, Any]
  options: Options
  size: tuple[int, int, int]
  stage: int = 1
  depth: int = 1
  mix: str = 'logits'
  targets: tuple[str, ...] = ('attn/q', 'attn/v')


class Scene(NamedTuple):
  algorithm: Any
  roles: Roles
  plan: Plan
  raw: dict[str, Any]


class Found(NamedTuple):
  """Bytes. resident: roles, those of all clients. table: columns. taken: what
  the program takes beside them. planned: what `Meter.memory` says of it all
  but the table."""

  resident: int
  table: int
  taken: int
  planned: float


def shape(*axes: int, dtype='int32'):
  return jax.ShapeDtypeStruct(axes, jnp.dtype(dtype))


KEY = jax.eval_shape(lambda: jax.random.key(0))


def scene(case: Case) -> Scene:
  """A stage of FedMS at its first round, as shapes."""
  clients, batch, tokens = case.size
  options = case.options
  backbone = pretrained.model(case.config, options).backbone
  setting = fedms.Setting(
    backbone, TASKS[options.head], optax.adamw(1e-3), optax.sgd(1.0),
    averaged.mean(), lora.Spec(8, 8, case.targets),
  )  # fmt: skip
  algorithm = fedms.global_stage(setting)
  roles = jax.eval_shape(
    lambda key: algorithm.begin(
      key, fedms.start(backbone.init(key), backbone.init_head(key))
    ),
    KEY,
  )
  if case.stage == 2:
    level = _LEVELS.get(options.head, 'token')
    spec = gate.GateSpec(
      backbone.width, options.classes, level=level, mix=case.mix
    )
    algorithm = fedms.personal_stage(setting, fedms.Personal(spec))
    roles = jax.eval_shape(algorithm.begin, KEY, roles)
  blocks = backbone.blocks
  active = tuple(b >= blocks - case.depth for b in range(blocks))
  raw = _raw(case, clients * batch, tokens)
  return Scene(algorithm, roles, Plan(active, blocks - case.depth), raw)


def _raw(case: Case, rows: int, tokens: int) -> dict[str, Any]:
  raw = {'inputs': shape(rows, tokens), 'labels': shape(rows)}
  vision = case.config.get('vision_config', case.config)
  if side := vision.get('image_size'):
    raw['inputs'] = shape(rows, side, side, 3, dtype='uint8')
    if case.options.head == 'contrast':
      raw['texts'] = shape(rows, tokens)
  if case.options.head == 'masked_lm':
    raw['targets'] = shape(rows, tokens)
  return raw


def _wide(roles, clients: int):
  return jax.tree.map(lambda x: shape(clients, *x.shape, dtype=x.dtype), roles)


def _table(found: Scene):
  shared = found.roles._replace(personal=None)
  derived = columns.shapes(found.algorithm, shared, found.raw, found.plan)
  return found.raw | derived


def lowered(case: Case):
  """(the program of a local step of a chunk of clients, its arguments)."""
  found = scene(case)
  algorithm, roles = found.algorithm, found.roles
  clients, batch, _ = case.size
  totals = reduction.empty_shapes(algorithm, roles)
  own = Clients(
    shape(clients, dtype='uint32'),
    _wide(roles.personal, clients),
    shape(clients, STEPS, batch),
    shape(clients, dtype='float32'),
  )
  work = Work(_table(found), KEY, Moment(*[shape()] * 4))
  args = needs.arguments(algorithm, found.plan, roles, work, totals, own).step
  _, _, _, carry, given, *rest = args
  program = rounds.step_chunk.program()
  trained = carry.state, carry.sums
  return program.lower(*args), (given, work, trained, *rest[1:])


def evaluated(case: Case):
  """The program that scores all models of each client on rows of its own."""
  found = scene(case)
  algorithm, roles = found.algorithm, found.roles
  clients, rows, _ = case.size
  args = (
    roles._replace(personal=None),
    _table(found),
    _wide(roles.personal, clients),
    shape(clients, rows),
  )
  program = scoring.evaluate_chunk.program()
  return program.lower(scoring.Look(algorithm, found.plan), *args), args


@functools.cache
def _memory(which, key) -> tuple[int, int, int]:
  program, (roles, work, *rest) = which(key.case)
  found = program.compile().memory_analysis()
  table = tree.nbytes(work.table if isinstance(work, Work) else work)
  output = found.output_size_in_bytes - found.alias_size_in_bytes
  taken = found.temp_size_in_bytes + output
  return tree.nbytes((roles, rest)), table, taken


class _Key:
  """A case as a key: configs are no keys of their own."""

  def __init__(self, case: Case):
    self.case = case

  def __hash__(self):
    return hash(repr(self.case))

  def __eq__(self, other):
    return repr(self.case) == repr(other.case)


def memory(case: Case, which=lowered) -> Found:
  """What a program takes, and what was planned for it."""
  found = scene(case)
  clients, batch, _ = case.size
  meter = Meter(found.algorithm, found.roles, batch=batch, slots=SLOTS)
  planned = meter.memory(found.plan, clients)
  return Found(*_memory(which, _Key(case)), planned)


def needed(case: Case) -> float:
  """Bytes that a chunk of clients needs at least beside the roles."""
  found = scene(case)
  clients, batch, _ = case.size
  cost = found.algorithm.backbone.cost
  meter = Meter(found.algorithm, found.roles, batch=batch, slots=SLOTS)
  each = cost.activation
  last = each if cost.last is None else cost.last.activation
  works = each if case.depth > 1 else last
  blocks = batch * ((case.depth - 1) * each + last + works)
  trained = (2 + SLOTS) * meter.trained(found.plan)
  return clients * (blocks + trained) + tree.nbytes(_table(found))
