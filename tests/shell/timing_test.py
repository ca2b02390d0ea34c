"""Time from flags: what is built, what it says, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from fedms_jax.report import timed as said_of
from fedms_jax.shell import flags, time_report, timing
from fedms_jax.shell.config.time import SelectConfig, TimeConfig
from fedms_jax.simulation.state import Stage
from fedms_jax.systems.arrivals import Tasks
from tests import world

WAIT, BUFFER = '--time.policy=synchronous', '--time.policy=fedbuff'
MIX = '--time.policy=fedasync'


def config(*words):
  return flags.parse(['fedms', *words])


def stages(*words):
  """The stages of a toy run, with arrivals by flags."""
  algorithm = world.first_stage()[0]
  made = [Stage(name, algorithm, 2, lambda handover: None) for name in 'ab']
  return timing.timed(config(*words), world.federation(clients=30), made)


def test_a_server_that_trains_by_itself_has_no_device():
  algorithm = world.first_stage()[0]
  stage = Stage('align', algorithm, 2, lambda handover: None, central=True)
  with pytest.raises(ValueError, match='--algorithm.name=fedms.*by itself'):
    timing.timed(config(WAIT), world.federation(clients=30), [stage])


def test_without_a_clock_nothing_is_asked():
  assert all(stage.arrivals is None for stage in stages())
  assert time_report.summary(config(), 30, None, [], {}) is None


@pytest.mark.parametrize(
  ('words', 'late'),
  [
    ((WAIT,), 0),
    ((BUFFER,), -1),
    ((BUFFER, '--time.late=4'), 4),
    ((MIX,), -1),
    (('--select.name=power_of_choice',), 0),
    ((BUFFER, '--select.name=oort'), -1),
  ],
)
def test_arrivals_say_what_they_need(words, late):
  found = [stage.arrivals for stage in stages(*words)]
  for arrivals in found:
    assert arrivals.live and not arrivals.sampled and arrivals.late == late
    assert (arrivals.heard is not None) == any('select' in w for w in words)
  # Stages draw other clients.
  drawn = []
  for arrivals in found:
    _, reports = arrivals.next(arrivals.init, 0, lambda ids: Tasks(
      *(np.ones(len(ids)) for _ in range(3)), np.ones(len(ids))))  # fmt: skip
    drawn.append(reports.ids.tolist())
  assert drawn[0] != drawn[1]


def test_devices_are_of_files_or_drawn_by_their_medians(tmp_path):
  made = timing.devices(config(WAIT, '--time.gflops=3'), 999)
  assert np.median(made.speed) == pytest.approx(3e9, rel=0.1)
  assert np.median(made.down) == pytest.approx(10e6 / 8, rel=0.2)
  assert made.availability is None
  path = tmp_path / 'devices.json'
  path.write_text(json.dumps([{'id': 0, 'speed': 1, 'down': 2, 'up': 3}]))
  trace = tmp_path / 'traces.json'
  trace.write_text(
    json.dumps({'0': {'active': [0], 'inactive': [5], 'finish_time': 10}})
  )
  made = timing.devices(
    config(WAIT, f'--time.devices={path}', f'--time.availability={trace}'), 2
  )
  assert made.up.tolist() == [3, 3] and not made.online(6.0).any()
  night = timing.devices(config(WAIT, '--time.availability=diurnal'), 3)
  assert night.availability is not None


@pytest.mark.parametrize(
  ('words', 'tau', 's'),
  [
    ((BUFFER,), 3.0, 0.5),
    ((BUFFER, '--time.power=1'), 3.0, 0.25),
    ((MIX, '--time.discount=hinge'), 6.0, 1 / 21),
    ((MIX, '--time.discount=hinge', '--time.grace=7'), 6.0, 1.0),
    ((MIX, '--time.discount=constant'), 6.0, 1.0),
  ],
)
def test_discounts_are_those_of_the_papers(words, tau, s):
  found = config(*words)
  assert timing.discount(found.time)(tau) == pytest.approx(s)
  weighed = words[0] == BUFFER
  assert bool(timing.channel(found)) == weighed  # else the server does it


REFUSED = [
  ((WAIT, '--privacy.mode=central', '--schedule.name=linear'),
   'accounts assume that the sampler'),
  (('--select.name=power_of_choice', '--privacy.mode=local',
    '--schedule.name=linear'), '--select.name=power_of_choice.*privacy'),
  ((BUFFER, '--cohort.sampling=poisson'), '--cohort.sampling=poisson'),
  ((WAIT, '--stages=F2x3'), '--stages=F2x3'),
  ((WAIT, '--schedule.order=f3ocus'), '--schedule.order=f3ocus'),
  ((WAIT, '--algorithm.name=ffdapt'), '--algorithm.name=ffdapt'),
  (('--select.name=oort',), 'has no clock'),
  ((BUFFER, '--client.state=averaged'), '--client.state=averaged'),
  ((BUFFER, '--time.concurrency=31'), '--time.concurrency=31.*at most 30'),
  ((BUFFER, '--time.buffer=31'), '--time.buffer=31.*at most 30'),
  ((WAIT, '--time.least=0.5'), 'needs a --time.deadline'),
  ((WAIT, '--time.partial'), 'needs a --time.deadline'),
  ((WAIT, '--time.devices=x', '--time.gflops=2'), '--time.gflops=2'),
  ((WAIT, '--time.reference_gflops=2'), 'needs --time.devices'),
  ((BUFFER, '--time.grace=2'), 'needs --time.discount=hinge'),
  ((BUFFER, '--time.discount=constant', '--time.power=2'), '--time.power=2'),
  ((WAIT, '--time.devices=/nowhere/x'), '/nowhere/x cannot be read'),
]  # fmt: skip


@pytest.mark.parametrize(('words', 'said'), REFUSED)
def test_what_does_not_go_together_is_refused_by_name(words, said):
  with pytest.raises(ValueError, match=said):
    stages(*words)


@pytest.mark.parametrize('method', ['flora', 'scaffold'])
def test_methods_that_merge_by_themselves_mix_no_models(method, capsys):
  from fedms_jax.shell import main

  words = ['fedms', MIX, f'--algorithm.name={method}', '--data.max_rows=200',
           '--partition.num_clients=3', '--partition.min_rows=3',
           '--cohort.size=2', '--noprogress']  # fmt: skip
  assert main.main(words) == 2
  said = capsys.readouterr().err
  assert '--time.policy=fedasync' in said and 'fedbuff' in said
  if method == 'flora':
    words[1] = BUFFER
    assert main.main(words) == 2
    assert 'compares or rewrites whole models' in capsys.readouterr().err


@pytest.mark.parametrize('section', [TimeConfig, SelectConfig])
def test_every_option_is_looked_at_or_refused(section):
  """No option does nothing, silently, without a clock or a selection."""
  name = section.__name__.removesuffix('Config').lower()
  for field in dataclasses.fields(section):
    if field.name in ('policy', 'name'):
      continue
    other = {str: 'x', int: 3, float: 0.125, bool: True}[type(field.default)]
    if field.metadata['choices']:
      other = next(c for c in field.metadata['choices'] if c != field.default)
    if field.metadata['low'] == 1.0:
      other = 2.0
    with pytest.raises(ValueError, match=f'{name}.{field.name}'):
      flags.parse(['fedms', f'--{name}.{field.name}={other}'])


def test_a_summary_says_who_took_part_and_what_was_wasted():
  arrivals = {'now': 12.5, 'count': {'0': 3, '2': 1}}
  total = {
    'bytes_up': 10.0,
    'bytes_down': 30.0,
    'client_flops': 8e9,
    'wasted_flops': 2e9,
    'wasted_bytes': 10.0,
    'client_rounds': 4,
  }
  result = {'total': total, 'client_ids': [0, 1, 2, 3], 'served': 'it',
            'per_client': {'it': [0.5, 0.25, 1.0, None]}}  # fmt: skip
  records = [{'late': 1, 'staleness_mean': 1.0, 'staleness_max': 2},
             {'late': 2, 'stale': 1, 'staleness_mean': 0.0}]  # fmt: skip
  words = (BUFFER, '--time.gflops_sigma=0', '--time.mbps_sigma=1')
  found = time_report.summary(config(*words), 4, arrivals, records, result)
  assert found['virtual_time'] == 12.5 and found['wasted_flops'] == 0.25
  assert found['wasted_bytes'] == 0.25 and found['staleness_mean'] == 0.5
  assert found['staleness_max'] == 2
  assert found['dropped']['late'] == 3 and found['dropped']['stale'] == 1
  assert found['participation_gini'] == pytest.approx(0.625)
  which = timing.devices(config(*words), 4)
  order = np.argsort(-which.down[:3])
  scores = np.array([0.5, 0.25, 1.0])[order]
  assert found['fastest_tenth'] == scores[0]
  assert found['slowest_tenth'] == scores[-1]
  lines = '\n'.join(said_of.lines(found))
  bare = said_of.lines(found | {'policy': 'none'})
  assert bare[0] == 'uniform selection of clients'
  for text in ('12.5 s, fedbuff', '25.0% of FLOPs', '3 late',
               'Gini 0.6', 'at most 2', 'slowest'):  # fmt: skip
    assert text in lines
