"""Data that nobody meant: tables, arrays, and saved partitions."""

from __future__ import annotations

import io
import json
import pathlib
import random
import struct
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from tests.fuzzing import SMALL, Bench, changed, spoiled


def table(rng: random.Random, bench: Bench) -> list[str]:
  """Rows of any shape, in any format, for a model of images or of texts."""
  folder, rows = bench.fresh(), rng.choice((0, 1, 40, 40, 40, 40))
  form = rng.choice(('csv', 'jsonl', 'json', 'parquet', 'parquet', 'arrow'))
  good = rng.random() < 0.5  # in which one thing is then wrong, or nothing
  texts = rng.random() < 0.5
  columns = {
    rng.choice(('text' if texts else 'image', 'x')): _inputs(
      rng, rows, good, texts
    ),
    rng.choice(('label', 'y')): _labels(rng, rows, good),
  }
  if rng.random() < 0.3:
    columns[rng.choice(('label', 'user', 'b', ''))] = _labels(rng, rows)
  for split in rng.choice((('train',), ('train', 'test'))):
    _written(rng, folder / split, columns, form)
  if rng.random() < 0.2:
    path = rng.choice(sorted(folder.iterdir()))
    path.write_bytes(spoiled(rng, path.read_bytes()))
  if rng.random() < 0.1:
    card = json.dumps(changed(rng, {'configs': [{'data_files': '*'}]}))
    (folder / 'README.md').write_text(f'---\n{card}\n---\n')
  words = [*SMALL, f'--data.source={folder}']
  if texts == (rng.random() < 0.9):
    words.append(f'--model.name={bench.good / "bert"}')
  elif rng.random() < 0.7:
    words.append(f'--data.image_size={rng.choice((1, 4, 9))}')
  return words


def _inputs(
  rng: random.Random, rows: int, good: bool = False, texts: bool = False
) -> list:
  if good and texts:
    return [rng.choice(('ball goal', 'bread', 'star x')) for _ in range(rows)]
  if good:
    return [_png(rng) for _ in range(rows)]
  one = rng.choice((
    lambda: _png(rng),
    lambda: {'bytes': _png(rng), 'path': 'a.png'},
    lambda: {'bytes': None, 'path': '/etc/passwd'},
    lambda: spoiled(rng, _png(rng)),
    lambda: [[rng.randrange(256) for _ in range(4)] for _ in range(4)],
    lambda: [[rng.random() for _ in range(4)] for _ in range(4)],
    lambda: [[0] * rng.randrange(1, 4)],
    lambda: [[[1, 2, 3]]],
    lambda: rng.choice(('ball goal', 'bread', 'ü', 'x' * 500)),
    lambda: rng.choice(('', ' ')),
    lambda: rng.choice(('a.png', 'b.jpg')),
    lambda: rng.random(),
    lambda: None,
  ))  # fmt: skip
  found = [one() for _ in range(rows)]
  if rows and rng.random() < 0.2:
    found[rng.randrange(rows)] = None
  return found


def _png(rng: random.Random) -> bytes:
  file = io.BytesIO()
  mode = rng.choice(('RGB', 'RGB', 'L', 'RGBA', 'P', '1', 'LA'))
  size = rng.choice(((4, 4), (4, 4), (4, 4), (6, 4), (1, 1)))
  form = 'PNG' if mode in ('RGBA', 'LA') else rng.choice(('PNG', 'GIF', 'BMP'))
  if mode in ('LA', 'P', '1') and form == 'BMP':
    form = 'PNG'
  Image.new(mode, size).save(file, form)
  return file.getvalue()


def _labels(rng: random.Random, rows: int, good: bool = False) -> list:
  if good:
    return [i % 3 for i in range(rows)]
  one = rng.choice((
    lambda i: i % 3,
    lambda i: i % 3,
    lambda i: 'abc'[i % 3],
    lambda i: -1,
    lambda i: ('NA', 'x', '')[i % 3],
    lambda i: (True, False)[i % 2],
    lambda i: i / 2,
    lambda i: [i],
    lambda i: {'a': i},
    lambda i: None,
    lambda i: 2**62 + i % 2,
    lambda i: b'x',
  ))  # fmt: skip
  return [one(i) for i in range(rows)]


