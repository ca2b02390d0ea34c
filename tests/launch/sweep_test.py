"""A sweep starts what is missing or failed, and nothing else."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pandas
import pytest
import yaml

from fedms_jax.launch import sweep
from fedms_jax.shell import config, flags
from tests.launch import runs

PROGRAM = f'--program={shlex.join(runs.STAND_IN)}'
GRID = ['--grid=seed=0..1', '--grid=lora.rank=2,4']
NAMES = [f'seed={s},lora.rank={r}' for s in (0, 1) for r in (2, 4)]


def words(root, *own, flags=()):
  return [PROGRAM, *own, '--', f'--workdir={root}', *flags]


def start(root, *own, told):
  """Starts a sweep as a process of its own, to be signalled."""
  run = subprocess.Popen(
    [sys.executable, '-m', 'launch.sweep', *words(root, *own)],
    cwd=runs.ROOT,
    env=os.environ | {'STAND_IN': told},
    stdout=subprocess.PIPE,
    text=True,
  )
  ready = root / 'seed=0' / 'logs' / 'point.log'
  while not (ready.exists() and 'ready' in ready.read_text()):
    assert run.poll() is None, run.communicate()
    time.sleep(0.02)
  return run


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs a sweep to its end: exit code and what it printed."""
  monkeypatch.chdir(runs.ROOT)

  def run(root, *own, told='run', flags=()):
    monkeypatch.setenv('STAND_IN', told)
    try:
      code = sweep.main(words(root, *own, flags=flags))
    except ValueError as error:
      return 2, str(error)
    return code, capsys.readouterr().out

  return run


def starts(root):
  """How often each point was started."""
  logs = {name: root / name / 'logs' / 'point.log' for name in NAMES}
  return {
    name: log.read_text().count('place') if log.exists() else 0
    for name, log in logs.items()
  }


def test_a_second_start_runs_what_is_missing_or_failed(tmp_path, run):
  assert run(tmp_path, *GRID, '--jobs=2')[0] == 0
  assert starts(tmp_path) == dict.fromkeys(NAMES, 1)
  for name in NAMES:
    seed, rank = (pair.partition('=')[2] for pair in name.split(','))
    text = (tmp_path / name / 'flags.txt').read_text()
    assert f'--seed={seed}\n' in text and f'--lora.rank={rank}\n' in text
  (tmp_path / NAMES[2] / 'summary.json').unlink()
  code, said = run(tmp_path, *GRID, told='exit 2')
  assert (code, 'user error' in said) == (2, True)
  assert run(tmp_path, *GRID)[0] == 0
  assert starts(tmp_path) == dict.fromkeys(NAMES, 1) | {NAMES[2]: 3}


def test_a_larger_grid_adds_points(tmp_path, run):
  assert run(tmp_path, '--grid=seed=0', '--grid=lora.rank=2')[0] == 0
  assert run(tmp_path, '--grid=seed=0', '--grid=lora.rank=4')[0] == 0
  assert sweep.load(tmp_path).points.keys() == set(NAMES[:2])
  assert starts(tmp_path) == dict.fromkeys(NAMES[:2], 1) | dict.fromkeys(
    NAMES[2:], 0
  )


def test_a_point_that_runs_is_left_alone_and_can_go_on_later(tmp_path, run):
  first = start(tmp_path, '--grid=seed=0..2', told='wait')
  code, said = run(tmp_path, '--grid=seed=0')
  assert (code, 'seed=0: running' in said) == (0, True), said
  first.send_signal(signal.SIGTERM)
  out, _ = first.communicate()
  assert (first.returncode, '2 points were not started' in out) == (75, True)
  assert run(tmp_path, '--grid=seed=0')[0] == 0
  log = tmp_path / 'seed=0' / 'logs' / 'point.log'
  assert log.read_text().count('place') == 2


def test_a_lock_of_another_host_is_respected_until_it_is_broken(tmp_path, run):
  result = tmp_path / 'seed=0' / 'summary.json'
  result.parent.mkdir()
  lock = {'host': 'elsewhere', 'pid': 1, 'started': '', 'time': ''}
  (result.parent / 'lock.json').write_text(json.dumps(lock))
  (result.parent / 'flags.txt').write_text(flags.to_text(config.Config()))
  code, said = run(tmp_path, '--grid=seed=0')
  assert (code, '--break_lock' in said) == (0, True)
  assert not result.exists()
  assert run(tmp_path, '--grid=seed=0', flags=['--break_lock'])[0] == 0
  assert result.exists()


def test_points_of_several_processes(tmp_path, run):
  assert run(tmp_path, '--grid=seed=3', '--processes=2')[0] == 0
  found = runs.places(tmp_path / 'seed=3')
  assert [place[1:3] for place, _ in found] == [[2, 0], [2, 1]]


def test_a_sweep_of_other_flags_is_refused(tmp_path, run):
  grid = '--grid=seed=0'
  assert run(tmp_path, grid, flags=['--lora.rank=2'], told='exit 1')[0] == 1
  code, said = run(tmp_path, grid, flags=['--lora.rank=3'])
  assert code == 2
  assert '--lora.rank=2' in said and '--lora.rank=3' in said


