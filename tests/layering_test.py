"""Imports go downward only, and the pure rooms stay pure."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / 'fedms_jax'

# What each room, a folder of the package, may import of the others.
ROOMS = {
  'core': set(),
  'models': {'core'},
  'adapters': {'core'},
  'schedules': {'core'},
  'server': {'core', 'adapters'},
  'algorithms': {'core', 'models', 'adapters', 'server'},
  'channel': {'core'},
  'data': {'core'},
  'systems': {'core'},
  'cluster': {'core'},
  'simulation': {'core', 'data', 'systems', 'cluster', 'schedules'},
  'persistence': {'core', 'models', 'simulation', 'systems', 'cluster'},
  'report': {'core', 'systems', 'persistence'},
}
PURE = {'core', 'models', 'adapters', 'server', 'channel', 'algorithms'}
IMPURE = {'os', 'time', 'random', 'logging', 'absl', 'pathlib', 'threading'}
# What runs algorithms is not known to them.
ENGINE = {'reduction', 'rounds', 'scoring', 'compile'}


def room(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).parts[0]


def imports(path: pathlib.Path):
  """(module, names) of every import, those inside functions included."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, ()
    elif isinstance(node, ast.ImportFrom):
      yield node.module, tuple(alias.name for alias in node.names)


def ours(path: pathlib.Path):
  """Modules of the package that a file imports, as paths in it."""
  for module, names in imports(path):
    if module == 'fedms_jax':
      yield from names
    elif module.startswith('fedms_jax.'):
      inside = module.removeprefix('fedms_jax.')
      for name in names or ('',):
        yield f'{inside}.{name}'


FOUND = sorted(ROOT.rglob('*.py'))
INSIDE = [p for p in FOUND if p.parent != ROOT]


def files(rooms):
  return pytest.mark.parametrize(
    'path',
    [p for p in INSIDE if room(p) in rooms],
    ids=lambda p: str(p.relative_to(ROOT)),
  )


def test_every_room_is_in_the_table():
  assert {room(path) for path in INSIDE} == {*ROOMS, 'shell', 'launch'}


@files(ROOMS)
def test_imports_go_downward(path):
  found = {module.split('.')[0] for module in ours(path)}
  assert found <= ROOMS[room(path)] | {room(path)}


def test_nothing_in_the_table_is_unused():
  used = {name: set() for name in ROOMS}
  for path in INSIDE:
    if room(path) in ROOMS:
      used[room(path)] |= {module.split('.')[0] for module in ours(path)}
  assert {k: v - {k} for k, v in used.items()} == ROOMS


@files(PURE)
def test_pure_rooms_touch_nothing_outside(path):
  assert not {m.split('.')[0] for m, _ in imports(path)} & IMPURE
  assert 'np.random' not in path.read_text()


@files({'data', 'schedules'})
def test_what_the_host_draws_needs_no_jax(path):
  assert not {m.split('.')[0] for m, _ in imports(path)} & {'jax', 'flax'}


@files({'algorithms'})
def test_what_runs_algorithms_is_not_known_to_them(path):
  found = {m.split('.')[1] for m in ours(path) if m.startswith('core.')}
  assert not found & ENGINE


@files(set(ROOMS) - {'algorithms', 'report'})
def test_the_engine_knows_no_algorithm_by_name(path):
  names = {'fedms', 'fedavg', 'scaffold', 'ditto', 'fedprox', 'hetlora'}
  code = ast.parse(path.read_text())
  words = {n.id for n in ast.walk(code) if isinstance(n, ast.Name)}
  words |= {n.attr for n in ast.walk(code) if isinstance(n, ast.Attribute)}
  assert not words & names


def _maps(path: pathlib.Path):
  """(function, transformation) of every use of a map in a file."""

  def visit(node, inside):
    for child in ast.iter_child_nodes(node):
      name = getattr(child, 'attr', getattr(child, 'id', None))
      if name in ('vmap', 'pmap', 'shard_map', 'map', 'associative_scan'):
        base = getattr(child, 'value', None)
        if name != 'map' or getattr(base, 'attr', None) == 'lax':
          yield inside, name
      function = isinstance(child, ast.FunctionDef)
      yield from visit(child, child.name if function else inside)

  return visit(ast.parse(path.read_text()), '')


def test_one_client_file_does_not_know_how_many_there_are():
  text = (ROOT / 'core' / 'client.py').read_text()
  assert 'num_clients' not in text and 'K' not in {
    n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)
  }


def test_there_is_one_map_over_clients():
  found = {
    (str(path.relative_to(ROOT)), *use)
    for path in INSIDE
    if room(path) in ('core', 'simulation', 'cluster', 'channel')
    for use in _maps(path)
  }
  assert found == {
    ('core/rounds.py', 'mapped', 'vmap'),
    ('core/meshes.py', 'mapped_over', 'shard_map'),
    ('core/seeds.py', 'per_client', 'vmap'),  # keys
    ('core/private_gradient.py', 'gradient', 'vmap'),  # rows of a client
    ('core/zeroth.py', 'estimate', 'map'),  # directions
    ('core/evolution.py', 'step', 'map'),  # points of a generation
    ('core/scoring.py', 'evaluate', 'map'),  # groups of rows
    ('core/token_logits.py', 'each', 'map'),  # chunks of tokens
    ('core/token_logits.py', '_with_slopes', 'map'),
  }
