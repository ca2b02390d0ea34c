"""`fedms plan`: what a model would cost, from shapes alone.

Nothing is allocated and no weight is read: parameters come from
`jax.eval_shape` and costs from the analytic model of `systems/`. Data is read
for the built-in model alone, whose shape follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from fedms_jax.core import tree
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Backbone, Plan, Roles
from fedms_jax.models.family import Model
from fedms_jax.report import private
from fedms_jax.report.printed import grid
from fedms_jax.shell import (
  build,
  flags,
  foundation,
  methods,
  pipeline,
  privacy,
  privacy_report,
  privacy_rules,
  scratch,
)
from fedms_jax.shell import world as worlds
from fedms_jax.shell.commands import plan_encrypted
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import EXAMPLE
from fedms_jax.systems.ledger import Meter
from fedms_jax.systems.units import in_bytes, in_flops

_MOST_ROWS = 12  # of depths in a table
MOST_CLASSES = 1 << 20


class Shapes(NamedTuple):
  """A model, and its stages with the shapes of their roles."""

  model: Model
  stages: list[tuple[Algorithm, Roles]]


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints the plan of --model.name."""
  config, values = flags.parse_command(words, extra)
  if not 1 <= values['classes'] <= MOST_CLASSES:
    raise ValueError(
      f'--classes={values["classes"]} is not allowed; allowed: 1 to '
      f'{MOST_CLASSES}.'
    )
  for name, least in (('split', 1), ('rate', 0)):
    if values[name] < least:
      raise ValueError(
        f'--{name}={values[name]} is not allowed; allowed: at least {least}.'
      )
  if config.model.built_in:
    shapes = _built_in(config, extra['classes'][0], values['classes'])
    print('\n'.join([*lines(config, shapes), *_more(config, shapes, values)]))
    return 0
  if config.model.scratch:
    checkpoint = scratch.planned(config.model, config.data)
  else:
    checkpoint = foundation.find(config.model, weights=False)
  if checkpoint is None:
    raise ValueError(
      f'--model.name={config.model.name} is a network of a plugin, whose '
      'shapes are known when it is made; allowed: a Hub id or folder, or the '
      'built-in vit.'
    )
  names = tuple(map(str, range(values['classes'])))
  tokens = foundation.text_length(config.model, config.data, checkpoint)
  facts = foundation.Facts(names, tokens)
  model, tokens = foundation.loadable(config.model, checkpoint, facts), None
  if methods.reads_names(config.algorithm.name, model):
    tokens = foundation.one_token(config.prompt, len(names))
  first = model
  if config.first_model != config.model:
    first = foundation.loadable(config.first_model, checkpoint, facts)
  roles = worlds.shapes(config.model, first, checkpoint, tokens)
  shapes = shaped(config, model, roles, first)
  print('\n'.join([*lines(config, shapes), *_more(config, shapes, values)]))
  return 0


def _built_in(config: Config, usual: int, classes: int) -> Shapes:
  """The shapes of the built-in vit, which has them from the data."""
  if classes != usual:
    raise ValueError(
      f'--classes={classes} is for checkpoints; --model.name=vit has as many '
      'as the data. Leave it out.'
    )
  return of_world(config, worlds.world(config))


def of_world(config: Config, world: worlds.World) -> Shapes:
  """The shapes of a world; names of classes count as a token each."""
  tokens = None
  if methods.reads_names(config.algorithm.name, world.model):
    names = world.data.table.output_names
    tokens = foundation.one_token(config.prompt, len(names))
  roles = worlds.shapes(config.model, world.first, world.checkpoint, tokens)
  return shaped(config, world.model, roles, world.first)


def _more(config: Config, shapes: Shapes, values: dict[str, Any]) -> list[str]:
  """What is said beside the costs of stages, where it is asked for."""
  found, backbone = [], shapes.model.backbone
  if config.privacy.on:
    found += ['', *_privacy(config, backbone.blocks)]
  if values['encrypted'] != 0:
    first, tokens = shapes.stages[0][1], backbone.cost.tokens
    found += ['', *plan_encrypted.lines(config, first, tokens, values)]
  if silos := silo_lines(config, shapes, values['split'], values['rate']):
    found += ['', *silos]
  return found


def _privacy(config: Config, blocks: int) -> list[str]:
  """What the run's privacy would cost, of a model of so many blocks."""
  a = config.algorithm
  rounds = (a.stage1_rounds + a.stage2_rounds,)
  if a.name == 'fedms' and a.stage2_rounds:
    rounds = (a.stage1_rounds, a.stage2_rounds)
  privacy_rules.check_flags(config)
  plan = privacy.planned(config, rounds, blocks)
  rows = None
  if config.privacy.mode == EXAMPLE:
    rows = worlds.data(config).train.sizes()
  return private.lines(privacy_report.planned(config, plan, rows))


def shaped(
  config: Config, model: Model, roles: Roles, first: Model | None = None
) -> Shapes:
  """The stages of a run that starts from these roles, as shapes. first: the
  model of the first stage, if that is another."""
  key = jax.random.key(0)
  stages = []
  # The gate's size depends on classes only where it weighs each of them.
  classes = _classes(model.backbone)
  for stage in pipeline.stages(config, first or model, model, classes):
    roles = jax.eval_shape(stage.algorithm.begin, key, roles)
    stages.append((stage.algorithm, roles))
  return Shapes(model, stages)


def _classes(backbone: Backbone) -> int:
  head = jax.eval_shape(backbone.init_head, jax.random.key(0))
  return head['kernel'].shape[-1] if head else 1


