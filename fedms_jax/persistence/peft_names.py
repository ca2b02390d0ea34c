"""Where the LoRA of a kernel lies in the files of PEFT."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.core import tree
from fedms_jax.models import renaming
from fedms_jax.models.family import Model, Name, Part
from fedms_jax.persistence import model_files, tensors
from fedms_jax.persistence.model_files import Checkpoint

ROOT = 'base_model.model.'  # what PEFT puts before all names

# transformers 5 has other names for the modules of these families than their
# files have, and PEFT does not translate them: adapters are written under both.
_DINO = {
  '.attention.attention.query': '.attention.q_proj',
  '.attention.attention.key': '.attention.k_proj',
  '.attention.attention.value': '.attention.v_proj',
  '.attention.output.dense': '.attention.o_proj',
}
_VIT = _DINO | {
  '.encoder.layer.': '.layers.',
  '.intermediate.dense': '.mlp.fc1',
  '.output.dense': '.mlp.fc2',
}
_NEWER = {
  'vit.': _VIT,
  'deit.': _VIT,
  'dinov2.': _DINO,
  'dinov2_with_registers.': _DINO,
}


# Version 5 leaves them out, but not where a projection follows.
_TOWERS = ('vision_model.', 'text_model.')


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


def _beside_head(model: Model) -> list[str]:
  """The tensors of frozen layers that PEFT takes for the head's, because the
  names of their modules end as its name does: DistilBERT's pre_classifier ends
  in classifier."""
  name = renaming.source(model, 'head/kernel')
  if name is None:
    return []
  head = name.tensor.removesuffix('.weight')
  shapes = jax.eval_shape(model.backbone.init, jax.random.key(0))
  final = tree.flat({'final': shapes['final']})
  named = {k: x for k, x in final.items() if renaming.source(model, k)}
  found = [piece.tensor for piece in renaming.pieces(model, named)]
  return [t for t in found if t.rpartition('.')[0].endswith(head)]


def frozen_beside(model: Model, checkpoint: Checkpoint) -> dict[str, Any]:
  """What PEFT takes for parts of the head and saves with it, as the base
  model has it."""
  found = model_files.named(model, checkpoint)
  return {
    name: tensors.read(found[name]).astype(np.float32)
    for name in _beside_head(model)
    if name in found
  }


def all_targets(model: Model) -> list[str]:
  """Everything in a block that has a name, as a target."""
  paths = {name.removesuffix('/kernel') for name in model.names}
  return [
    path.removeprefix('blocks/')
    for path in sorted(paths)
    if re.match(r'blocks/(.*/)?(attn|mlp)/(?!norm_)\w+$', path)
  ]


def spellings(model: Model, name: str, bare: bool = False) -> list[str]:
  """The names that a module has in different versions of transformers. bare: in
  the model without a head."""
  if model.prefix in _TOWERS:
    return [name, name.removeprefix(model.prefix)]
  newer = name
  for old, new in _NEWER.get(model.prefix, {}).items():
    newer = newer.replace(old, new)
  found = list(dict.fromkeys((name, newer)))
  return [x.removeprefix(model.prefix) for x in found] if bare else found


def short_names(
  names: Collection[str], modules: Collection[str], prefix: str
) -> list[str]:
  """The part of the names behind the number of the block, if no other module
  ends so; else the names."""
  ends = {re.sub(r'^.*?\.\d+\.', '', name) for name in names}
  meant = {m for m in modules if any(m.endswith(f'.{end}') for end in ends)}
  # Files of the bare model leave the prefix out, and so may the names.
  known = all({m, prefix + m, m.removeprefix(prefix)} & {*names} for m in meant)
  return sorted(ends if known else names)


def source(model: Model, path: str) -> Name:
  """Where a leaf lies in the files of the base model."""
  found = renaming.source(model, path)
  if found is None:
    raise ValueError(
      f'files of this family have no module for {path!r}, so an adapter in '
      'the format of PEFT cannot hold it.'
    )
  return found
