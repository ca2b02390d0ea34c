"""Real runs of the smoke preset, as every launcher starts them."""

import os
import signal
import time

import pytest

from fedms_jax.persistence import writers
from tests.launch import runs

undisturbed = runs.undisturbed


@pytest.mark.slow
def test_exit_codes_of_a_run(undisturbed, tmp_path):
  assert (undisturbed / 'summary.json').exists()  # 0
  words = [*runs.SMOKE, f'--workdir={undisturbed}']
  assert '--resume' in runs.finish(runs.start('fedms_jax', *words), 2)
  words = [*runs.SMOKE, '--lora.rank=0']
  assert '--lora.rank' in runs.finish(runs.start('fedms_jax', *words), 2)
  words = [*runs.SMOKE, f'--workdir={tmp_path}']
  run = runs.start('fedms_jax', *words)
  runs.wait_for_rounds(tmp_path, 1, lambda: run.poll() is None)
  run.send_signal(signal.SIGTERM)
  assert '--resume' in runs.finish(run, 75)
  runs.finish(runs.start('fedms_jax', *words, '--resume'), 0)
  assert runs.summary(tmp_path) == runs.summary(undisturbed)


@pytest.mark.slow
def test_two_processes_agree_with_one(undisturbed, tmp_path):
  words = ['--processes=2', '--', *runs.SMOKE, f'--workdir={tmp_path}']
  runs.finish(runs.start('launch.local', *words), 0)
  runs.assert_same_to_rounding(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
  'words',
  [
    # Reports of earlier models, and rounds that some are too late for.
    ['--time.policy=fedbuff', '--time.buffer=2', '--time.concurrency=4'],
    ['--time.policy=synchronous', '--time.deadline=0.2', '--time.partial'],
  ],
  ids=['fedbuff', 'deadline'],
)
def test_two_processes_with_a_clock_agree_with_one(tmp_path, words):
  words = [*runs.SMOKE, '--schedule.name=linear', *words]
  one, two = tmp_path / 'one', tmp_path / 'two'
  runs.finish(runs.start('fedms_jax', *words, f'--workdir={one}'), 0)
  pair = ['--processes=2', '--', *words, f'--workdir={two}']
  runs.finish(runs.start('launch.local', *pair), 0)
  runs.assert_same_to_rounding(two, one)
  told = ('clients', 'virtual_clock', 'staleness_max', 'in_flight', 'partial')
  clocks = [
    [
      [line.get(name, 0) for name in told]
      for line in writers.read_metrics(folder / 'metrics.jsonl')
    ]
    for folder in (one, two)
  ]
  assert clocks[0] == clocks[1]
  # Or there was nothing on which two could differ.
  assert any(line[2] or line[4] for line in clocks[0])


@pytest.mark.slow
@pytest.mark.parametrize('lost', [0, 1])
def test_a_lost_process_ends_its_peer_and_the_pair_goes_on(
  undisturbed, tmp_path, lost
):
  timeout = 10
  words = [
    *runs.SMOKE,
    f'--workdir={tmp_path}',
    f'--distributed.timeout={timeout}',
  ]
  run = runs.start('launch.local', '--processes=2', '--', *words)
  runs.wait_for_rounds(tmp_path, 2, lambda: run.poll() is None)
  os.kill(runs.process_of(run, lost), signal.SIGKILL)
  killed = time.monotonic()
  said = runs.finish(run, 75)
  assert time.monotonic() - killed < timeout + 30
  assert f'process {1 - lost} to be resumed (exit code 75)' in said
  runs.finish(
    runs.start('launch.local', '--processes=2', '--', *words, '--resume'), 0
  )
  runs.assert_same_to_rounding(tmp_path, undisturbed)
