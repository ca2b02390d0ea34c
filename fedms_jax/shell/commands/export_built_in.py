"""What `fedms export` writes of a run of the built-in model."""

from __future__ import annotations

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.types import Tree
from fedms_jax.persistence import own_model
from fedms_jax.persistence.snapshot import Snapshot
from fedms_jax.shell import build, built_in
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.shell.world import World
from fedms_jax.systems.units import in_bytes


def whole(
  config: Config, world: World, snapshot: Snapshot, model, parts: Tree, out: str
) -> None:
  """Writes the whole model, with LoRA in its kernels.

  Raises:
    ValueError: the method trains something beside the model.
  """
  if own := parts.keys() - {'base', 'blocks', 'head'}:
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} trains '
      f'{", ".join(sorted(own))} beside the model, which is no part of it. Use '
      '--what=global or client:k.'
    )
  base = parts.get('base') or _base(config, world, snapshot)
  if 'blocks' in parts:
    scale = build.lora_spec(config.lora).scale
    base = base | {'blocks': lora.merge(base['blocks'], parts['blocks'], scale)}
  m = config.model if model is world.model else config.first_model
  names = world.data.table.output_names
  own_model.save(out, built_in.shape(m, world.data), base, parts['head'], names)
  size = in_bytes(tree.nbytes(base))
  print(
    f'wrote {own_model.WEIGHTS} and {own_model.CONFIG} to {out}, {size}; '
    'fedms_jax.persistence.own_model.load reads them'
  )


def _base(config: Config, world: World, snapshot: Snapshot) -> Tree:
  """The base model of the run: as it began, or as its server trained it."""
  if worlds.ahead(config) == 'full':
    shapes = worlds.pretrained_shapes(config, world)
    return snapshot.pretrained(shapes, dict)['base']
  return worlds.initial(config, world).frozen['base']