def lines(config: Config, shapes: Shapes) -> list[str]:
  """The lines of the plan."""
  backbone = shapes.model.backbone
  (algorithm, roles), *_ = shapes.stages
  base, start = roles.frozen.get('base'), roles.frozen.get('start', {})
  if base is None:  # all weights train
    base = {k: x for k, x in roles.shared.items() if k != 'head'}
  count = tree.size(base)
  found = [
    f'{config.model.name}: {count:,} parameters in {backbone.blocks} blocks '
    f'of width {backbone.width}, {in_bytes(tree.nbytes(base))} as '
    f'{config.model.storage}; T = {backbone.cost.tokens}'
  ]
  if adapted := tree.size(start.get('blocks', {})):
    found.append(
      f'LoRA of rank {config.lora.rank} on {config.lora.targets}: {adapted:,} '
      f'parameters ({100 * adapted / count:.3f} %), head: '
      f'{tree.size(start["head"]):,}'
    )
  found.append(f'a step has {config.client.batch_size} examples')
  for algorithm, roles in shapes.stages:
    found += ['', f'stage {algorithm.name}']
    found += _depths(config, shapes, algorithm, roles)
  return [*found, '', *_cohorts(config, shapes)]


def _meter(config, shapes: Shapes, algorithm, roles) -> Meter:
  options = build.options(config)
  return Meter(
    algorithm,
    roles,
    batch=options.batch_size,
    slots=options.slots,
  )


def plan_of(blocks: int, depth: int) -> Plan:
  """The top `depth` blocks active, and nothing else ever."""
  return Plan(tuple(b >= blocks - depth for b in range(blocks)), blocks - depth)


def _depths(config, shapes: Shapes, algorithm, roles) -> list[str]:
  """One line per depth: bytes, FLOPs and memory of a client."""
  blocks, batch = shapes.model.backbone.blocks, config.client.batch_size
  meter = _meter(config, shapes, algorithm, roles)
  rows = [
    ['depth', 'trained', 'up', 'down', "client's FLOPs a step", 'its memory',
     "simulator's FLOPs a step"]
  ]  # fmt: skip
  for depth in _shown(blocks):
    plan = plan_of(blocks, depth)
    entry = meter.group(
      plan, plan.active, clients=1, newcomers=0, cohort=1, examples=batch,
      steps=1, derived=0, scope='run',
    )  # fmt: skip
    rows.append(
      [
        str(depth),
        in_bytes(meter.trained(plan)),
        in_bytes(entry.bytes_up),
        in_bytes(entry.bytes_down),
        in_flops(entry.client_flops),
        in_bytes(entry.peak_client_memory),
        in_flops(entry.simulator_flops),
      ]
    )
  return grid(rows)


def _shown(blocks: int) -> list[int]:
  """All depths, or 1, 2, 4, ... if they are many."""
  if blocks <= _MOST_ROWS:
    return list(range(1, blocks + 1))
  return sorted({min(2**i, blocks) for i in range(blocks.bit_length() + 1)})


def _cohorts(config, shapes: Shapes) -> list[str]:
  """Memory of a device that simulates so many clients at once."""
  algorithm, roles = shapes.stages[-1]
  blocks = shapes.model.backbone.blocks
  meter = _meter(config, shapes, algorithm, roles)
  widths = sorted({1, 8, 32, config.cohort.size})
  rows = [['clients at once', *map(str, widths)]]
  for depth in dict.fromkeys((1, (blocks + 1) // 2, blocks)):
    plan = plan_of(blocks, depth)
    sizes = [in_bytes(meter.memory(plan, width)) for width in widths]
    rows.append([f'depth {depth}', *sizes])
  title = f"memory of the simulator's device, stage {algorithm.name}"
  return [f'{title} (parameters once, no derived columns)', *grid(rows)]


def silo_lines(
  config: Config, shapes: Shapes, split: int, rate: float
) -> list[str]:
  """What the federated phases of --stages cost clients of several devices.

  split: devices of a client that its weights, gradient, moments and batch are
  split over evenly. rate: FLOP/s of a client in all; 0: seconds are left out.
  The simulator itself does not split weights that are trained.
  """
  found = []
  for phase, (algorithm, roles) in zip(
    config.pipeline.phases, shapes.stages, strict=False
  ):
    steps = phase.steps or config.client.steps
    if phase.kind == 'S' or not steps:
      continue
    meter, blocks = (
      _meter(config, shapes, algorithm, roles),
      len(jax.tree.leaves(roles.shared['blocks'])[0]),
    )
    plan = plan_of(blocks, blocks)
    examples = steps * config.client.batch_size
    cohort = config.cohort.size
    entry = meter.group(
      plan, plan.active, clients=cohort, newcomers=0, cohort=cohort,
      examples=float(cohort * examples), steps=float(cohort * steps),
      derived=0, scope='step',
    )  # fmt: skip
    tokens = examples * shapes.model.backbone.cost.tokens
    found.append(
      f'a round of {phase.kind}{phase.rounds}x{steps}, {cohort} clients: '
      f'{in_bytes(entry.bytes_up)} up, {in_bytes(entry.bytes_down)} down; '
      f'{in_flops(entry.client_flops / cohort)} and {tokens:,} tokens a client'
    )
    slots = build.options(config).slots
    held = meter.trained(plan) * (2 + slots)
    line = (
      f'  memory of a device, {split} to a client: {in_bytes(held / split)} of '
      f'weights, gradient and moments, '
      f'{in_bytes(entry.peak_client_memory / split)} with what the backward '
      'pass keeps of a whole batch'
    )
    if rate:
      seconds = entry.client_flops / cohort / rate
      line += f'; {seconds:,.0f} s of computing at {in_flops(rate)} a second'
    found.append(line)
  return found
