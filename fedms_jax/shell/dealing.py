"""The data of a run: found, read as the model asks, dealt to the clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedms_jax.core.types import Federation
from fedms_jax.data import classes, inputs, shifts, sources, text
from fedms_jax.data import federation as federations
from fedms_jax.shell import given, plugged, plugins
from fedms_jax.shell.config import DataConfig, PartitionConfig


def federation(
  d: DataConfig,
  p: PartitionConfig,
  *,
  seed: int,
  progress: bool = False,
  reading: Mapping[str, Any] | None = None,
  marked: bool = False,
) -> Federation:
  """Finds the data and deals it to the clients. Inputs that are dear to read
  are lazy (`data/lazy.py`). reading: what the model asks, see
  `foundation.reading`. marked: public rows are drawn before texts are packed,
  so that they are those of `public_texts`."""
  source = _source(d, seed, progress, reading)
  if d.pack:
    if marked:
      source = source._replace(public=_public(source, d, seed))
    source = text.pack(source, d.max_tokens)
  return _dealt(source, d, p, seed)


def public_texts(
  d: DataConfig, *, seed: int, reading: Mapping[str, Any]
) -> list[str]:
  """The texts of the public rows. reading: see `federation`; of a text that
  has another one beside it, both."""
  source = _source(d, seed, False, reading)
  column = source.table.columns['inputs']
  reader = getattr(column, 'reader', None)
  if not isinstance(reader, inputs.Texts):
    raise ValueError(
      f'--data.source={d.source} has no texts. Name one that has, or a model '
      'of images.'
    )
  rows = np.sort(_public(source, d, seed))
  return reader.strings(rows)


def _public(source: sources.Source, d: DataConfig, seed: int) -> np.ndarray:
  """The public rows of a source."""
  novel = classes.novel(source, d.novel_classes, d.novel_fraction)
  return classes.divided(
    source, d.public_fraction, d.public_classes, novel, seed
  )[0]


def _source(
  d: DataConfig, seed: int, progress: bool, reading: Mapping[str, Any] | None
) -> sources.Source:
  """The examples, as the model reads them."""
  own = plugins.find('sources', d.source)
  if own is not None:
    return given.source(own, d, seed, progress, reading or {})
  return sources.load(
    d.source,
    subset=d.subset,
    revision=d.revision,
    train_split=d.train_split,
    test_split=d.test_split,
    input_column=d.input_column,
    label_column=d.label_column,
    group_column=d.group_column,
    image_size=d.image_size,
    max_rows=d.max_rows,
    seed=seed,
    synthetic_rows=d.synthetic_rows,
    synthetic_classes=d.synthetic_classes,
    progress=progress,
    **(reading or {}),
  )


def _dealt(
  source: sources.Source, d: DataConfig, p: PartitionConfig, seed: int
) -> Federation:
  """The examples, divided among the server and the clients, who may differ."""
  data = federations.build(
    source,
    num_clients=p.num_clients,
    unseen_clients=p.unseen_clients,
    name=plugged.partition(p.name),
    alpha=p.alpha,
    classes_per_client=p.classes_per_client,
    sigma=p.sigma,
    min_rows=p.min_rows,
    validation=p.validation,
    test=p.test,
    public_fraction=d.public_fraction,
    public_classes=d.public_classes,
    novel_classes=d.novel_classes,
    novel_fraction=d.novel_fraction,
    public_shift=d.public_shift,
    seed=seed,
    save=p.save,
    load=p.load,
  )
  if d.shift:
    data = shifts.shifted(data, d.shift, d.shift_groups, seed)
  if d.concept_groups:
    data = shifts.permuted(data, d.concept_groups, seed)
  return data
