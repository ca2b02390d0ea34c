"""Each process reads the inputs of its own clients, and what all must see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import full
from fedms_jax.cluster.placement import Placement
from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.data import federation as federations
from fedms_jax.data import images, lazy
from fedms_jax.persistence import run_store
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import driver, evaluation, observer, pretraining
from fedms_jax.simulation.state import Options
from tests import folders, world
from tests.data.lazy_test import Spy

CLIENTS, UNSEEN = 6, 2


class Process(SingleProcess):
  """One of two processes, that is never asked to meet the other."""

  processes = 2

  def __init__(self, number):
    self.process_id = number


def lazily(data):
  """The same federation with lazy images, and who counts their rows."""
  spy = Spy(inputs=data.table.columns['inputs'])
  columns = data.table.columns | {'inputs': lazy.Column(spy, 'inputs')}
  return data._replace(table=data.table._replace(columns=columns)), spy


def simulation(data, number):
  return driver.Simulation(
    data, world.start(), world.stages(1),
    Options(cohort=3, batch_size=4, block=32),
    run_store=run_store.Memory(), observer=observer.Observers(),
    place=Placement(peers=Process(number)),
  )  # fmt: skip


def rows_of(data, number):
  """The rows that a process is to read: the clients' halves in number."""
  clients = np.array_split(np.arange(CLIENTS), 2)[number]
  own = [p.of(k) for p in data[1:4] for k in clients]
  own.append(data.unseen.of(number))
  return np.unique(np.concatenate([*own, data.pooled]))


@pytest.mark.parametrize('number', [0, 1])
def test_a_process_reads_the_rows_of_its_clients_and_the_pooled_ones(number):
  eager = federations.by_client(world.federation(CLIENTS, UNSEEN))
  everybody = eager.pooled
  eager = evaluation.limited(eager, 8, seed=0)
  assert len(eager.pooled) == 8 and set(eager.pooled) < set(everybody)
  data, spy = lazily(eager)
  made = simulation(data, number)
  mine = rows_of(data, number)
  assert sorted(spy.seen) == mine.tolist()
  assert len(mine) < 50  # of 96
  algorithm, roles = world.first_stage()
  table, translate = made.tables.view(algorithm, roles, mine, world.DENSE)
  np.testing.assert_array_equal(
    table['inputs'][translate(mine)], eager.table.columns['inputs'][mine]
  )


def test_the_server_s_training_reads_the_public_rows_alone():
  data, spy = lazily(world.federation())
  method = full.full_model(world.setting())
  trained = [
    pretraining.train(
      method, d, jax.tree.map(jnp.array, world.start()), world.BLOCKS,
      epochs=1, batch_size=8, seed=0, observer=observer.Observers(),
    )
    for d in (data, world.federation())
  ]  # fmt: skip
  assert spy.seen == data.public.tolist()
  world.same(*trained)


@pytest.fixture
def decoded(monkeypatch):
  seen, decode = [], images._pixels

  def watched(where, item, prepare):
    seen.append(where)
    return decode(where, item, prepare)

  monkeypatch.setattr(images, '_pixels', watched)
  return seen


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return folders.pictures(tmp_path_factory.mktemp('pictures'))


def config(folder):
  flat = {
    'data.source': str(folder), 'data.train_split': 'test',
    'data.label_column': 'label', 'data.image_size': 8,
    'data.public_shift': 'invert', 'partition.num_clients': 3,
    'partition.unseen_clients': 1, 'partition.min_rows': 5,
    'partition.name': 'iid', 'cohort.size': 2, 'model.blocks': 1,
    'model.width': 8, 'model.heads': 2, 'progress': False,
  }  # fmt: skip
  return config_lib.from_values(flat)


def test_one_process_decodes_each_image_once(folder, decoded):
  made = worlds.world(config(folder))
  # The first is looked at for its size before any is read.
  assert len(decoded) - 1 == len(set(decoded)) == 48
  assert isinstance(made.data.table.columns['inputs'], np.ndarray)


def test_of_several_processes_each_decodes_when_it_needs_to(
  folder, decoded, monkeypatch
):
  eager = worlds.world(config(folder)).data
  decoded.clear()
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  data = worlds.world(config(folder)).data
  assert len(decoded) == 1  # for the shape of the model
  rows = np.concatenate([data.public, data.train.of(1)])
  found = lazy.take(data.table.columns, rows)
  assert len(decoded) == 1 + len(rows) < 48
  for name, column in eager.table.columns.items():
    np.testing.assert_array_equal(found[name], column[rows])
