"""Imports go downward only, and the pure layers stay pure."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / 'fedms_jax'

# What each room may import of the package, by the first part of its path.
# A room is a file of the package, or a folder with all its files.
PURE = {
  'base': set(),
  'tree': {'base'},
  'rng': set(),
  'metrics': set(),
  'programs': set(),
  'models': {'base', 'tree', 'rng', 'models'},
  'adapters': {'base', 'tree', 'rng', 'models', 'adapters', 'data'},
  'picks': {'base'},
  'activation': {'base', 'tree', 'rng', 'picks'},
  'gate': {'base', 'tree', 'rng'},
  'losses': {'base', 'tree'},
  'aggregation': {'base', 'tree', 'adapters'},
  'robust': {'base', 'tree'},
  'optimizers': {'base', 'tree'},
  'columns': {'base', 'tree'},
  'client': {'base', 'tree', 'rng', 'metrics', 'activation', 'columns'},
  'reduction': {'base', 'tree', 'programs'},
  'rounds': {'base', 'tree', 'rng', 'programs', 'client', 'reduction'},
  'scoring': {'base', 'tree', 'metrics', 'programs', 'columns', 'rounds'},
}  # fmt: skip
# What runs algorithms is not known to them.
ENGINE = {'reduction', 'rounds', 'scoring', 'programs'}
PURE['algorithms'] = set(PURE) - ENGINE | {'algorithms'}
HOST = {
  'data': {'base', 'data'},
  'systems': {'base', 'tree', 'systems'},
  'report': {'report', 'simulation'},
  'simulation': set(PURE) - {'algorithms'} | {'data', 'systems', 'simulation'},
}
# The shell of the command line knows everything below it.
SHELL = (
  'build',
  'catalog',
  'commands',
  'config',
  'flags',
  'foundation',
  'main',
  'origin',
)

# Files of host code in pure rooms: they read and write checkpoints.
# Commands of the shell that live beside what they run.
COMMANDS = {'simulation/command.py'}
FILES = {'models/checkpoints.py', 'models/tensors.py', 'adapters/peft.py'}
IMPURE = {'os', 'time', 'random', 'logging', 'absl', 'pathlib', 'threading'}


def room(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imports(path: pathlib.Path):
  """(module, names) of every import, those inside functions included."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, ()
    elif isinstance(node, ast.ImportFrom):
      yield node.module, tuple(alias.name for alias in node.names)


def ours(path: pathlib.Path):
  """Rooms of the package that a file imports."""
  for module, names in imports(path):
    if module == 'fedms_jax':
      yield from names
    elif module.startswith('fedms_jax.'):
      yield module.split('.')[1]


FOUND = sorted(p for p in ROOT.rglob('*.py') if p.name != '__init__.py')
BELOW = PURE | HOST


def test_every_room_is_in_the_table():
  rooms = {room(path) for path in FOUND}
  assert set(BELOW) <= rooms
  assert set(SHELL) <= rooms


@pytest.mark.parametrize(
  'path', [p for p in FOUND if room(p) in BELOW],
  ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_imports_go_downward(path):
  if str(path.relative_to(ROOT)) in COMMANDS:
    return
  assert set(ours(path)) <= BELOW[room(path)]


@pytest.mark.parametrize(
  'path', [p for p in FOUND if room(p) in PURE],
  ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_pure_layers_touch_nothing_outside(path):
  if str(path.relative_to(ROOT)) in FILES or room(path) == 'programs':
    return
  assert not {m.split('.')[0] for m, _ in imports(path)} & IMPURE
  text = path.read_text()
  assert 'np.random' not in text or room(path) in ('activation', 'picks')


@pytest.mark.parametrize(
  'path', [p for p in FOUND if room(p) == 'data'],
  ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_data_needs_no_jax(path):
  assert not {m.split('.')[0] for m, _ in imports(path)} & {'jax', 'flax'}


def test_the_engine_knows_no_algorithm_by_name():
  names = ('fedms', 'fedavg', 'scaffold', 'ditto', 'fedprox', 'hetlora')
  files = [p for p in FOUND if room(p) in PURE and room(p) != 'algorithms']
  files.append(ROOT / 'simulation' / 'driver.py')
  for path in files:
    code = ast.parse(path.read_text())
    words = {n.id for n in ast.walk(code) if isinstance(n, ast.Name)}
    words |= {n.attr for n in ast.walk(code) if isinstance(n, ast.Attribute)}
    assert not words & set(names), path


def test_one_client_file_does_not_know_how_many_there_are():
  text = (ROOT / 'client.py').read_text()
  assert 'vmap' not in text and 'num_clients' not in text
  mapped = [p for p in FOUND if 'jax.vmap(function)' in p.read_text()]
  assert [p.name for p in mapped] == ['rounds.py']
