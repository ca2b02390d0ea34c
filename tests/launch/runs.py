"""Runs that the tests start: of the stand-in, and of the smoke preset."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from fedms_jax.persistence import writers

ROOT = pathlib.Path(__file__).parents[2]
STAND_IN = [sys.executable, '-m', 'tests.launch.stand_in']
SMOKE = [
  '--flagfile=launch/presets/smoke.flags',
  '--noprogress',
  '--notensorboard',
]
# One device per process, and the compiler's own choices, in every process.
PLAIN = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}


def start(module, *words):
  return subprocess.Popen(
    [sys.executable, '-m', module, *words],
    cwd=ROOT,
    env=os.environ | PLAIN,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(run, code):
  said, _ = run.communicate()
  assert run.returncode == code, said
  return said


def summary(folder):
  """The summary, without what depends on the machine's mood."""
  return writers.timeless(json.loads((folder / 'summary.json').read_text()))


def wait_for_rounds(folder, rounds, alive):
  """Waits until so many rounds are on the disk."""
  metrics = folder / 'metrics.jsonl'
  while not (metrics.exists() and metrics.read_bytes().count(b'\n') >= rounds):
    assert alive()
    time.sleep(0.01)


@pytest.fixture
def undisturbed(tmp_path_factory):
  """The folder of a run of one process that nobody disturbed, made once for
  all test files."""
  folder = tmp_path_factory.getbasetemp() / 'undisturbed'
  if not folder.exists():
    finish(start('fedms_jax', *SMOKE, f'--workdir={folder}'), 0)
  return folder


def losses(folder):
  lines = writers.read_metrics(folder / 'metrics.jsonl')
  return [line['train_loss'] for line in lines]


def assert_same_to_rounding(folder, other):
  """The same run but for the order in which sums were made."""
  one, two = summary(folder), summary(other)
  assert losses(folder) == pytest.approx(losses(other), rel=1e-4)
  # Rows that two processes read are derived by both.
  own = one['total'].pop('simulator_flops')
  assert own >= two['total'].pop('simulator_flops')
  assert one['total'] == two['total']
  assert one['depth'] == two['depth']
  for name, scores in one['models'].items():
    # A prediction at the edge may go to the other side.
    assert scores == pytest.approx(two['models'][name], abs=0.02)


def process_of(run, number):
  """The number of a child of the launcher, by its number in the run."""
  children = pathlib.Path(f'/proc/{run.pid}/task/{run.pid}/children')
  for pid in children.read_text().split():
    words = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
    if f'--distributed.process_id={number}'.encode() in words:
      return int(pid)
  raise AssertionError


def places(folder):
  """What each process found, from the log files."""
  logs = sorted(folder.glob('logs/process-*.log'))
  found = [re.search(r'place (.*) timeout (.*)', p.read_text()) for p in logs]
  return [(json.loads(m[1]), m[2]) for m in found]
