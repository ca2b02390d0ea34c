"""Attacks from flags: what is refused, who does what in which stage."""

import numpy as np
import pytest

from fedms_jax.channel import attacks as channels
from fedms_jax.core.types import Outputs
from fedms_jax.data import poison
from fedms_jax.report import attacked
from fedms_jax.shell import aggregators, attack_report, attacks, config, main
from fedms_jax.simulation import evaluation
from tests import world

SMALL = {'partition.num_clients': 6, 'cohort.size': 3}


def parsed(**values):
  flat = SMALL | {k.replace('__', '.'): v for k, v in values.items()}
  made = config.from_values(flat)
  config.validate(made)
  return made


def refused(capsys, *words):
  assert main.main(['fedms', '--noprogress', *words]) == 2
  text = capsys.readouterr().err
  assert text.startswith('fedms: ') and text.count('\n') == 1, text
  return text


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (['--attack.fraction=0.5'], 'attack.update=label_flip or'),
    (['--attack.update=ipm', '--attack.share=0.1'], '--attack.data=label_flip'),
    (['--attack.data=label_flip', '--attack.target=2'], 'data=backdoor'),
    (['--attack.data=backdoor', '--attack.scale=2'], 'update=sign_flip'),
    (['--attack.update=alie', '--secagg.mode=ideal', '--server.weights=equal'],
     '--secagg.mode=ideal hides'),
    (['--attack.update=alie', '--attack.bound=2'], '=replacement'),
    (['--attack.update=alie', '--attack.start=3', '--attack.stop=3'],
     'no later than'),
    (['--attack.update=ipm', '--algorithm.name=flora'], 'factors, not changes'),
    (['--attack.update=ipm', '--algorithm.name=local'], 'send nothing'),
    (['--attack.update=ipm', '--privacy.mode=central', '--privacy.noise=1',
      '--schedule.name=linear'], 'Take another attack'),
    (['--attack.data=backdoor', '--attack.target=10'], '--attack.target=10'),
    (['--attack.data=backdoor', '--attack.trigger=9'], '--attack.trigger=9'),
    (['--server.bound=1'], '--server.aggregator=norm_bound'),
    (['--server.bucket=2'], '--server.aggregator=median'),
    (['--server.bucket=2', '--server.aggregator=foolsgold'], 'bucket=2 does'),
    (['--server.aggregator=bulyan', '--server.byzantine=2'],
     'needs 11 clients'),
    (['--attack.update=min_max', '--attack.scale=2'], '=sign_flip'),
    (['--attack.update=alie', '--attack.direction=unit'], '=min_max'),
    (['--attack.update=min_sum', '--algorithm.name=flora'], 'factors, not'),
    (['--server.keep=2', '--server.aggregator=krum'], 'multi_krum'),
    (['--server.aggregator=multi_krum', '--cohort.size=4'], 'needs 5 clients'),
    (['--server.aggregator=krum', '--cohort.size=8', '--server.bucket=2'],
     'needs 5 buckets'),
  ],
)  # fmt: skip
def test_what_means_nothing_is_refused(words, said, capsys):
  assert said in refused(capsys, *words)


def test_labels_are_flipped_where_there_are_any():
  flat = SMALL | {'attack.data': 'label_flip', 'model.head': 'causal_lm'}
  with pytest.raises(ValueError, match='which --model.head=causal_lm does not'):
    attacks.poisoned(config.from_values(flat), world.federation())
  data = world.federation()
  values = data.table._replace(outputs=Outputs('values', ('x',)))
  made = parsed(attack__data='label_flip')
  with pytest.raises(ValueError, match='has other outputs'):
    attacks.poisoned(made, data._replace(table=values))


@pytest.mark.parametrize('name', config.training.AGGREGATORS)
def test_every_aggregator_is_made_of_flags(name):
  alone = name in ('mean', 'foolsgold')
  more = {} if alone else {'server__bucket': 2}
  made = parsed(
    server__aggregator=name, cohort__size=14, partition__num_clients=20, **more
  )
  found = aggregators.aggregator(made)
  assert found.reduction == ('sum' if name == 'mean' else 'stack')
  assert (found.draw is not None) == bool(more)
  assert (found.past is not None) == (name == 'foolsgold')


