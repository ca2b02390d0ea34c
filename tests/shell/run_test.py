"""The `fedms` command as a user types it."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fedms_jax.persistence.writers import timeless
from fedms_jax.shell import main

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = [
  'fedms',
  f'--flagfile={ROOT}/launch/presets/smoke.flags',
  '--noprogress',
  '--notensorboard',
]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """A compilation cache that the runs of this module share."""
  import jax

  folder = str(tmp_path_factory.mktemp('cache'))
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  yield folder
  jax.config.update('jax_compilation_cache_dir', None)


@pytest.fixture(scope='module')
def finished(cache, tmp_path_factory):
  """The workdir of an uninterrupted smoke run."""
  folder = tmp_path_factory.mktemp('runs') / 'whole'
  assert main.main([*SMOKE, f'--workdir={folder}']) == 0
  return folder


def summary(folder):
  return timeless(json.loads((folder / 'summary.json').read_text()))


def test_a_folder_says_how_rows_were_dealt_where_no_flag_does(finished):
  assert '--partition.name=\n' in (finished / 'flags.txt').read_text()
  outline = json.loads((finished / 'partition.json').read_text())
  assert outline['dealt'] == 'classes'
  held = [sum(n > 0 for n in rows) for rows in outline['train']]
  assert max(held) == 3


def lines(folder):
  text = (folder / 'metrics.jsonl').read_text()
  return [timeless(json.loads(line)) for line in text.splitlines()]


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--data.source=digitz'], 'digits'),
    (['--data.source={tmp}/absent.csv'], 'absent.csv'),
    (['--data.source={csv}', '--data.label_column=klass'], 'class'),
    (['--partition.alpha=0'], 'partition.alpha'),
    (['--partition.min_rows=400'], 'min_rows'),
    (['--schedule.start=3'], '2 blocks'),
    (['--schedule.budgets=1,5'], '1 to 2'),
    (['--schedule=manual'], 'schedule.depths'),
    (['--lora.rank=17'], '1 to 16'),
    (['--lora.targets=attn/q,mlp/upp'], "Did you mean 'mlp/up'?"),
    (['--cohort.size=7'], 'partition.num_clients'),
    (['--model.patch=3'], 'model.patch'),
    (['--workdir={csv}'], 'workdir'),
    (['--lora.rnk=2'], 'lora.rank'),
    (['--data.shift=color'], 'three color channels'),
    (['--data.shift_groups=2'], '--data.shift.'),
    (['--data.shift=invert', '--data.shift_groups=3'], 'at most 2'),
    (['--data.concept_groups=1'], '2 and more'),
    (['--algorithm.name=fedmx'], 'fedms'),
    (['--distributed.processes=2', '--distributed.process_id=2',
      '--distributed.coordinator=localhost:1'], '0 to 1'),
    (['--engine.devices=99'], '--engine.devices=99'),
    (['--client.learning_rate=1e30', '--client.optimizer=sgd',
      '--client.max_norm=0'], '--on_nan=skip'),
  ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_exit_code_2(
  cache, flags, words, tmp_path, capsys
):
  csv = tmp_path / 'data.csv'
  csv.write_text('text,class\nhello,1\n')
  flags = [f.format(tmp=tmp_path, csv=csv) for f in flags]
  code = main.main([*SMOKE, *flags])
  message = capsys.readouterr().err
  assert code == 2
  assert words in message
  assert 'Traceback' not in message
  assert sorted(os.listdir(tmp_path)) == ['data.csv']


def test_a_run_leaves_what_the_readme_names(finished):
  found = summary(finished)
  readme = (ROOT / 'README.md').read_text()
  for key in json.loads((finished / 'summary.json').read_text()):
    assert f'`{key}`' in readme, key
  for scores in found['models'].values():
    assert {'own_mean', 'own_worst_decile', 'own_std', 'pooled'} <= set(scores)
  assert len(lines(finished)) == 6
  assert (finished / 'flags.txt').exists()


def test_the_flags_of_a_run_repeat_it_bitwise(finished, tmp_path):
  flags = ['fedms', f'--flagfile={finished}/flags.txt']
  assert main.main([*flags, f'--workdir={tmp_path}/again']) == 0
  assert summary(tmp_path / 'again') == summary(finished)
  assert lines(tmp_path / 'again') == lines(finished)


def test_a_workdir_is_not_used_twice_by_mistake(finished, capsys):
  assert main.main([*SMOKE, f'--workdir={finished}']) == 2
  assert '--resume' in capsys.readouterr().err
  other = [*SMOKE, f'--workdir={finished}', '--seed=4', '--resume']
  assert main.main(other) == 2
  message = capsys.readouterr().err
  assert '--seed=0' in message and '--seed=4' in message


def start(cache, folder, *flags, **environment):
  env = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    **environment,
  }
  return subprocess.Popen(
    [sys.executable, '-m', 'fedms_jax', *SMOKE[1:], '--resume',
     f'--workdir={folder}', *flags],
    env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def wait_for_lines(process, folder, count):
  path = folder / 'metrics.jsonl'
  while process.poll() is None:
    if path.exists() and path.read_text().count('\n') >= count:
      return
    time.sleep(0.01)


@pytest.mark.parametrize(
  ('number', 'code'),
  [
    (signal.SIGKILL, -9),
    pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
  ],
)
def test_a_run_that_was_killed_ends_as_if_it_had_not(
  finished, cache, tmp_path, number, code
):
  """--resume on an empty folder starts afresh; then it goes on."""
  folder = tmp_path / 'run'
  process = start(cache, folder)
  wait_for_lines(process, folder, 4)
  process.send_signal(number)
  message = process.communicate()[1]
  assert process.returncode == code, message
  assert not (folder / 'summary.json').exists()
  resumed = start(cache, folder)
  assert resumed.wait() == 0, resumed.stderr.read()
  assert summary(folder) == summary(finished)
  assert lines(folder) == lines(finished)


def test_a_run_goes_on_by_the_options_that_users_compile_by(
  finished, cache, tmp_path
):
  """The other tests leave their programs to XLA. All rounds are done, so that
  it reads its checkpoint, as all that go on, and evaluates."""
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  (folder / 'summary.json').unlink()
  resumed = start(cache, folder, XLA_FLAGS='')
  assert resumed.wait() == 0, resumed.stderr.read()
  assert lines(folder) == lines(finished)
  assert summary(folder).keys() == summary(finished).keys()


def test_a_stopped_run_without_a_workdir_does_not_claim_to_be_saved(
  cache, capsys, monkeypatch
):
  from fedms_jax.simulation import observer

  monkeypatch.setattr(observer.Signals, 'stop_requested', lambda self: True)
  assert main.main(SMOKE) == 143
  assert 'nothing is kept' in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(finished, cache, tmp_path, capsys):
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  newest = max((folder / 'checkpoints').iterdir(), key=lambda p: int(p.name))
  for path in newest.rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  flags = [*SMOKE, f'--workdir={folder}', '--resume']
  assert main.main(flags) == 2
  message = capsys.readouterr().err
  assert str(newest) in message and 'Traceback' not in message
  shutil.rmtree(newest)
  (folder / 'summary.json').unlink()
  assert main.main(flags) == 0
  assert summary(folder) == summary(finished)


def test_help_needs_no_jax():
  code = (
    'import sys\nfrom fedms_jax.shell import main\n'
    'try:\n  main.main(["fedms", "--help"])\nexcept SystemExit:\n  pass\n'
    'assert "jax" not in sys.modules, "jax"'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert '--data.source' in done.stdout


def test_flags_that_the_readme_names_exist():
  from benchmarks import methods
  from fedms_jax.shell import commands, config, flags

  names = set(config.flatten(config.Config)) | set(flags.ALIASES)
  names |= {'help', 'version', 'flagfile', 'preset', 'slow'}
  names |= {'no' + n for n in names}
  names |= {n for c in commands.COMMANDS.values() for n in c.extra}
  names |= {o.lstrip('-') for o in methods.parser()._option_string_actions}
  pages = ['README.md', *map(str, ROOT.glob('launch/presets/*'))]
  for page in pages:
    for name in re.findall(
      r'(?<![\w-])--([a-z][\w.]*\w)', (ROOT / page).read_text()
    ):
      assert name in names, (page, name)


def test_the_library_page_runs(cache, capsys):
  """Its gate moves, and its second piece has a network and data."""
  import numpy as np

  import fedms_jax
  from examples import common

  page = (ROOT / 'README.md').read_text()
  first, second = (x.split('```')[0] for x in page.split('```python\n')[1:])
  assert len(first.splitlines()) < 20
  few = {'num_clients': 4, 'unseen_clients': 0}
  small = {'partition': few, 'cohort_size': 2, 'pretrain_epochs': 1,
           'model': {'blocks': 2, 'width': 16, 'heads': 2}}  # fmt: skip
  first = first.replace('rounds=(8, 6)', 'rounds=(1, 1), **small')
  exec(compile(first, 'README.md', 'exec'), {'small': small})
  shown = capsys.readouterr().out
  assert 'mixture' in shown
  weights = np.array(eval(shown.splitlines()[-1]))
  assert len(weights) == 4 and (weights != 0.5).any()
  x, y = common.PIXELS[:400], common.DIGITS[:400]
  names = {'module': common.Mlp(), 'x': x, 'y': y, 'u': x + 1, 'v': y}
  second = second.replace('Dense_1', 'head').replace('rounds=20', 'rounds=1')
  names |= {'fedms_jax': fedms_jax}
  exec(compile(second, 'README.md', 'exec'), names)
  assert [row['client'] for row in names['result'].clients] in (
    ['ann', 'bob'], ['bob', 'ann'],
  )  # fmt: skip
