"""Sizes that cannot fit, refused before anything of them is allocated.

Lower bounds of what a run takes: what passes here may still not fit, what is
refused here never would.
"""

from __future__ import annotations

from fedms_jax.cluster import memory
from fedms_jax.core.types import Backbone, Table
from fedms_jax.data import sources
from fedms_jax.shell.config import (
  ClientConfig,
  DataConfig,
  ModelConfig,
  PretrainConfig,
)
from fedms_jax.systems.units import in_bytes

_FLOAT = 4  # bytes
_SIDE = 8  # of the embedded images, in pixels


def check_flags(d: DataConfig, m: ModelConfig, c: ClientConfig) -> None:
  """Refuses what flags alone say: embedded data, and the built-in model.

  Raises:
    ValueError: it takes more memory than is free.
  """
  side = d.image_size or _SIDE
  if d.source == 'synthetic':
    rows = min(d.max_rows or d.synthetic_rows, d.synthetic_rows)
    # Drawn as float64, then resized.
    _check(
      max(d.synthetic_rows * _SIDE**2 * 8, rows * side**2),
      f'--data.synthetic_rows={d.synthetic_rows} images of {side} x {side}',
      'Lower --data.synthetic_rows or --data.image_size.',
    )
    _check(
      d.synthetic_classes * _SIDE**2 * 8,
      f'--data.synthetic_classes={d.synthetic_classes}',
      'Lower it.',
    )
  elif d.source in sources.EMBEDDED:
    rows = min(d.max_rows or 1797, 1797)
    _check(
      rows * side**2,
      f'{rows} images of --data.image_size={side}',
      'Lower it.',
    )
  if m.built_in and d.image_size:
    tokens = (d.image_size // m.patch) ** 2
    _check(
      2.0 * _FLOAT * c.batch_size * tokens * m.width,
      f'{tokens} patches of --data.image_size={d.image_size} by --model.patch='
      f'{m.patch}, in batches of {c.batch_size},',
      'Lower --data.image_size or raise --model.patch.',
    )
  if m.new:
    block = (4 * m.width + 2 * m.mlp_width) * m.width
    _check(
      _FLOAT * m.blocks * block,
      f'a model of --model.width={m.width}, --model.mlp_ratio='
      f'{m.mlp_ratio:g} and --model.blocks={m.blocks}',
      'Lower one of them.',
    )


def check_table(table: Table) -> None:
  """Refuses rows that do not fit, by their shapes, before they are read."""
  for name, column in table.columns.items():
    rows, *shape = column.shape
    size = rows * column.dtype.itemsize
    for length in shape:
      size *= length
    _check(
      size,
      f'{rows} rows of {name!r}, {" x ".join(map(str, shape))} each,',
      'Lower --data.max_rows, --data.image_size or --data.max_tokens.',
    )


def check_steps(
  c: ClientConfig, p: PretrainConfig, m: ModelConfig, model: Backbone
) -> None:
  """Refuses batches of which one block does not fit."""
  batches = {'--client.batch_size': c.batch_size}
  if p.mode == 'full' or (p.mode == 'auto' and m.new):
    batches |= {'--pretrain.batch_size': p.batch_size}
  for flag, batch in batches.items():
    _check(
      batch * model.cost.activation,
      f'{flag}={batch}, {in_bytes(model.cost.activation)} each and block,',
      'Lower it.',
    )


def _check(size: float, what: str, how: str) -> None:
  free = memory.host()
  if size > free:
    raise ValueError(
      f'{what} needs {in_bytes(size)} of memory and more; {in_bytes(free)} are '
      f'free. {how}'
    )
