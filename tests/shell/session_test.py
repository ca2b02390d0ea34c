"""Runs from Python give what the command gives, and models to use."""

import flax.linen as nn
import numpy as np
import pytest

import fedms_jax
from examples import common
from fedms_jax.shell import config, values
from tests.shell import registry

SMALL = {
  'rounds': 2,
  'progress': False,
  'partition': {'num_clients': 6, 'unseen_clients': 0},
  'cohort_size': 3,
}


@pytest.fixture(scope='module', autouse=True)
def plugins_of_this_file():
  with registry.fresh():
    yield


@pytest.fixture(scope='module')
def result():
  return fedms_jax.simulate(
    common.network(), common.digits(), 'fedper', metrics='f1', **SMALL
  )


def test_scores_of_clients_bear_their_ids(result):
  assert [row['client'] for row in result.clients] == list(range(6))
  own = [row['local'] for row in result.clients]
  assert np.isclose(np.mean(own), result.scores['local']['own_mean'])
  assert 'f1/local' in result.clients[0]
  assert [r['round'] for r in result.records] == [0, 1]
  assert list(result.frame('clients')['client']) == list(range(6))
  assert result.frame().loc[1, 'round'] == 1
  assert 'local expert' in str(result) and '<pre>' in result._repr_html_()


def test_what_is_predicted_is_what_was_scored(result):
  data = result._finished.world.data
  for k in (0, 3):
    rows = data.test.of(k)
    logits = result.predict(data.table.columns['inputs'][rows], client=k)
    right = logits.argmax(-1) == data.table.columns['labels'][rows]
    assert np.isclose(right.mean(), result.clients[k]['local'])
  params = result.parameters(client=3)
  again = common.Mlp().apply({'params': params}, common.PIXELS[:5])
  found = result.predict(common.PIXELS[:5], client=3)
  np.testing.assert_allclose(found, again, atol=1e-4)
  other = result.predict(common.PIXELS[:5], client=0)
  assert np.abs(found - other).max() > 1e-3


def test_a_model_is_exported_by_its_paths(result, tmp_path):
  import safetensors.numpy

  path = result.export(tmp_path / 'out', client=2)
  arrays = safetensors.numpy.load_file(path)
  kernel = result.parameters(client=2)['head']['kernel']
  np.testing.assert_array_equal(arrays['network.head.kernel'], kernel)


def test_a_run_in_a_folder_is_resumed_and_asked_bitwise(result, tmp_path):
  given = {**SMALL, 'workdir': str(tmp_path / 'run'), 'tensorboard': False}
  runs = [
    fedms_jax.simulate(
      common.network(), common.digits(), 'fedper', metrics='f1', **given, **more
    )
    for more in ({}, {'resume': True})
  ]
  some = common.PIXELS[:5]
  for found in runs:
    assert found.clients == result.clients
    np.testing.assert_array_equal(
      found.predict(some, client=4), result.predict(some, client=4)
    )
  assert runs[0].report().exists()
  with pytest.raises(ValueError, match='workdir'):
    result.report()


def test_a_method_a_schedule_and_a_sampler_may_be_functions(result):
  told = []

  def method(builder):
    told.append(builder.rounds)
    return builder.shared_model(builder.setting())

  def schedule(begin):
    told.append(begin)
    return fedms_jax.Trigger(None, lambda s, x: s, lambda s, t: 1, reads=False)

  def sampler(seed, stage, round, clients, size):
    return np.array([4, 1])

  found = fedms_jax.run(
    model=common.network(), data=common.digits(), algorithm=method,
    schedule=schedule, sampler=sampler, observers=told.append, **SMALL,
  )  # fmt: skip
  assert told[0] == 2 and told[1].first == 1
  assert [r['round'] for r in told if isinstance(r, dict)] == [0, 1]
  assert np.flatnonzero(found.state.met).tolist() == [1, 4]
  plain = fedms_jax.simulate(
    common.network(), common.digits(), sampler=sampler, **SMALL
  )
  assert found.scores == plain.scores


