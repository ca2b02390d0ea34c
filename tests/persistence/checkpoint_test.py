"""What comes back from a checkpoint is what went in, or an error says why."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fedms_jax.persistence import checkpoint


class Moments(NamedTuple):
  mean: dict
  count: int


def some_arrays(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'shared': {
      'blocks': {'A': rng.standard_normal((6, 2, 3)).astype(np.float32)},
      'hole': None,
      'empty': {},
      'pair': (jnp.float32(0.1), [rng.integers(0, 9, 4, dtype=np.int8)]),
    },
    'server': Moments({'A': jnp.arange(5, dtype=jnp.bfloat16) / 3}, 7),
    'odd': {
      'nan': np.array([np.nan, -0.0, np.inf], np.float32),
      'key': jax.random.key_data(jax.random.key(seed)),
      'flags': rng.random(3) < 0.5,
      'none': np.zeros((0, 3), np.float64),
      'slice': np.arange(12).reshape(3, 4)[:, ::2],
      'f8': np.ones(3, ml_dtypes.float8_e4m3fn),
    },
    'personal': {},
  }


STATE = {'stage': 1, 'round': 3, 'queue': [0.1, 1 / 3], 'name': 'ü', 'no': None}


def bits(tree):
  leaves, treedef = jax.tree.flatten(tree)
  arrays = [np.asarray(leaf) for leaf in leaves]
  return treedef, [(a.dtype, a.shape, a.tobytes()) for a in arrays]


@pytest.fixture
def saver(tmp_path):
  saver = checkpoint.Checkpointer(tmp_path / 'checkpoints', keep=2)
  yield saver
  saver.close()


def folder_of(saver, step, tmp_path):
  saver.wait()
  return tmp_path / 'checkpoints' / str(step)


def test_an_empty_folder_has_nothing(saver):
  assert saver.restore_latest() is None
  assert saver.oldest() is None


def test_round_trip_is_bitwise(saver, tmp_path):
  arrays = some_arrays()
  saver.save(3, arrays, STATE)
  step, restored, state = saver.restore_latest(some_arrays(1))
  assert (step, state) == (3, STATE)
  assert bits(restored) == bits(arrays)
  # So does a new process, which knows the folder only.
  saver.wait()
  other = checkpoint.Checkpointer(tmp_path / 'checkpoints', keep=2)
  assert bits(other.restore_latest(some_arrays(1))[1]) == bits(arrays)
  other.close()


def test_the_template_may_depend_on_the_state(saver):
  saver.save(0, {'a': {'x': np.ones(3)}}, {'width': 3})
  _, arrays, _ = saver.restore_latest(
    lambda state: {'a': {'x': np.zeros(state['width'])}}
  )
  assert bits(arrays) == bits({'a': {'x': np.ones(3)}})


def test_without_a_template_leaves_have_their_paths(saver):
  arrays = {'a': {'x': {'y': np.arange(3)}, 'z': [np.ones(2)]}}
  saver.save(0, arrays, {})
  _, flat, _ = saver.restore_latest()
  assert bits(flat['a']) == bits(
    {"['x']['y']": np.arange(3), "['z'][0]": np.ones(2)}
  )


def test_later_changes_of_what_was_given_are_not_saved(saver):
  array, state = np.zeros(100_000), {'round': [0]}
  saver.save(0, {'a': {'x': array}}, state)
  array += 1
  state['round'].append(1)
  _, arrays, restored = saver.restore_latest({'a': {'x': array}})
  assert not arrays['a']['x'].any()
  assert restored == {'round': [0]}


def test_the_newest_are_kept(saver):
  for step in range(5):
    saver.save(step, {'a': np.full(3, step)}, {'step': step})
    assert saver.oldest() is None or saver.oldest() <= step
  saver.wait()
  assert saver.oldest() == 3
  assert saver.restore_latest({'a': np.zeros(3, int)})[0] == 4


def test_a_step_is_saved_once(saver):
  saver.save(1, {'a': np.zeros(3)}, {})
  with pytest.raises(ValueError, match='already exists'):
    saver.save(1, {'a': np.zeros(3)}, {})


@pytest.mark.parametrize(
  ('template', 'path'),
  [
    ({'a': {'x': np.zeros(4, np.float32)}}, r"a\['x'\].*\[3\].*\[4\]"),
    ({'a': {'x': np.zeros(3, np.float64)}}, r"a\['x'\].*float32.*float64"),
    ({'a': {'y': np.zeros(3, np.float32)}}, r"a\['x'\].*absent in this run"),
    ({'a': {}}, r"a\['x'\].*absent in this run"),
    (
      {'a': {'x': np.zeros(3, np.float32)}, 'b': np.zeros(1)},
      'b is absent there',
    ),
  ],
)
def test_a_template_that_does_not_fit_is_refused(saver, template, path):
  saver.save(0, {'a': {'x': np.zeros(3, np.float32)}}, {})
  with pytest.raises(ValueError, match=path):
    saver.restore_latest(template)


def test_what_is_no_array_is_refused(saver):
  with pytest.raises(ValueError, match=r"a\['x'\]"):
    saver.save(0, {'a': {'x': 'text'}}, {})


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  data = bytearray(path.read_bytes())
  if data:
    data[len(data) // 2] ^= 4
  path.write_bytes(data)


@pytest.mark.parametrize('damage', [truncate, flip, pathlib.Path.unlink])
def test_damage_to_any_file_is_an_error_or_without_effect(tmp_path, damage):
  whole = tmp_path / 'whole'
  arrays = some_arrays()
  saver = checkpoint.Checkpointer(whole, keep=2)
  saver.save(0, {'old': np.zeros(1)}, {})
  saver.save(1, arrays, STATE)
  saver.close()
  errors = 0
  files = [path for path in (whole / '1').rglob('*') if path.is_file()]
  for i, path in enumerate(files):
    copy = tmp_path / str(i)
    shutil.copytree(whole, copy)
    damage(copy / path.relative_to(whole))
    reader = checkpoint.Checkpointer(copy, keep=2)
    try:
      step, restored, state = reader.restore_latest(arrays)
      assert (step, state, bits(restored)) == (1, STATE, bits(arrays))
    except ValueError as error:
      errors += 1
      assert str(copy / '1') in str(error)
      assert 'goes on from step 0' in str(error)
      # What the message says to do helps.
      shutil.rmtree(copy / '1')
      other = checkpoint.Checkpointer(copy, keep=2)
      assert other.restore_latest({'old': np.zeros(1)})[0] == 0
      other.close()
    reader.close()
  assert 1 < errors < len(files)  # some files no reader needs


def manager(folder):
  """Orbax alone, with nothing of ours."""
  return ocp.CheckpointManager(
    folder,
    item_handlers={
      'arrays': ocp.StandardCheckpointHandler(),
      'state': ocp.JsonCheckpointHandler(),
    },
  )


def test_orbax_reads_a_checkpoint_without_us(saver, tmp_path):
  arrays = {'a': {'x': np.arange(3, dtype=np.int16)}}
  saver.save(7, arrays, STATE)
  saver.wait()
  with manager(tmp_path / 'checkpoints') as reader:
    assert reader.latest_step() == 7
    items = ocp.args.Composite(
      arrays=ocp.args.StandardRestore(), state=ocp.args.JsonRestore()
    )
    found = reader.restore(7, args=items)
  assert found['state']['state'] == STATE
  assert found['state']['layout'] == [['a', "['x']", 'int16', [3]]]
  packed = np.asarray(found['arrays']['packed'])
  assert packed[:6].tobytes() == arrays['a']['x'].tobytes()


def test_a_checkpoint_of_the_manager_of_orbax_is_read(saver, tmp_path):
  """As earlier versions wrote it."""
  arrays = some_arrays()
  layout, packed = checkpoint._pack(arrays)
  body = {'layout': layout, 'state': STATE}
  crc32 = checkpoint._checksum(json.dumps(body), packed)
  with manager(tmp_path / 'checkpoints') as writer:
    items = ocp.args.Composite(
      arrays=ocp.args.StandardSave({'packed': packed}),
      state=ocp.args.JsonSave({'crc32': crc32, **body}),
    )
    writer.save(5, args=items)
  step, restored, state = saver.restore_latest(some_arrays(1))
  assert (step, state, bits(restored)) == (5, STATE, bits(arrays))


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
  code = (
    'import numpy as np\nfrom fedms_jax.persistence import checkpoint\n'
    f'saver = checkpoint.Checkpointer({str(tmp_path)!r}, keep=2)\n'
    'for step in range(10**6):\n'
    '  saver.save(step, {"a": np.full(200_000, step)}, {"step": step})\n'
    '  print(step, flush=True)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  for _ in range(6):
    started = int(process.stdout.readline())
  process.kill()
  assert process.wait() == -signal.SIGKILL
  process.stdout.close()
  for end in ('tmp', 'old', 'orbax-checkpoint-tmp'):
    (tmp_path / f'{started + 9}.{end}').mkdir()
  saver = checkpoint.Checkpointer(tmp_path, keep=2)
  step, arrays, state = saver.restore_latest({'a': np.zeros(200_000, int)})
  assert step >= started - 1
  assert state == {'step': step}
  assert (arrays['a'] == step).all()
  # And the run goes on from there.
  saver.save(step + 1, {'a': np.zeros(1)}, {})
  saver.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    str(step),
    str(step + 1),
  ]