def test_mistakes_are_found_before_anything_starts(tmp_path, run):
  root = tmp_path / 'new'
  for own in ('--grid=seed=0,-1', '--grid=lora.rnk=1', '--jobs=-1'):
    assert run(root, own)[0] == 2
  assert run(root, *GRID, '--dry_run')[0] == 0
  assert not root.exists()


def results(root, points):
  """A sweep as it lies there when these points are finished."""
  for name, point in points.items():
    (root / name).mkdir(parents=True)
    rank = int(point.get('lora.rank', 4))
    full = config.Config(seed=int(point['seed']), lora=config.LoraConfig(rank))
    (root / name / 'flags.txt').write_text(flags.to_text(full))
    scores = {'mixture': {'own_mean': full.seed / 10, 'pooled': None}}
    summary = {'models': scores, 'total': {'bytes_up': rank * 1000}}
    (root / name / 'summary.json').write_text(json.dumps(summary))
  record = {'flags': [], 'points': points}
  (root / 'sweep.json').write_text(json.dumps(record))


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_the_table_has_a_row_per_result_and_says_what_is_missing(
  tmp_path, suffix, capsys
):
  points = {'seed=0': {'seed': '0'}}  # made before the rank varied, too
  points |= {n: dict(p.split('=') for p in n.split(',')) for n in NAMES}
  results(tmp_path, points)
  (tmp_path / NAMES[1] / 'summary.json').unlink()
  output = tmp_path / f'x.{suffix}'
  words = [f'--collect={tmp_path}', f'--output={output}']
  assert sweep.main(words) == 0
  said = capsys.readouterr().out
  assert f'{NAMES[1]}: saved' in said and '4 of 5' in said
  read = pandas.read_csv if suffix == 'csv' else pandas.read_parquet
  found = read(output)
  kept = [name for name in points if name != NAMES[1]]
  assert {name: list(found[name]) for name in found} == {
    'seed': [0, 0, 1, 1],
    'lora.rank': [4, 2, 2, 4],
    'mixture.own_mean': [0.0, 0.0, 0.1, 0.1],
    'mixture.pooled': pytest.approx([float('nan')] * 4, nan_ok=True),
    'total.bytes_up': [4000, 2000, 2000, 4000],
    'workdir': [str(tmp_path / name) for name in kept],
  }


def test_a_folder_without_a_sweep_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='sweep.json'):
    sweep.main([f'--collect={tmp_path}'])


KUBECTL = """\
#!{python}
import json, pathlib, sys
import yaml
here = pathlib.Path({folder!r})
jobs = json.loads((here / 'jobs').read_text())
verb, *words = sys.argv[1:]
if verb == 'get':
  def item(name, state):
    ended = [{{'type': state, 'status': 'True'}}] if state else []
    return {{'metadata': {{'name': name}}, 'status': {{'conditions': ended}}}}
  print(json.dumps({{'items': [item(*pair) for pair in jobs.items()]}}))
elif verb == 'delete':
  del jobs[words[1]]
elif verb == 'apply':
  for one in yaml.safe_load_all(open(words[0].partition('=')[2])):
    if one['kind'] == 'Job':
      assert one['metadata']['name'] not in jobs
      jobs[one['metadata']['name']] = ''
(here / 'jobs').write_text(json.dumps(jobs))
"""


def test_kubernetes_gets_a_job_per_point_and_none_twice(
  tmp_path, run, monkeypatch
):
  fake = tmp_path / 'bin' / 'kubectl'
  fake.parent.mkdir()
  fake.write_text(
    KUBECTL.format(python=sys.executable, folder=str(fake.parent))
  )
  fake.chmod(0o755)
  monkeypatch.setenv('PATH', f'{fake.parent}:{os.environ["PATH"]}')
  jobs = fake.parent / 'jobs'
  jobs.write_text('{}')
  root = tmp_path / 'sweep'
  own = ['--backend=kubernetes', '--image=i', '--processes=2', *GRID]
  assert run(root, *own)[0] == 0
  assert json.loads(jobs.read_text()) == {f'sweep-{i}': '' for i in range(4)}
  objects = list(yaml.safe_load_all((root / 'jobs.yaml').read_text()))
  commands = [
    o['spec']['template']['spec']['containers'][0]['command']
    for o in objects
    if o['kind'] == 'Job'
  ]
  assert len(objects) == 8  # each Job has a service
  for words, name in zip(commands, NAMES, strict=True):
    assert f'--workdir={root / name}' in words
  ended = {'sweep-0': 'Complete', 'sweep-1': 'Failed', 'sweep-2': ''}
  jobs.write_text(json.dumps(ended))
  code, said = run(root, *own)
  assert code == 0, said
  assert json.loads(jobs.read_text()) == ended | {'sweep-1': '', 'sweep-3': ''}


@pytest.mark.parametrize('text', ['', '{', '{"models": {}}'])
def test_a_broken_result_is_none(tmp_path, run, text):
  assert run(tmp_path, '--grid=seed=0..1')[0] == 0
  result = tmp_path / 'seed=1' / 'summary.json'
  result.write_text(text)
  assert sweep.main([f'--collect={tmp_path}']) == 0
  assert len((tmp_path / 'table.csv').read_text().splitlines()) == 2
  code, said = run(tmp_path, '--grid=seed=0..1')
  assert (code, 'seed=0: finished' in said) == (0, True)
  assert json.loads(result.read_text())['models']
