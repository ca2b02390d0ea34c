"""Privacy from flags: what it costs, what it says, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from fedms_jax.report import private
from fedms_jax.shell import commands, exits, flags, privacy, privacy_report
from fedms_jax.shell import privacy_rules as rules

pytest.importorskip('dp_accounting')
BASE = ('--privacy.mode=central', '--schedule.name=linear')


def config(*words):
  return flags.parse(['fedms', *BASE, *words])


def plan(*words, rounds=(30, 20)):
  found = config(*words)
  rules.check_flags(found)
  return found, privacy.planned(found, rounds, 6)


def test_a_plan_says_what_a_run_would_spend(capsys):
  words = ['--privacy.noise=4', '--privacy.accountant=rdp']
  code = commands.run('plan', ['fedms', *BASE, *words])
  said = capsys.readouterr().out
  assert code == 0
  for text in (
    'privacy: epsilon', 'RDP of dp-accounting', 'one client replaced',
    'trusted: the server', 'fixed cohorts', 'covers', 'does not cover',
    '50 rounds',
  ):  # fmt: skip
    assert text in said


def test_noise_is_found_for_an_epsilon():
  found, made = plan(
    '--privacy.epsilon=9', '--privacy.accountant=rdp',
    '--cohort.sampling=poisson',
  )  # fmt: skip
  costs = privacy_report.planned(found, made)
  assert 8.9 < costs['epsilon'] <= 9.0
  assert costs['noise'] == list(made.noise) and made.noise[0] == made.noise[1]


def test_a_split_spends_the_shares_of_the_stages():
  _, even = plan('--privacy.noise=2')
  _, made = plan('--privacy.noise=2', '--privacy.split=0.8,0.2')
  spent = [n / z**2 for n, z in zip((30, 20), made.noise, strict=True)]
  assert spent[0] / sum(spent) == pytest.approx(0.8)
  assert sum(spent) == pytest.approx(50 / 2.0**2)
  assert even.noise == (2.0, 2.0)


def test_parts_of_a_round_share_its_noise():
  """1 / z^2 adds up over values, bits of the adaptive clip, and scores."""
  found, made = plan(
    '--privacy.noise=1', '--privacy.clipping=adaptive', '--privacy.bit_noise=5'
  )
  assert privacy.values_noise(found, made, 0) == pytest.approx(1.005038)
  usual = config('--privacy.noise=1', '--privacy.clipping=adaptive')
  made = privacy.planned(usual, (30, 20), 6)  # of ten clients a round
  assert privacy.values_noise(usual, made, 0) == pytest.approx(0.75**-0.5)
  found = flags.parse([
    'fedms', '--privacy.mode=central', '--privacy.noise=1',
    '--privacy.score_noise=2',
  ])  # fmt: skip
  made = privacy.planned(found, (30, 20), 6)
  assert privacy.values_noise(found, made, 0) == pytest.approx(0.75**-0.5)
  found = config('--privacy.noise=1', '--privacy.clipping=adaptive',
                 '--privacy.bit_noise=0.4')  # fmt: skip
  with pytest.raises(ValueError, match='--privacy.bit_noise.*Raise it'):
    privacy.channel(found, privacy.planned(found, (30, 20), 6), 0)


def test_counts_of_private_masks_take_their_share():
  """Of a client's six blocks the counts move by the root of six."""
  found = config('--privacy.noise=1', '--privacy.masks=private',
                 '--privacy.count_noise=6')  # fmt: skip
  made = privacy.planned(found, (30, 20), 6)
  expected = (1 - 6 / 36) ** -0.5
  assert privacy.values_noise(found, made, 0) == pytest.approx(expected)


def test_a_stated_population_scales_the_noise_and_says_so():
  words = ('--privacy.noise=1', '--cohort.sampling=poisson',
           '--privacy.population=100000', '--privacy.population_cohort=1000',
           '--privacy.accountant=rdp')  # fmt: skip
  found, made = plan(*words)
  assert made.scale == 0.01 and made.stated.chance == 0.01
  assert made.how.clients == 30 and made.expected == 10
  assert made.delta == pytest.approx(100_000**-1.1)
  assert 'not of this run' in privacy_report.planned(found, made)['population']


