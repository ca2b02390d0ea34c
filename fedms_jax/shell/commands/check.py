"""`fedms check`: whether a run could start, found out without training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fedms_jax.cluster.placement import Placement
from fedms_jax.core import tree
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import private
from fedms_jax.shell import build, flags, privacy, privacy_report, written
from fedms_jax.shell import run as runner
from fedms_jax.shell import world as worlds
from fedms_jax.shell.commands import plan
from fedms_jax.shell.config import Config
from fedms_jax.systems.units import in_bytes


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Reads and checks what a run would before its first round, and says what it
  found; nothing is written, compiled or trained.

  Raises:
    ValueError: what the run would be refused for.
  """
  before = time.monotonic()
  config, _ = flags.parse_command(words, extra)
  found = [*_folder(config)]
  written.check(config)
  build.options(config)
  Placement(config.engine.devices, config.engine.model_axis)
  # Without the folder, or a new tokenizer would be written to it.
  world = worlds.world(dataclasses.replace(config, workdir=''))
  runner.check_shares(config, world)
  runner.describe(world.data)
  found += [*_model(config, world), *_stages(world), *_privacy(config, world)]
  print('\n'.join(found))
  print(f'could start; checked in {time.monotonic() - before:.1f} s')
  return 0


def _folder(config: Config) -> list[str]:
  """What --workdir holds."""
  if not config.workdir:
    return ['no --workdir: nothing would be kept']
  folder = Workdir(Path(config.workdir), True, None)
  kept = flags.as_kept(flags.to_text(config), folder.flags)
  folder.check_flags(kept)
  if not folder.flags.exists():
    return []
  if not config.resume:
    raise ValueError(
      f'--workdir={config.workdir} holds a run of the same flags already. Use '
      '--resume to go on with it, or choose another folder.'
    )
  return [f'{config.workdir} holds this run, which would go on']


def _model(config: Config, world: worlds.World) -> list[str]:
  """The model, by its shapes; and that those of all stages fit together."""
  backbone = world.model.backbone
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  plan.of_world(config, world)
  return [
    f'{config.model.name}: {tree.size(shapes):,} parameters in '
    f'{backbone.blocks} blocks of width {backbone.width}, '
    f'{in_bytes(tree.nbytes(shapes))}'
  ]


def _stages(world: worlds.World) -> list[str]:
  return [
    f'stage {stage.name}: {"up to " if stage.open else ""}{stage.rounds} rounds'
    for stage in world.stages
  ]


def _privacy(config: Config, world: worlds.World) -> list[str]:
  """What a private run would have spent at its end."""
  found = privacy.plan(config, world.stages)
  if found is None:
    return []
  rows = world.data.train.sizes()
  return private.lines(privacy_report.planned(config, found, rows))
