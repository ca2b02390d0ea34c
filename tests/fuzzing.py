"""Inputs that nobody meant, and what a command makes of them.

An input is one of a kind and has a number, from which all of it follows, so
that a finding is repeated by its name. Commands go the way from words to a
whole world, without training: `run` says how that ended.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import random
import shutil
import signal
import struct
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

from fedms_jax.data import archive, sources
from fedms_jax.data import federation as federations
from fedms_jax.shell import config, flags, main, run, world
from tests import folders

SLOW = ('data.image_size',)  # gigabytes of pixels at its bound
SECONDS = 20  # after which an input counts as one that hangs
SMALL: tuple[str, ...] = (
  '--noprogress',
  '--data.max_rows=200',
  '--data.public_fraction=0',
  '--pretrain.mode=none',
  '--partition.name=dirichlet',
  '--partition.num_clients=3',
  '--partition.unseen_clients=0',
  '--partition.min_rows=3',
  '--cohort.size=2',
  '--algorithm.name=fedit',
)
VALUES = (
  None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63, 10**30, 0.0, 0.5,
  -1.5, 1e308, float('nan'), float('inf'), '', 'x', '1', 'nan', 'ü', 'a b',
  '../x', '/etc/passwd', '\0', '(', '([a-z]+)+!', [], [1], [None], [[1]], {},
  {'a': 1}, {'': {}}, ['x', 2],
)  # fmt: skip
WORDS = (
  *map(str, (0, 1, -1, 2, 3, 10**6, 2**31, 2**32, 2**63, 2**64, 10**30)),
  '0.5', '-0.1', '1e308', '1e-308', '5e-324', 'nan', 'inf', '-inf', '', ' ',
  'x', 'None', 'true', 'False', '1,2', ',', '1,,2', 'a|b', '{}', '{0}', '%s',
  '../x', '/', '/dev/null', '/dev/zero', '~', 'ü', '\0', '\n', 'a' * 5000, '١',
  '1_0', '0x10', '+1', '1e3',
)  # fmt: skip


class Outcome(NamedTuple):
  """How an input ended: 'accepted', 'refused', or 'wrong', and what it said."""

  kind: str
  said: str


class Hang(BaseException):
  """Not done in time; no handler of errors may take it for one."""


def run_words(words: list[str]) -> Outcome:
  """Parses the words of a command and builds its world, as `fedms` does."""

  def stop(*_):
    raise Hang(f'not done after {SECONDS} seconds')

  def build_world(parsed: config.Config) -> int:
    made = world.world(parsed)
    if made.checkpoint is not None:
      world.initial(parsed, made)
    return 0

  err, before = io.StringIO(), signal.signal(signal.SIGALRM, stop)
  signal.alarm(SECONDS)
  try:
    with (
      mock.patch.object(run, 'run', build_world),
      contextlib.redirect_stderr(err),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      code = main.main(['fedms', *words])
  except SystemExit as e:
    code = e.code
  except BaseException:
    return Outcome('wrong', traceback.format_exc(limit=-4))
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
  notes = ('fedms: note: ', 'fedms: warning: ')
  lines = [x for x in err.getvalue().splitlines() if not x.startswith(notes)]
  said = [x for x in lines if x.startswith('fedms: ')]
  if code == 0:
    return Outcome('accepted', '')
  if code == 2 and len(said) == 1 and len(said[0]) < 20_000:
    return Outcome('refused', said[0])
  return Outcome('wrong', f'exit {code}: {err.getvalue()[-2000:]}')


class Bench:
  """A folder in which inputs are made, of good ones that are made once."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    self._count = 0
    self.good = root / 'good'
    self.good.mkdir()
    for kind in folders.CONFIGS:
      (self.good / kind).mkdir()
      folders.checkpoint(self.good / kind, kind)
    folders.texts(self.good / 'texts')
    folders.pictures(self.good / 'pictures')
    made = federations.build(
      sources.load('digits', max_rows=200),
      name='dirichlet',
      num_clients=3,
      public_fraction=0,
      min_rows=3,
      unseen_clients=0,
    )
    archive.save(str(self.good / 'p.npz'), made)

  def fresh(self, like: str = '') -> pathlib.Path:
    """A new folder, a copy of a good one."""
    self._count += 1
    folder = self.root / str(self._count)
    if like:
      shutil.copytree(self.good / like, folder)
    else:
      folder.mkdir()
    return folder

  def data(self, kind: str) -> list[str]:
    """Flags of good data for a checkpoint."""
    name = 'pictures' if kind in ('vit', 'clip') else 'texts'
    return [f'--data.source={self.good / name}', '--data.train_split=test']


Maker = Callable[[random.Random, Bench], list[str]]


# Flags


def some_flags(rng: random.Random, bench: Bench) -> list[str]:
  """A few flags with values of any kind."""
  names = list(config.flatten(config.Config))
  kept = ('workdir', 'distributed.', 'partition.save')
  words = list(SMALL)
  if rng.random() < 0.3:
    kind = rng.choice(list(folders.CONFIGS))
    words = ['plan', *SMALL, f'--model.name={bench.good / kind}']
    if rng.random() < 0.3:
      words.append(f'--classes={rng.choice(WORDS)}')
  for name in rng.sample([n for n in names if not n.startswith(kept)], 2):
    words.append(f'--{name}={_word(rng, name)}')
  return words


