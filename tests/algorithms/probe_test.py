"""The linear probe: the head alone learns, on features computed once."""

import jax
import numpy as np
import optax
import pytest

from fedms_jax.algorithms import probe
from fedms_jax.core.types import Plan
from fedms_jax.models import pretrained
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import observer, pretraining
from tests import world


@pytest.fixture(scope='module')
def trained():
  """(roles before, shared after, algorithm, federation, records)."""
  federation = world.federation()
  setting = world.setting(optimizer=optax.adam(0.05))
  algorithm = probe.linear_probe(setting)
  records = observer.Recorder()
  shared = pretraining.train(
    algorithm,
    federation,
    world.start(),
    world.BLOCKS,
    epochs=6,
    batch_size=4,
    seed=0,
    observer=records,
  )
  return world.start(), shared, algorithm, federation, records.records


def test_the_head_alone_is_trained(trained):
  before, shared, algorithm, *_ = trained
  assert set(shared) == {'head'}
  kernel = before.frozen['head']['kernel']
  assert np.any(shared['head']['kernel'] != kernel)
  roles = algorithm.begin(jax.random.key(0), before)
  assert set(roles.frozen) == {'base'} and not roles.personal


def test_it_learns(trained):
  losses = [record['train_loss'] for record in trained[-1]]
  assert len(losses) == 6 and losses[-1] < 0.9 * losses[0], losses


def test_it_reads_the_features_of_the_base(trained):
  before, _, algorithm, federation, _ = trained
  roles = algorithm.begin(jax.random.key(0), before)
  raw = {k: v[:5] for k, v in federation.table.columns.items()}
  plan = Plan((True,) * world.BLOCKS, 0)
  columns = algorithm.columns(roles, raw, plan)
  expected = pretrained.encode(
    world.backbone(), before.frozen['base'], raw['inputs']
  )
  np.testing.assert_allclose(columns['features'], expected, atol=1e-6)
  logits = algorithm.predict(roles, columns, plan).logits['global']
  np.testing.assert_allclose(
    logits,
    world.backbone().logits(
      before.frozen['base'], before.frozen['head'], expected
    ),
    atol=1e-6,
  )


def test_without_public_rows_or_epochs_the_head_stays(trained):
  before, _, algorithm, federation, _ = trained
  nobody = federation._replace(public=federation.public[:0])
  for data, epochs in ((nobody, 3), (federation, 0)):
    shared = pretraining.train(
      algorithm, data, before, world.BLOCKS, epochs=epochs, batch_size=4,
      seed=0, observer=observer.Silent(),
    )  # fmt: skip
    np.testing.assert_array_equal(
      shared['head']['kernel'], before.frozen['head']['kernel']
    )


def mode(headed=False, **values):
  flat = {k.replace('__', '.'): v for k, v in values.items()}
  found = config_lib.from_values(flat)
  return worlds.pretrain_mode(found.pretrain, found.model, headed)


def test_what_the_server_trains_by_default():
  assert mode() == 'full'
  assert mode(model__name='a/b') == 'probe'
  assert mode(model__name='a/b', headed=True) == 'none'
  assert mode(model__name='a/b', model__keep_head=True) == 'none'
  assert mode(model__name='a/b', model__head='causal_lm') == 'none'
  assert mode(pretrain__mode='probe') == 'probe'


@pytest.mark.parametrize(
  'values',
  [
    {'pretrain__mode': 'probe', 'model__head': 'zero_shot'},
    {'pretrain__mode': 'full', 'model__storage': 'bfloat16'},
  ],
)
def test_what_cannot_be_trained_is_refused(values):
  with pytest.raises(ValueError, match='--pretrain.mode='):
    mode(model__name='a/b', **values)
