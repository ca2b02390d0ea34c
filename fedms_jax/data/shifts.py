"""Clients that differ in what their inputs look like, or in what labels mean.

A feature shift changes the images of a client, a concept shift the labels of
its rows; both come after the rows are dealt, so that label skew is as it would
be without. A row that is no client's but tested by all, as those of a test
split of the data's own, is changed as a client's would be, each drawn by
itself: so pooled rows are of all kinds. Public rows stay.

Clusters that turn images by quarters are those of IFCA (Ghosh et al., arXiv
2006.04088), those that permute labels of clustered federated learning (Sattler
et al., arXiv 1910.01991). The other kinds, clients that draw by themselves, and
what pooled rows get, are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation
from fedms_jax.data import draws, lazy

Change = Callable[[np.ndarray], np.ndarray]  # uint8 [n, H, W, C], to the same
_CLASSES, _POOLED = 1, 2  # what is drawn of a stream beside clients' variants


def _as_is(images: np.ndarray) -> np.ndarray:
  return images


def _turned(quarters: int) -> Change:
  return lambda images: np.rot90(images, quarters, axes=(1, 2))


def _inverted(images: np.ndarray) -> np.ndarray:
  return 255 - images


def _blurred(passes: int) -> Change:
  """The mean over 3 x 3 pixels, so many times; edges are repeated."""

  def change(images: np.ndarray) -> np.ndarray:
    now = images.astype(np.float32)
    for _ in range(passes):
      wide = np.pad(now, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
      rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
      now = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
    return np.rint(now).astype(np.uint8)

  return change


def _colors(*order: int) -> Change:
  return lambda images: images[..., list(order)]


# Of each kind the variants that clients have, the first as the data is.
VARIANTS: dict[str, tuple[Change, ...]] = {
  'rotate': (_as_is, _turned(1), _turned(2), _turned(3)),
  'invert': (_as_is, _inverted),
  'blur': (_as_is, _blurred(1), _blurred(3)),
  'color': (_as_is, _colors(1, 2, 0), _colors(2, 0, 1)),
  'mixed': (_as_is, _turned(1), _inverted, _blurred(1)),
}


def variants(
  clients: int, groups: int, count: int, seed: int, stream: Stream
) -> np.ndarray:
  """Which of `count` variants each client has, int [clients].

  groups: 0: each client draws one by itself; else clients are dealt to so many
  groups, whose sizes differ by one at most, and group g has variant g.
  """
  rng = draws.generator(seed, stream)
  if not groups:
    return rng.integers(0, count, clients)
  return rng.permutation(np.arange(clients) % groups)


def owners(data: Federation) -> np.ndarray:
  """Whose each row is, int [M]: clients that train, then unseen ones; -1 of
  rows that are nobody's."""
  out = np.full(len(data.table.columns['labels']), -1)
  first = data.train.num_clients
  parts = (data.train, 0), (data.validation, 0), (data.test, 0)
  for part, begin in (*parts, (data.unseen, first)):
    out[part.rows] = begin + np.repeat(
      np.arange(part.num_clients), part.sizes()
    )
  return out


def _of_rows(
  data: Federation, groups: int, count: int, seed: int, stream: Stream
) -> np.ndarray:
  """The variant of each row, int [M]; 0 of rows that stay."""
  people = data.train.num_clients + data.unseen.num_clients
  whose = owners(data)
  of = variants(people, groups, count, seed, stream)
  found = np.where(whose >= 0, of[whose], 0)
  free = data.pooled[whose[data.pooled] < 0]
  rng = draws.generator(seed, stream, _POOLED)
  found[free] = of[rng.integers(0, people, len(free))]
  return found


def shifted(data: Federation, kind: str, groups: int, seed: int) -> Federation:
  """The federation whose clients' images are changed, each client's alike;
  lazy ones are when they are read.

  kind: of `VARIANTS`. groups: see `variants`.

  Raises:
    ValueError: inputs that are no images, or images that cannot be changed so.
  """
  changes = VARIANTS[kind]
  _check_groups('`shift_groups`', groups, len(changes), f'variants of {kind}')
  images = data.table.columns['inputs']
  _check_images(images, kind)
  which = _of_rows(data, groups, len(changes), seed, Stream.SHIFT)

  def changed(some: np.ndarray, of: np.ndarray) -> np.ndarray:
    for variant in np.unique(of):
      here = np.flatnonzero(of == variant)
      some[here] = changes[variant](some[here])
    return some

  if isinstance(images, lazy.Column):
    images = _lazily(images, changed, which)
  else:
    images = changed(images.copy(), which)
  columns = data.table.columns | {'inputs': images}
  return data._replace(table=data.table._replace(columns=columns))


def _lazily(column: lazy.Column, changed: Callable, which) -> lazy.Column:
  """The column whose rows are changed when they are read. changed: (images
  [n, ...], their variants [n]) -> images. which: variant of each row."""
  of = np.zeros(column.reader.count, int)
  of[column.rows] = which

  def change(rows: np.ndarray, arrays: lazy.Arrays) -> lazy.Arrays:
    return arrays | {column.name: changed(arrays[column.name], of[rows])}

  reader = lazy.Changed(column.reader, change)
  return lazy.Column(reader, column.name, column.rows)


def permuted(data: Federation, groups: int, seed: int) -> Federation:
  """The federation whose clients mean something else by the labels: those of
  group 0 what the data means, those of each other one a permutation of the
  classes that anybody trains on.

  Raises:
    ValueError: rows have no classes, or there are too many groups.
  """
  table = data.table
  if table.outputs is not None or 'targets' in table.columns:
    what = 'tokens' if table.outputs is None else table.outputs.kind
    raise ValueError(
      f'`concept_groups`={groups} permutes classes, and what is learned here '
      f'is {what}. Leave it out.'
    )
  labels = table.columns['labels']
  known = np.unique(labels[data.train.rows])
  people = data.train.num_clients + data.unseen.num_clients
  _check_groups('`concept_groups`', groups, people, 'clients')
  maps = np.tile(np.arange(len(table.label_names)), (groups, 1))
  for group in range(1, groups):
    rng = draws.generator(seed, Stream.CONCEPT, _CLASSES, group)
    maps[group, known] = rng.permutation(known)
  which = _of_rows(data, groups, groups, seed, Stream.CONCEPT)
  found = maps[which, labels].astype(labels.dtype)
  columns = table.columns | {'labels': found}
  return data._replace(table=table._replace(columns=columns))


def _check_groups(name: str, groups: int, most: int, what: str) -> None:
  if groups > most:
    raise ValueError(
      f'{name}={groups} is more than the {most} {what}; allowed: at most '
      f'{most}. Lower it.'
    )


def _check_images(images, kind: str) -> None:
  if images.ndim != 4 or images.dtype != np.uint8:
    raise ValueError(
      f'`shift`={kind} is for images, and these inputs are none. Leave it out.'
    )
  _, height, width, channels = images.shape
  if kind == 'color' and channels != 3:
    raise ValueError(
      f'`shift`=color exchanges three color channels, and these images have '
      f'{channels}. Take another shift.'
    )
  if kind in ('rotate', 'mixed') and height != width:
    raise ValueError(
      f'`shift`={kind} needs square images; got {height} x {width}. Use '
      '`image_size`, or another shift.'
    )
