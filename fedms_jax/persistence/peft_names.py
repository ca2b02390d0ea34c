"""Where the LoRA of a kernel lies in the files of PEFT."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from fedms_jax.models import renaming
from fedms_jax.models.family import Model, Part

# transformers 5 has other names for the modules of ViT and DeiT than their
# files have, and PEFT does not translate them: adapters are written under both.
_NEWER = {
  '.encoder.layer.': '.layers.',
  '.attention.attention.query': '.attention.q_proj',
  '.attention.attention.key': '.attention.k_proj',
  '.attention.attention.value': '.attention.v_proj',
  '.attention.output.dense': '.attention.o_proj',
  '.intermediate.dense': '.mlp.fc1',
  '.output.dense': '.mlp.fc2',
}


class Place(NamedTuple):
  """Where the LoRA of one kernel lies: the module's name with `{}` for the
  number of the block, which part of it, and the first number."""

  target: str
  module: str
  part: Part
  first: int

  def of(self, block: int) -> str:
    """The name of the module of a block."""
    return self.module.replace('{}', str(block + self.first))


def places(model: Model, targets: Collection[str]) -> list[Place]:
  """The places of targets such as `attn/q`; none where files have none."""
  out = []
  for target in targets:
    name = renaming.source(model, f'blocks/{target}/kernel')
    if name is not None:
      module = name.tensor.removesuffix('.weight')
      out.append(Place(target, module, name.part, name.first))
  return out


def all_targets(model: Model) -> list[str]:
  """Everything in a block that has a name, as a target."""
  paths = {name.removesuffix('/kernel') for name in model.names}
  return [
    path.removeprefix('blocks/')
    for path in sorted(paths)
    if re.match(r'blocks/(.*/)?(attn|mlp)/(?!norm_)\w+$', path)
  ]


def spellings(model: Model, name: str) -> list[str]:
  """The names that a module has in different versions of transformers."""
  if model.prefix not in ('vit.', 'deit.'):
    return [name]
  newer = name
  for old, new in _NEWER.items():
    newer = newer.replace(old, new)
  return [name, newer]