def test_a_value_of_the_same_name_is_another_value():
  """Two methods of one name are not one program."""

  def scaled(factor):
    def method(builder):
      plain = builder.shared_model(builder.setting())

      def finish(carry, start):
        import jax

        message, own = plain.update.finish(carry, start)
        update = jax.tree.map(lambda x: factor * x, message.update)
        return message._replace(update=update), own

      return plain._replace(update=plain.update._replace(finish=finish))

    return method

  kernels = [
    np.asarray(
      fedms_jax.simulate(
        common.network(), common.digits(), scaled(f), **SMALL | {'rounds': 1}
      ).parameters()['head']['kernel']
    )
    for f in (1.0, 0.5)
  ]
  np.testing.assert_allclose(kernels[0], 2 * kernels[1], rtol=1e-5, atol=1e-7)


def test_options_are_spelled_as_flags_as_dicts_or_in_a_config():
  given = {'client_learning_rate': 0.5, 'cohort': {'size': 4}, 'seed': 3}
  found = values.config(None, given)
  assert (found.client.learning_rate, found.cohort.size) == (0.5, 4)
  again = values.config(found, {'seed': 4, 'schedule': 'linear'})
  assert again.client.learning_rate == 0.5
  assert (again.seed, again.schedule.name) == (4, 'linear')
  assert values.config(None, {}) == config.Config()
  pair = values.config(None, {'rounds': 10}).algorithm
  assert (pair.stage1_rounds, pair.stage2_rounds) == (6, 4)
  one = values.config(None, {'rounds': 10, 'algorithm': 'fedit'}).algorithm
  assert one.stage1_rounds + one.stage2_rounds == 10


def test_what_a_user_says_wins_over_what_fits_a_value():
  given = {'model': common.network(), 'data': common.digits()}
  usual = values.config(None, given)
  assert usual.data.public_fraction == 0 and usual.schedule.name == 'dense'
  own = values.config(None, given | {'data_public_fraction': 0.2})
  assert own.data.public_fraction == 0.2
  few = values.config(None, given | {'partition_num_clients': 3})
  assert few.cohort.size == 3


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    ({'client_learning_rat': 0.5}, 'client_learning_rate'),
    ({'client_learning_rate': 'fast'}, 'float'),
    ({'seed': 1.5}, 'int'),
    ({'cohort': {'sise': 4}}, 'no option'),
    ({'algorithm': 3}, 'Builder'),
    ({'rounds': 'many'}, 'rounds'),
    ({'cohort_size': 0}, 'at least 1'),
  ],
)
def test_what_is_no_option_is_refused_by_name(given, said):
  with pytest.raises(ValueError, match=said):
    values.config(None, given)


class Wrong(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(7)(x)


@pytest.mark.parametrize(
  ('model', 'given', 'said'),
  [
    (fedms_jax.of_flax(Wrong()), {}, r'\[B, 10\]'),
    (fedms_jax.of_flax(common.Mlp()), {'algorithm': 'fedrep'}, 'head'),
    (common.network(), {'algorithm': 'fedms'}, 'needs a model of blocks'),
    (common.network(), {'model_head': 'regression'}, 'Set `head`'),
    (common.network(), {'privacy': {'mode': 'central', 'noise': 1.0},
                        'sampler': lambda *_: [0]}, 'sampl'),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_compiles(
  model, given, said
):
  options = {'model': model, 'data': common.digits(), 'algorithm': 'fedavg'}
  with pytest.raises(ValueError, match=said):
    fedms_jax.run(**options | SMALL | given)


def test_clients_that_are_none_of_the_run_are_refused(result):
  for client in (6, -1, 'zoe'):
    with pytest.raises(ValueError, match='0 to 5'):
      result.predict(common.PIXELS[:2], client=client)
  with pytest.raises(ValueError, match=r'\[n, 64\]'):
    result.predict(common.PIXELS[:2, :9])
  with pytest.raises(ValueError, match='none'):
    result.predict(common.PIXELS[:2], model='mixture')


def test_every_public_name_is_there():
  for name in dir(fedms_jax):
    assert getattr(fedms_jax, name) is not None
  assert 35 <= len(dir(fedms_jax)) <= 50
  with pytest.raises(AttributeError, match='nothing'):
    fedms_jax.nothing  # noqa: B018