def _word(rng: random.Random, name: str) -> str:
  """A value of a flag: one that is allowed, or any."""
  field = config.flatten(config.Config)[name]
  value: Any = field.default
  allowed = field.metadata['choices']
  if rng.random() < 0.3:
    return rng.choice(WORDS)
  if isinstance(value, bool):
    return rng.choice(('true', 'false'))
  if isinstance(value, int | float):
    return str(type(value)(value * rng.choice((0, 0.5, 1, 2, 1000))))
  return rng.choice((*allowed, value))


def numbers(rng: random.Random, bench: Bench) -> list[str]:
  """A number at one of its bounds, or beside it."""
  fields = config.flatten(config.Config)
  found = [n for n, f in fields.items() if type(f.default) in (int, float)
           and not n.startswith(('distributed.', *SLOW))]  # fmt: skip
  name = rng.choice(found)
  rule = fields[name].metadata
  bounds = [rule[k] for k in ('low', 'high', 'above') if rule[k] is not None]
  value = rng.choice(bounds or [0]) + rng.choice((0, 0, 1, -1))
  return [*SMALL, f'--{name}={value}']


def flag_file(rng: random.Random, bench: Bench) -> list[str]:
  """A file of flags, whole or spoiled."""
  path = bench.fresh() / 'x.flags'
  text = flags.to_text(config.Config()).encode()
  path.write_bytes(spoiled(rng, text))
  return [f'--flagfile={path}', *SMALL]


def spoiled(rng: random.Random, data: bytes) -> bytes:
  """Bytes of which some are cut off, changed, doubled or put in."""
  for _ in range(rng.choice((1, 1, 2))):
    at, other = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    data = rng.choice((
      data[:at],
      data[:at] + rng.randbytes(other - at)[:64] + data[at + 64 :],
      data[:at] + rng.randbytes(4) + data[at:],
      data[:other] + data[at:],
      data[:at] + data[other:],
      rng.randbytes(at % 100),
      b'',
      data,
    ))  # fmt: skip
  return data


# Checkpoints


def changed(rng: random.Random, content: Any) -> Any:
  """JSON of which one value, at any depth, is another, or is not there."""
  places = list(_places(content))
  at = rng.choice(places)
  inner = content
  for step in at[:-1]:
    inner = inner[step]
  if isinstance(inner, dict) and rng.random() < 0.2:
    del inner[at[-1]]
  else:
    inner[at[-1]] = rng.choice(VALUES)
  return content


def _places(content: Any, above: tuple = ()):
  items = content.items() if isinstance(content, dict) else enumerate(content)
  for key, value in list(items):
    yield (*above, key)
    if isinstance(value, dict | list):
      yield from _places(value, (*above, key))


def json_file(rng: random.Random, path: pathlib.Path) -> None:
  """Changes a JSON file."""
  if rng.random() < 0.2:
    path.write_bytes(spoiled(rng, path.read_bytes()))
    return
  path.write_text(json.dumps(changed(rng, json.loads(path.read_text()))))


def _run_of(kind: str, folder: pathlib.Path, bench: Bench, rng) -> list[str]:
  heads = {'gpt2': 'causal_lm', 'llama': 'causal_lm', 'clip': 'zero_shot'}
  head = rng.choice(('classification', heads.get(kind, 'classification')))
  words = [*bench.data(kind), f'--model.name={folder}', f'--model.head={head}']
  return [*SMALL, *words]


def checkpoint_json(rng: random.Random, bench: Bench) -> list[str]:
  """A JSON file of a checkpoint, changed."""
  kind = rng.choice(list(folders.CONFIGS))
  folder = bench.fresh(kind)
  names = sorted(p.name for p in folder.glob('*.json'))
  json_file(rng, folder / rng.choice([*names, 'config.json']))
  if rng.random() < 0.3:
    return ['plan', f'--model.name={folder}']
  return _run_of(kind, folder, bench, rng)


def weights(rng: random.Random, bench: Bench) -> list[str]:
  """A safetensors file whose header lies, or that is torn."""
  kind = rng.choice(list(folders.CONFIGS))
  folder = bench.fresh(kind)
  path = folder / 'model.safetensors'
  data = path.read_bytes()
  size = struct.unpack('<Q', data[:8])[0]
  header = json.loads(data[8 : 8 + size])
  how = rng.randrange(4)
  if how == 0:
    path.write_bytes(spoiled(rng, data))
  elif how == 1:
    path.write_bytes(struct.pack('<Q', rng.choice((0, 1, 2**40, 2**63))))
  elif how == 2:
    made = json.dumps(changed(rng, header)).encode()
    path.write_bytes(struct.pack('<Q', len(made)) + made + data[8 + size :])
  else:
    names = [name for name in header if name != '__metadata__']
    index = {'weight_map': dict.fromkeys(names, path.name)}
    (folder / 'model.safetensors.index.json').write_text(
      json.dumps(changed(rng, index))
    )
    if rng.random() < 0.5:
      path.rename(folder / 'part.safetensors')
  return _run_of(kind, folder, bench, rng)


def outcome(make: Maker, number: int, bench: Bench) -> Outcome:
  """Makes one input and runs it."""
  kind = make.__name__
  words = make(random.Random(f'{kind} {number}'), bench)
  found = run_words(words)
  if found.kind != 'wrong':
    return found
  return found._replace(said=f'{kind} {number}: {words}\n{found.said}')
