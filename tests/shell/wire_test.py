"""Codes and secure sums from flags: what is built, said and refused."""

import dataclasses
import json

import numpy as np
import pytest

from fedms_jax.core import inner_state, tree
from fedms_jax.core.contract import PLAIN
from fedms_jax.core.wire import INNER
from fedms_jax.models.family import Model
from fedms_jax.shell import (
  commands,
  flags,
  main,
  methods,
  privacy,
  privacy_report,
  wire,
)
from fedms_jax.systems.ledger import Meter
from tests import world

SECURE = ('--secagg.mode=masked', '--server.weights=equal')
DISTRIBUTED = (
  '--secagg.mode=ideal', '--privacy.mode=distributed',
  '--privacy.accountant=rdp', '--schedule.name=linear', '--privacy.noise=2',
)  # fmt: skip


def stages(*words):
  config = flags.parse(['fedms', *words])
  return config, methods.stages(
    config, Model(world.backbone(), {}), world.CLASSES
  )


def test_without_flags_there_is_no_channel_and_nothing_for_arrivals():
  _, found = stages()
  assert all(stage.algorithm.channel is PLAIN for stage in found)
  assert all(stage.arrivals is None for stage in found)


def test_equal_flags_give_one_channel_that_the_seed_does_not_change():
  words = (*SECURE, '--compression.up=random_k', '--compression.down=drive')
  one = stages(*words)[1][0].algorithm
  two = stages(*words, '--seed=3')[1][0].algorithm
  assert one is two or one.channel is two.channel
  wired = one.channel.wire
  assert wired.open and wired.receive and wired.keys.early
  part = {'head': np.zeros((40, 50), np.float32)}
  # Of 2000 numbers 20 are sent, in 20 bits: of ten clients, 16 each.
  assert wired.coded(part) == -(-(20 + 2) * 20 // 8)
  assert wired.coded_down(part) == (2048 + 32) / 8


def test_clients_keep_what_is_lost_in_each_stage_apart():
  _, found = stages('--compression.up=top_k', '--compression.feedback')
  before = world.start()
  import jax

  for stage in found:
    roles = jax.eval_shape(stage.algorithm.begin, jax.random.key(0), before)
    kept = roles.personal[INNER]['residual']
    assert set(kept) <= set(roles.shared)
    if stage.carry is not None:
      carried = jax.eval_shape(stage.carry, before.personal, roles.personal)
      assert jax.tree.structure(carried) == jax.tree.structure(roles.personal)
    plain = inner_state.model(roles.personal)
    meter = Meter(stage.algorithm, roles, batch=4, slots=2)
    size = tree.nbytes((plain, roles.shared))
    assert meter.trained(world.DENSE) <= size
    before = roles


def test_distributed_noise_is_accounted_by_participations(capsys):
  config, found = stages(*DISTRIBUTED)
  plan = privacy.plan(config, found)
  told = privacy_report.planned(config, plan)
  times = privacy.participations(0, plan.how, plan.rounds).max()
  (line,) = told['events']
  assert line['rounds'] == times and line['event']['levels'] == 2047
  assert line['event'] == {'kind': 'skellam', 'noise': 2.0, 'levels': 2047}
  assert told['epsilon'] == told['epsilon_rdp'] > 0
  assert 'noise' in told['trusted'] and 'zeroed' in told['neighbors']
  guard = found[0].guard
  assert guard.expected == 10.0
  spent = guard.spend(None, np.array([3, 5]), np.array([7, 7]))
  spent = guard.spend(json.loads(json.dumps(spent)), np.array([5]), np.ones(1))
  assert spent == {'3': 1, '5': 2}
  (_, secure) = found[0].algorithm.channel.event
  # Each client makes its part of the noise of as many as must be there.
  assert secure.noise == (2.0, 7) and secure.range == 1.0 and secure.bits == 12
  assert commands.run('plan', ['fedms', *DISTRIBUTED]) == 0
  assert 'distributed' not in capsys.readouterr().err


def test_noise_is_found_for_the_epsilon_of_all_participations():
  words = [w for w in DISTRIBUTED if 'noise' not in w]
  config, found = stages(*words, '--privacy.epsilon=9')
  told = privacy_report.planned(config, privacy.plan(config, found))
  assert 8.9 < told['epsilon'] <= 9.0


def test_cohorts_of_random_size_are_mostly_opened():
  """Their cap is far over their mean; what opens them is not made of it."""
  config, found = stages(*SECURE, '--cohort.sampling=poisson')
  how = wire.sum_of(config, found[0], None, 0)
  assert how.most > 20 and how.shares == 11 and how.needed == 6
  fixed = wire.sum_of(*stages(*SECURE)[:1], found[0], None, 0)
  assert fixed.most == fixed.shares == 10 and fixed.needed == 7


REFUSED = [
  (('--secagg.mode=ideal',), '--server.weights=rows.*secagg.max_weight'),
  ((*SECURE, '--secagg.max_weight=9'), 'weigh alike'),
  ((*SECURE, '--algorithm.name=flora'), '--algorithm.name=flora.*apart'),
  ((*SECURE, '--algorithm.name=scaffold'), '--algorithm.name=scaffold'),
  ((*SECURE, '--algorithm.name=fgl'), 'range is not known'),
  ((*SECURE, '--server.aggregator=krum'), '--server.aggregator=krum'),
  ((*SECURE, '--compression.up=top_k'), '--compression.up=top_k.*random_k'),
  ((*SECURE, '--compression.up=uniform'), 'differ in their scales'),
  ((*SECURE, '--schedule.budgets=1,2'), '--schedule.budgets=1,2'),
  ((*SECURE, '--schedule.order=dropout'), '--schedule.order=dropout'),
  ((*SECURE, '--stages=F2x3'), '--stages=F2x3'),
  ((*SECURE, '--time.policy=synchronous'), '--time.policy=synchronous'),
  ((*SECURE, '--select.name=power_of_choice'), '--select.name=power'),
  (('--compression.down=sign', '--time.policy=fedbuff'), '--time.policy=fed'),
  ((*SECURE, '--secagg.modulus=12'), '`Secure.modulus`=12'),
  ((*SECURE, '--secagg.threshold=3'), '`Secure.threshold`=3.*6 to 10'),
  ((*SECURE, '--cohort.size=1'), 'sum of one client'),
  ((*SECURE, '--secagg.bits=1'), '--secagg.bits=1'),
  ((*SECURE, '--secagg.bits=30'), '`Secure.modulus`'),
  (
    (*SECURE, '--privacy.mode=local', '--privacy.noise=1',
     '--schedule.name=linear'),
    '--privacy.mode=local',
  ),
  (
    (*DISTRIBUTED[:1], '--privacy.mode=central', '--privacy.clipping=adaptive',
     '--schedule.name=linear'),
    'clipping=adaptive',
  ),
  ((*DISTRIBUTED, '--secagg.range=2'), 'it is --privacy.clip'),
  ((*DISTRIBUTED, '--secagg.bits=16'), 'too wide for its table'),
  (DISTRIBUTED[1:], 'needs --secagg.mode'),
  ((*DISTRIBUTED, '--privacy.accountant=pld'), 'accountant=pld'),
  ((*DISTRIBUTED, '--privacy.split=0.5,0.5'), '--privacy.split'),
  ((*DISTRIBUTED, '--compression.up=random_k'), 'undoes a code'),
  (('--compression.up=sign', '--algorithm.name=koala'), 'something else'),
  (('--compression.up=sign', '--algorithm.name=fgl'), 'something else'),
  (('--compression.down=sign', '--algorithm.name=flexlora'), 'something else'),
  (('--compression.up=sign', '--stages=F2x3'), '--stages=F2x3'),
  (
    ('--compression.up=sign', '--compression.feedback', '--eval.adapt=1'),
    '--eval.adapt=1',
  ),
  (
    ('--compression.up=sign', '--compression.feedback', '--client.state=kept',
     '--algorithm.name=fedavg'),
    '--client.state=kept',
  ),
  (('--compression.up=drive', '--compression.feedback'), 'does nothing here'),
  (('--compression.down=random_k',), 'random_k'),
]  # fmt: skip


@pytest.mark.parametrize(('words', 'said'), REFUSED)
def test_what_cannot_be_added_up_or_counted_is_refused(words, said):
  with pytest.raises(ValueError, match=said):
    stages(*words)


def test_a_refusal_names_the_flag(capsys):
  words = ['fedms', *SECURE, '--secagg.modulus=12', '--data.source=digits']
  assert main.main([*words, '--progress=false']) == 2
  said = capsys.readouterr().err
  assert '--secagg.modulus=12' in said and 'Lower --secagg.bits' in said


@pytest.mark.parametrize('section', ['compression', 'secagg'])
def test_every_option_is_looked_at_or_refused(section):
  config = flags.parse(['fedms'])
  for field in dataclasses.fields(type(getattr(config, section))):
    if field.name in ('mode', 'up', 'down'):
      continue
    other = {bool: True, int: 3, float: 0.125}[type(field.default)]
    with pytest.raises(ValueError, match=f'--{section}.{field.name}=.*nothing'):
      flags.parse(['fedms', f'--{section}.{field.name}={other}'])


def test_codes_are_made_in_the_order_in_which_messages_pass():
  config, _ = stages(
    '--compression.up=sign', '--compression.down=sign',
    '--privacy.mode=central', '--privacy.noise=1', '--schedule.name=linear',
  )  # fmt: skip
  down, up = wire.codes(config)
  assert down.wire.receive and up.wire.coded and not up.wire.receive
