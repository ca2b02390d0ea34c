"""`fedms plan`: what a model would cost, from shapes alone.

Nothing is allocated and no weight is read: parameters come from
`jax.eval_shape` and costs from the analytic model of `systems/`.
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
  privacy,
  privacy_report,
  privacy_rules,
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
  if config.privacy.on and config.model.built_in:
    print('\n'.join(_privacy(config, config.model.blocks)))
    return 0
  checkpoint = foundation.find(config.model, weights=False)
  if checkpoint is None:
    raise ValueError(
      'fedms plan needs --model.name=<Hub id or folder>; the built-in vit has '
      'its shape from the data.'
    )
  names = tuple(map(str, range(values['classes'])))
  tokens = foundation.text_length(config.model, config.data, checkpoint)
  facts = foundation.Facts(names, tokens)
  model, tokens = foundation.loadable(config.model, checkpoint, facts), None
  if methods.reads_names(config.algorithm.name, model):
    tokens = foundation.one_token(config.prompt, len(names))
  roles = worlds.shapes(config.model, model, checkpoint, tokens)
  shapes = shaped(config, model, roles)
  found = lines(config, shapes)
  if config.privacy.on:
    found += ['', *_privacy(config, model.backbone.blocks)]
  if values['encrypted'] != 0:
    first, tokens = shapes.stages[0][1], model.backbone.cost.tokens
    found += ['', *plan_encrypted.lines(config, first, tokens, values)]
  print('\n'.join(found))
  return 0


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


def shaped(config: Config, model: Model, roles: Roles) -> Shapes:
  """The stages of a run that starts from these roles, as shapes."""
  key = jax.random.key(0)
  stages = []
  # The gate's size depends on classes only where it weighs each of them.
  for stage in methods.stages(config, model, _classes(model.backbone)):
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
  base, start = roles.frozen['base'], roles.frozen['start']
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
