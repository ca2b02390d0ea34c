"""The built-in vision transformer as a folder of our own, and back.

model.safetensors holds the arrays by their paths, blocks stacked as they are
in memory; config.json the shape and the names of the outputs. The format is
ours: no other library reads it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.types import Backbone, Tree
from fedms_jax.models import pretrained, vit
from fedms_jax.models.transformer import TransformerConfig
from fedms_jax.models.vit import VitConfig
from fedms_jax.persistence import files, peft, tensors

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
KIND, FORMAT = 'fedms_vit', 1


class Loaded(NamedTuple):
  """A model that was written by `save`.

  params, head: as `Backbone` has them. labels: names of the outputs.
  """

  config: VitConfig
  backbone: Backbone
  params: Tree
  head: Tree
  labels: tuple[str, ...]

  def logits(self, inputs) -> jax.Array:
    """Of uint8 images [B, image, image, channels]: float32 [B, C], in the
    order of `labels`; numbers that a regression predicts are as its data has
    them."""
    features = pretrained.encode(self.backbone, self.params, inputs)
    return self.backbone.logits(self.params, self.head, features)


def save(
  folder: str | os.PathLike,
  config: VitConfig,
  params: Tree,
  head: Tree,
  labels: Sequence[str],
) -> None:
  """Writes a whole model; the folder is made if it is not there. config.json
  is written last, so that a folder with one is whole."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat = traverse.flatten_dict({**params, 'head': head}, sep='.')
  leaves = {name: np.asarray(x) for name, x in flat.items()}
  peft.write_tensors(folder / WEIGHTS, leaves)
  said = {
    'model_type': KIND,
    'format': FORMAT,
    'labels': list(labels),
    'vit': _changed(config) | {'transformer': _changed(config.transformer)},
  }
  files.write_atomic(folder / CONFIG, json.dumps(said, indent=2) + '\n')


def load(folder: str | os.PathLike) -> Loaded:
  """The model of a folder that `save` has written.

  Raises:
    ValueError: it holds no such model, one of another format, or arrays that
      do not fit its config.json.
  """
  folder = pathlib.Path(folder)
  config, labels = _config(folder / CONFIG)
  backbone = vit.backbone(config)
  found = {}
  for name, tensor in tensors.listed([folder / WEIGHTS]).items():
    found[name] = tensors.read(tensor)
  key = jax.random.key(0)
  shapes = {
    **jax.eval_shape(backbone.init, key),
    'head': jax.eval_shape(backbone.init_head, key),
  }
  wanted = traverse.flatten_dict(shapes, sep='.')
  _check(folder / WEIGHTS, wanted, found)
  leaves = {name: jnp.asarray(found[name]) for name in wanted}
  params = traverse.unflatten_dict(leaves, sep='.')
  head = params.pop('head')
  return Loaded(config, backbone, params, head, labels)


def _config(path: pathlib.Path) -> tuple[VitConfig, tuple[str, ...]]:
  """(shape, labels) of a config.json."""
  try:
    told: dict[str, Any] = files.read_json(path)
  except FileNotFoundError:
    raise ValueError(
      f'{path} does not exist. Give a folder that `fedms export` has written.'
    ) from None
  kind = told.get('model_type'), told.get('format')
  if kind != (KIND, FORMAT):
    raise ValueError(
      f'{path} has model_type and format {kind}; allowed: {(KIND, FORMAT)}.'
    )
  try:
    shape = dict(told['vit'])
    inner = TransformerConfig(**shape.pop('transformer'))
    for name in shape.keys() & {'center', 'spread'}:
      if isinstance(shape[name], list):
        shape[name] = tuple(shape[name])
    return VitConfig(inner, **shape), tuple(told['labels'])
  except (KeyError, TypeError) as e:
    raise ValueError(
      f'{path} is of another version or was changed: {e}. Export it again.'
    ) from None


def _changed(config: Any) -> dict[str, Any]:
  """The fields of a config that say something else than its defaults, which
  belong to the format."""
  return {
    f.name: getattr(config, f.name)
    for f in dataclasses.fields(config)
    if getattr(config, f.name) != f.default
  }


def _check(path: pathlib.Path, wanted: Tree, found: Tree) -> None:
  """Raises `ValueError` unless the arrays are those of the model."""
  for name in {**wanted, **found}:
    there = found[name].shape if name in found else None
    due = wanted[name].shape if name in wanted else None
    if there != due:
      raise ValueError(
        f'{path} has {name} of shape {there}, and its config.json wants {due}. '
        'Export it again.'
      )