def test_local_privacy_is_of_who_took_part_most_often():
  found, made = plan('--privacy.mode=local', '--privacy.noise=8')
  times = privacy.participations(0, made.how, made.rounds)
  assert times.sum() == 50 * 10
  costs = privacy_report.planned(found, made)
  (line,) = costs['events']
  assert line['rounds'] == times.max()
  assert line['event'] == {'kind': 'gaussian', 'noise': 4.0}
  assert costs['trusted'] == 'nobody'
  guard = privacy.guard(found, made, 0)
  spent = guard.spend(None, np.array([3, 5]), None)
  spent = guard.spend(json.loads(json.dumps(spent)), np.array([5]), 1)
  assert spent == {'3': 1, '5': 2}
  assert privacy_report.costs(found, made, spent)['rounds'] == 2


def test_a_run_without_noise_has_no_bound():
  found, made = plan()
  costs = privacy_report.planned(found, made)
  assert costs['epsilon'] is None and costs['epsilon_rdp'] is None
  assert 'no bound' in private.lines(costs)[0]
  assert privacy.plan(flags.parse(['fedms']), []) is None


def test_rows_are_private_by_the_steps_of_their_client():
  words = ('--privacy.mode=example', '--privacy.noise=1',
           '--privacy.accountant=rdp')  # fmt: skip
  found, made = plan(*words, '--cohort.size=30')
  sizes = np.where(np.arange(30) % 3, 90, 30)
  costs = privacy_report.planned(found, made, sizes)
  assert costs['unit'] == 'row of a client' and costs['trusted'] == 'nobody'
  # Of 30 rows each comes into a step three times as often as of 90.
  (line,) = costs['events']
  assert line['event'] == {
    'kind': 'truncated', 'chance': 8 / 30, 'clients': 30, 'cap': 25,
    'noise': 1.0,
  }  # fmt: skip
  assert line['rounds'] == 50 * 2 * 4  # rounds, epochs, batches of 8
  assert costs['delta'] == pytest.approx(30**-1.1)
  quantiles = costs['epsilon_rdp_quantiles']
  assert quantiles['0'] == quantiles['0.5'] < quantiles['1']
  assert quantiles['1'] == costs['epsilon_rdp']
  guard = privacy.guard(found, made, 0)
  assert guard.spend({'4': 9}, np.array([4, 7]), np.array([6, 8])) == {
    '4': 15, '7': 8,
  }  # fmt: skip
  assert privacy.channel(found, made, 0) == []


