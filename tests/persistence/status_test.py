"""A reader of the folder alone knows how the run stands."""

import json
import subprocess
import sys

import pytest

from fedms_jax.persistence import status, workdir, writers
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import flags
from fedms_jax.simulation import observer

STAGES = config_lib.AlgorithmConfig(stage1_rounds=30, stage2_rounds=20)
TEXT = flags.to_text(config_lib.Config(algorithm=STAGES))
EVERY = 0.5  # seconds that a round takes


def write(path, rounds, text=TEXT, pauses=()):
  """A folder in which that many rounds are done; gives the open run."""
  run = workdir.Workdir.open(path, text)
  run.begin()
  file, now = writers.MetricsFile(run.metrics), 1000.0
  for done in range(rounds):
    now += 60 if done in pauses else EVERY
    values = {'depth': 2.0, 'score': 0.5 + done / 1000, 'unix_seconds': now}
    file.write(done // 30, done % 30, values)
  file.close()
  for step in (rounds - 1, rounds):
    (run.checkpoints / str(step)).mkdir(parents=True)
  (run.checkpoints / f'{rounds + 1}.tmp').mkdir()
  return run


def lines(path):
  """What is shown, by the first word."""
  shown = status.text(path, status.read(path)).splitlines()[1:]
  return {line[2:14].strip(): line[14:] for line in shown}


def test_a_round_that_waits_for_its_programs_says_so(tmp_path):
  with write(tmp_path, 7) as run:
    watch = observer.Activity(run.say)
    watch.compiling('depth 2')
    assert lines(tmp_path)['compiling'] == 'for depth 2'
    watch.compiling('')
    assert 'compiling' not in lines(tmp_path)
    watch.compiling('depth 3')
  assert 'compiling' not in lines(tmp_path)  # nobody runs here
  with workdir.Workdir.open(tmp_path, TEXT, resume=True) as run:
    observer.Activity(run.say)
    assert not run.activity.exists()


def test_the_stages_are_those_that_the_run_has_written(tmp_path):
  with write(tmp_path, 7) as run:
    stages = [{'name': 'only', 'rounds': 9}, {'name': 'more', 'rounds': 1}]
    run.stages.write_text(json.dumps(stages))
    assert lines(tmp_path)['stage'] == 'only, 1 of 2'
    assert lines(tmp_path)['round'].startswith('7 of 9')


@pytest.mark.parametrize(
  ('rounds', 'stage', 'round', 'saved'),
  [
    (7, 'global, 1 of 2', '7 of 30', 'global, after round 7'),
    (30, 'global, 1 of 2', '30 of 30', 'global, after round 30'),
    (33, 'personal, 2 of 2', '3 of 20', 'personal, after round 3'),
  ],
)
def test_a_running_run_tells_where_it_is(tmp_path, rounds, stage, round, saved):
  with write(tmp_path, rounds):
    shown = lines(tmp_path)
    found = status.read(tmp_path, now=1000.0 + rounds * EVERY + 3)
  assert found.idle == 3
  assert found.left == pytest.approx((50 - rounds) * EVERY)
  assert (shown['state'], shown['stage']) == ('running', stage)
  assert shown['round'].startswith(f'{round}, ')
  assert shown['depth'] == '2 active blocks'
  assert shown['score'] == f'{0.5 + (rounds - 1) / 1000:.4f}'
  assert shown['checkpoint'] == saved
  assert 'process' in shown['held by']


def test_a_pause_between_two_starts_is_no_slow_round(tmp_path):
  with write(tmp_path, 12, pauses=(3, 9)):
    assert status.read(tmp_path).rate == pytest.approx(1 / EVERY)


def test_reading_changes_nothing(tmp_path):
  with write(tmp_path, 3):
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
    status.text(tmp_path, status.read(tmp_path))
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}


def test_how_a_run_ended(tmp_path):
  run = write(tmp_path, 3)
  lock = tmp_path / 'lock.json'
  held = json.loads(lock.read_text())
  run._lock._let_go()  # as the kernel does when a process ends
  lock.write_text(json.dumps(held | {'started': 'before'}))
  assert status.read(tmp_path).state == 'killed'
  lock.write_text(json.dumps(held | {'host': 'elsewhere', 'boot': 'b'}))
  assert status.read(tmp_path).state == 'running elsewhere'
  lock.write_text(json.dumps(held))
  run.close()
  assert status.read(tmp_path).state == 'saved'
  run.summary.touch()
  assert status.read(tmp_path).state == 'saved'
  writers.write_summary(run.summary, {'models': {}, 'total': {}})
  assert status.read(tmp_path).state == 'finished'
  assert 'time left' not in lines(tmp_path)


def test_before_the_first_round_little_is_known(tmp_path):
  with workdir.Workdir.open(tmp_path, TEXT) as run:
    run.begin()
    shown = lines(tmp_path)
    assert shown['round'].startswith('none yet')
    assert shown['checkpoint'] == 'none yet'
    assert status.read(tmp_path).done == 0


def test_stages_follow_the_flags(tmp_path):
  one = TEXT.replace('stage2_rounds=20', 'stage2_rounds=0')
  with write(tmp_path / 'one', 7, one):
    assert status.read(tmp_path / 'one').stages == [('global', 30)]
  with write(tmp_path / 'old', 7, '--seed=0\n'):  # flags of another version
    found = status.read(tmp_path / 'old')
    assert (found.total, found.left) == (None, None)
    assert lines(tmp_path / 'old')['round'].startswith('7, ')


def test_a_folder_without_a_run_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='`workdir`'):
    status.read(tmp_path)


def test_the_command_shows_it_and_loads_nothing_heavy(tmp_path):
  write(tmp_path, 3).close()
  code = (
    'import sys\nfrom fedms_jax.shell import main\n'
    f'code = main.main(["fedms", "status", "--workdir={tmp_path}"])\n'
    'assert not {"jax", "flax", "lmdb"} & set(sys.modules)\n'
    'sys.exit(code)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert 'round       3 of 30' in done.stdout