def test_stages_count_the_rounds_of_the_run():
  """An attack from round 2 to 5 of two stages of 3 rounds."""
  made = parsed(
    attack__update='sign_flip', attack__data='label_flip', attack__start=2,
    attack__stop=5, attack__fraction=0.5,
  )  # fmt: skip
  data = world.federation()
  found = attacks.poisoned(made, data)
  assert found is not None
  stages = attacks.viewed(made, world.stages(3), found)
  poisoned = []
  for stage in stages:
    assert stage.view is not None
    train = stage.view(found.data).train
    poisoned += [(train.at(r).rows >= len(found.copy) - (found.copy >= 0).sum())
                 .any() for r in range(3)]  # fmt: skip
  assert poisoned == [False, False, True, True, True, False]
  members = [attacks.channel(made, s, 3 * i) for i, s in enumerate(stages)]
  assert [len(x) for x in members] == [1, 1]
  late = attacks.viewed(parsed(attack__data='label_flip', attack__start=3),
                        world.stages(3), found)  # fmt: skip
  assert late[0].view is None and late[1].view is not None


def test_what_a_lie_is_made_of_is_what_the_flags_say():
  """Equal attacks are one object."""
  stage = world.stages(1)[0]
  made = parsed(
    attack__update='min_sum', attack__direction='unit', attack__fraction=0.5,
    attack__stop=7,
  )  # fmt: skip
  who = tuple(attacks.malicious(made).tolist())
  how = channels.Attack('min_sum', who, stop=7, direction='unit')
  assert len(who) == 3
  assert attacks.channel(made, stage, 0) == [channels.attack(how)]


def test_nobody_malicious_is_no_attack():
  made = parsed(attack__update='sign_flip', attack__fraction=0.0)
  stage = world.stages(1)[0]
  assert attacks.channel(made, stage, 0) == []
  clean = parsed(attack__data='backdoor', attack__fraction=0.0)
  data = world.federation()
  found = attacks.poisoned(clean, data)
  assert found is not None
  seen = attacks.viewed(clean, [stage], found)[0].view
  assert seen is not None
  np.testing.assert_array_equal(seen(found.data).train.rows, data.train.rows)


def test_a_curve_follows_the_rows_of_honest_clients():
  found = attacks.poisoned(
    parsed(attack__data='backdoor', attack__fraction=0.34), world.federation()
  )
  assert found is not None and len(found.clients) == 2
  rows = attacks.aimed(found.data, found)
  whole = poison.tested(found.data, found.copy).test
  assert rows is not None and rows.num_clients == 6
  for k in range(6):
    want = [] if k in found.clients else whole.of(k)
    np.testing.assert_array_equal(rows.of(k), want)
  all_bad = found._replace(clients=np.arange(6))
  same = attacks.aimed(found.data, all_bad)
  assert same is not None
  np.testing.assert_array_equal(same.rows, whole.rows)
  assert attacks.aimed(found.data, None) is None


@pytest.mark.slow
def test_success_is_told_of_honest_clients_apart():
  """The model that has learned nothing takes rows for the target as often as
  it does clean ones; a run whose clients are all malicious does not."""
  sides = {}
  for fraction in (0.0, 1.0):
    made = parsed(
      attack__data='backdoor', attack__fraction=fraction, attack__share=1.0,
      attack__target=1,
    )  # fmt: skip
    found = attacks.poisoned(made, world.federation())
    assert found is not None
    stages = attacks.viewed(made, world.stages(2), found)
    simulation, state, _ = world.simulate(stages, data=found.data)
    scope = evaluation.Scope()
    scores = evaluation.evaluate(simulation, state, scope)

    class World:
      poison = found

    told = attack_report.summary(made, World, simulation, state, scope, scores)
    assert told is not None
    side = {0.0: 'honest', 1.0: 'malicious'}[fraction]
    other = {'honest': 'malicious', 'malicious': 'honest'}[side]
    assert told['success']['global'][other] is None
    assert told['score']['global'][side] == pytest.approx(
      scores['models']['global']['own_mean']
    )
    sides[fraction] = told['success']['global'][side]
    text = attacked.text({'attack': told})
    assert f'backdoor by {round(6 * fraction)} of 6 clients' in text
  assert sides[1.0] > sides[0.0]
  assert sides[0.0] < 0.75
