"""The benchmarks run in their quick form and print the rows they promise."""

import importlib.util
import json
import math
import pathlib
import runpy
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Name -> keys of its rows, by a key that tells kinds of rows apart.
ROWS = {
  'depth_cost': {
    'depth': {'blocks', 'milliseconds', 'time_ratio', 'time_error', 'gflops',
              'flop_ratio', 'flop_error'},
    'time_spared': {'flop_spared'},
  },
  'stage2_cost': {
    'depth': {'blocks', 'milliseconds', 'stage2_ratio', 'naive_ratio'},
  },
  'devices': {
    'devices': {'cores', 'rounds_per_second', 'speedup', 'difference',
                'training', 'round'},
  },
  'utilization': {
    'device': {'cores', 'shape', 'dtype', 'batch', 'milliseconds',
               'gflops_per_second', 'utilization', 'of_own_products'},
  },
  'search_cost': {
    'method': {'rates', 'shared_seconds', 'apart_seconds', 'ratio'},
  },
  'versus_torch': {'what': {'cores', 'seconds', 'speedup'}},
  'versus_peers': {
    'peer': {'missing'},
    'workload': {'simulator', 'cores', 'seconds_per_round', 'ratio'},
  },
  'population': {
    'clients': {'cohort', 'host_seconds', 'host_microseconds', 'host_ratio',
                'device_seconds', 'sample_seconds', 'gather_seconds',
                'scatter_seconds', 'evaluate_seconds', 'setup_seconds',
                'personal_bytes', 'touched', 'disk_megabytes',
                'peak_gigabytes'},
  },
  'overhead': {
    'variant': {'milliseconds', 'ratio', 'elided'},
  },
  'time': {
    'row': {'seed', 'reached', 'virtual_seconds', 'steps', 'depth',
            'gigaflops', 'megabytes', 'wasted_flops', 'gini', 'score',
            'fastest_tenth', 'slowest_tenth'},
    'mean_of': {'seeds', 'reached', 'virtual_seconds', 'gigaflops',
                'megabytes', 'wasted_flops', 'gini', 'score', 'fastest_tenth',
                'slowest_tenth'},
  },
  'pretraining': {
    'row': {'every', 'state', 'seed', 'steps', 'own_perplexity',
            'worst_decile_perplexity', 'pooled_perplexity',
            'unseen_perplexity', 'bits_per_byte', 'megabytes_up', 'tokens',
            'last_drift', 'last_cosine', 'seconds'},
  },
  'black_box': {
    'row': {'seed', 'round', 'queries', 'gigaflops', 'kilobytes_up',
            'kilobytes_down', 'own', 'pooled', 'unseen'},
  },
  'continual': {
    'row': {'setting', 'seed', 'acc', 'aia', 'forgetting', 'bwt', 'fwt',
            'learning', 'own_acc', 'own_forgetting', 'own_learning',
            'kept_bytes', 'megabytes_up', 'seconds', 'intransigence',
            'diagonal'},
  },
}  # fmt: skip
# These train whole models.
LONG = {'pretraining', 'black_box', 'time', 'continual', 'search_cost'}
# Others run the same code in little.
LONG |= {'devices', 'depth_cost', 'versus_peers', 'population',
         'stage2_cost', 'overhead'}  # fmt: skip
# A peer that does not run is named with the reason.
FLAGS = {'versus_peers': ('--peers=pfl=/nowhere/python',)}


def rows(name: str, *flags: str) -> list[dict]:
  command = [sys.executable, '-m', f'benchmarks.{name}', '--quick', *flags]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return [json.loads(line) for line in done.stdout.splitlines()]


def numbers(value):
  """All numbers in a row."""
  if isinstance(value, dict):
    return [x for part in value.values() for x in numbers(part)]
  return [value] if isinstance(value, float | int) else []


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
    for name in ROWS
  ],
)
def test_a_quick_benchmark_prints_its_rows(name):
  found = rows(name, *FLAGS.get(name, ()))
  if name == 'versus_torch' and not importlib.util.find_spec('peft'):
    assert [set(row) for row in found] == [{'missing'}]
    return
  kinds = set()
  for row in found:
    kind = next(iter(row))
    assert set(row) == {kind} | ROWS[name][kind]
    assert all(map(math.isfinite, numbers(row)))
    kinds.add(kind)
  assert kinds == set(ROWS[name])
  if name == 'versus_peers':
    assert found[0]['peer'] == 'pfl' and '/nowhere' in found[0]['missing']
    assert {row['simulator'] for row in found[1:]} == {'ours'}


def test_the_depth_model_finds_what_is_spared_and_what_departs_from_it():
  from benchmarks import depth_cost

  depths = [1, 2, 4, 8]
  spared, errors = depth_cost.fit(depths, [0.5, 3, 7, 16])
  assert math.isclose(spared, (0.75 + 0.5 + 0.5) / 3)
  assert max(map(abs, errors)) < 0.03
  _, errors = depth_cost.fit(depths, [0.5, 3, 14, 16])
  assert errors[2] > 0.2 and errors[3] == 0


def test_turns_are_paired_with_their_neighbors():
  from benchmarks import timing

  # The machine is ten times slower in the second turn.
  seconds = {'a': [2.0, 20.0, 2.0], 'b': [1.0, 10.0, 1.0]}
  assert timing.ratio(seconds, 'a', 'b') == 2.0
  calls = []
  variants = {name: lambda name=name: calls.append(name) for name in 'ab'}
  timed = timing.in_turns(variants, turns=2, warm_up=1)
  assert calls == list('baabba') and len(timed['a']) == 2


COMMANDS = sorted(
  path.stem
  for path in ROOT.glob('benchmarks/*.py')
  if "__name__ == '__main__'" in path.read_text()
)


@pytest.mark.filterwarnings('ignore:.*found in sys.modules')
@pytest.mark.parametrize('name', COMMANDS)
def test_an_option_that_is_none_is_refused_before_anything_runs(
  name, monkeypatch, capsys
):
  monkeypatch.setattr(sys, 'argv', [name, '--no_such_option'])
  for starts in ('run', 'Popen'):  # no process may begin
    monkeypatch.setattr(subprocess, starts, None)
  with pytest.raises(SystemExit) as end:
    runpy.run_module(f'benchmarks.{name}', run_name='__main__')
  said = capsys.readouterr()
  assert end.value.code == 2
  assert 'usage: ' in said.err and not said.out