def _written(
  rng: random.Random, path: pathlib.Path, columns: dict, form: str
) -> None:
  """Writes columns in one of the formats; what it cannot hold, as text."""
  if form in ('parquet', 'arrow'):
    made = pyarrow.table(
      {k: pyarrow.array(v) for k, v in columns.items()}
      if all(columns.values())
      else {k: pyarrow.array(v, pyarrow.int64()) for k, v in columns.items()}
    )
    if form == 'parquet':
      pyarrow.parquet.write_table(made, path.with_suffix('.parquet'))
    else:
      with pyarrow.ipc.new_stream(path.with_suffix('.arrow'), made.schema) as f:
        f.write_table(made)
    return
  rows = [
    dict(zip(columns, map(_plain, row), strict=True))
    for row in zip(*columns.values(), strict=True)
  ]
  if form == 'csv':
    lines = [','.join(columns), *(','.join(map(str, r.values())) for r in rows)]
    text = '\n'.join(lines)
  elif form == 'jsonl':
    text = '\n'.join(map(json.dumps, rows))
  else:
    text = json.dumps(rng.choice((rows, rows, {'data': rows}, {})))
  path.with_suffix(f'.{form}').write_text(text)


def _plain(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode('latin1')
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  return value


def arrays(rng: random.Random, bench: Bench) -> list[str]:
  """LEAF, idx and .npz files, whole or spoiled."""
  folder, draws = bench.fresh(), np.random.default_rng(rng.randrange(2**32))
  pixels = draws.integers(0, 256, (40, 4, 4), np.uint8)
  labels = (np.arange(40) % 3).astype(np.uint8)
  how = rng.randrange(3)
  if how == 0:
    users = {
      f'u{i}': {'x': (pixels[i::4].reshape(-1, 16) / 255).tolist(),
                'y': labels[i::4].tolist()}
      for i in range(4)
    }  # fmt: skip
    content = {'users': list(users), 'num_samples': [10] * 4}
    content['user_data'] = users
    for _ in range(rng.randrange(3)):
      changed(rng, content)
    (folder / 'train.json').write_text(json.dumps(content))
  elif how == 1:
    for name, values in (('images', pixels), ('labels', labels)):
      head = bytes([0, 0, 8, values.ndim])
      head += struct.pack(f'>{values.ndim}I', *values.shape)
      path = folder / f'train-{name}-idx{values.ndim}-ubyte'
      path.write_bytes(head + values.tobytes())
  else:
    kinds = (np.uint8, np.uint8, np.int64, float, object, 'U3', complex)
    found = pixels.astype(rng.choice(kinds)), labels.astype(rng.choice(kinds))
    np.savez(folder / 'a.npz', x_train=found[0], y_train=found[1])
  if rng.random() < 0.4:
    path = rng.choice(sorted(folder.iterdir()))
    path.write_bytes(spoiled(rng, path.read_bytes()))
  return [*SMALL, f'--data.source={folder}', '--model.patch=1']


def partition(rng: random.Random, bench: Bench) -> list[str]:
  """A saved partition, changed or spoiled."""
  path = bench.fresh() / 'p.npz'
  with np.load(bench.good / 'p.npz') as file:
    found = dict(file)
  name = rng.choice(sorted(found))
  if rng.random() < 0.7:
    found[name] = rng.choice((
      found[name].ravel()[:-1], found[name].ravel()[::-1],
      np.append(found[name].ravel(), found[name].ravel()[:1]),
      np.zeros((2, 2)), np.array('x'), np.array([2**40]), np.array([-5]),
      np.zeros(0, np.int32), found[name].astype(str),
    ))  # fmt: skip
  if rng.random() < 0.1:
    del found[name]
  np.savez(path, **found)
  if rng.random() < 0.2:
    path.write_bytes(spoiled(rng, path.read_bytes()))
  return [*SMALL, f'--partition.load={path}']