REFUSED = [
  (('--fedms.handover=validation',), '--fedms.handover=validation'),
  (('--stop.patience=3',), '--stop.patience=3'),
  (('--stop.target=0.5',), '--stop.target=0.5'),
  (
    ('--privacy.mode=example', '--gate.rows=validation'),
    '--gate.rows=validation',
  ),
  (
    ('--privacy.mode=example', '--gate.rows=crossfit'),
    '--gate.rows=crossfit',
  ),
  (('--schedule.order=f3ocus',), '--schedule.order=f3ocus measures'),
  (('--algorithm.name=fedv',), '--algorithm.name=fedv.*each of its steps'),
  (
    ('--schedule.name=queue', '--schedule.score=f1', '--privacy.score_noise=1'),
    '--schedule.score=f1',
  ),
  (
    ('--privacy.mode=example', '--gate.inputs=likeness'),
    '--gate.inputs=likeness',
  ),
  (
    ('--privacy.mode=example', '--algorithm.name=ditto'),
    'gradients of single rows',
  ),
  (('--privacy.mode=example', '--privacy.epsilon=1'), '--privacy.epsilon=1'),
  (
    ('--privacy.mode=example', '--privacy.noise=1', '--model.name=x',
     '--model.head=contrast'),
    'compares the rows',
  ),
  (
    ('--privacy.mode=example', '--schedule.name=queue'),
    '--privacy.mode=example does not protect',
  ),
  (('--privacy.mode=none', '--privacy.noise=1'), '--privacy.noise=1.*mode'),
  (('--privacy.mode=none', '--privacy.clip=2'), '--privacy.clip=2'),
  (('--privacy.quantile=0.7',), '--privacy.quantile.*clipping=adaptive'),
  (('--privacy.mode=local', '--privacy.bands=2'), '--privacy.bands=2'),
  (('--privacy.mode=local', '--privacy.clipping=adaptive'), 'clipping'),
  (('--privacy.noise=1', '--privacy.epsilon=1'), 'one follows from the other'),
  (('--privacy.population=9999',), 'belong together'),
  (('--privacy.count_noise=1',), '--privacy.count_noise=1'),
  (('--privacy.masks=private',), '--privacy.masks=private'),
  (('--schedule.name=queue',), '--privacy.score_noise'),
  (('--privacy.score_noise=1',), '--schedule.name=queue'),
  (
    ('--schedule.name=queue', '--privacy.mode=local'),
    '--privacy.mode=local does not protect',
  ),
  (('--schedule.order=importance',), '--schedule.order=importance measures'),
  (('--schedule.order=balanced',), '--schedule.order=balanced measures'),
  (
    ('--schedule.order=allocation', '--schedule.shape=importance'),
    '--schedule.shape=importance measures',
  ),
  (('--server.aggregator=median',), '--server.aggregator=median'),
  (('--algorithm.name=scaffold',), '--algorithm.name=scaffold'),
  (('--algorithm.name=ffdapt',), '--algorithm.name=ffdapt.*how many rows'),
  (('--server.weights=tokens',), '--server.weights=tokens'),
  (('--client.state=averaged',), '--client.state=averaged'),
  (('--stages=F2x3',), '--stages=F2x3'),
  (('--algorithm.name=local',), '--algorithm.name=local.*send nothing'),
  (('--privacy.bands=4',), '--cohort.groups=4'),
  (
    ('--privacy.bands=4', '--cohort.sampling=min_separation',
     '--cohort.groups=2'),
    '--privacy.bands=4',
  ),
  (
    ('--privacy.bands=2', '--cohort.sampling=cyclic', '--cohort.groups=2',
     '--privacy.clipping=adaptive'),
    'another clip',
  ),
  (('--privacy.split=1.0',), '2, one for each stage'),
  (('--privacy.split=0.5,0.6',), 'is no list of shares'),
  (('--privacy.split=1,0',), 'more than 0 for a stage'),
  (('--privacy.delta=0.04',), '`delta`=0.04.*under 1/30'),
  (
    ('--privacy.population=100', '--privacy.population_cohort=5'),
    '--privacy.population_cohort=5',
  ),
  (
    ('--partition.num_clients=30000', '--schedule.budgets=1,2'),
    'differ between clients',
  ),
]  # fmt: skip


@pytest.mark.parametrize(('words', 'said'), REFUSED)
def test_what_would_leak_or_cannot_be_accounted_is_refused(words, said):
  with pytest.raises(ValueError, match=said):
    plan('--privacy.accountant=rdp', *words)


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  with pytest.raises(ValueError, match=r'pip install .fedms_jax\[privacy\]'):
    privacy.accounts.library()


def test_every_option_is_looked_at_or_refused():
  """No option of the section does nothing, silently, without privacy."""
  for field in dataclasses.fields(type(config().privacy)):
    if field.name == 'mode':
      continue
    other = {str: 'x', int: 3, float: 0.125}[type(field.default)]
    if field.metadata['choices']:
      other = field.metadata['choices'][-1]
    if other == field.default:
      other = field.metadata['choices'][0]
    with pytest.raises(ValueError, match=f'privacy.{field.name}'):
      flags.parse(['fedms', f'--privacy.{field.name}={other}'])


def test_exit_codes_are_those_of_bad_flags(capsys):
  assert exits is not None
  from fedms_jax.shell import main

  words = ['fedms', 'plan', *BASE, '--privacy.delta=0.5']
  assert main.main(words) == 2
  assert '--privacy.delta=0.5 is not allowed' in capsys.readouterr().err
