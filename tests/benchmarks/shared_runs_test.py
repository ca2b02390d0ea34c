"""What runs of one process share, and what they must not."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.shared_runs import SharedRuns
from fedms_jax.shell import flags
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import observer
from tests import world

SMALL = (
  '--model.blocks=2 --model.width=8 --model.heads=2 --pretrain.epochs=1 '
  '--partition.num_clients=3 --partition.unseen_clients=0 --cohort.size=2 '
  '--data.max_rows=300 --partition.name=dirichlet'
).split()


def parsed(*words):
  return flags.parse(['fedms', *SMALL, *words])


@pytest.fixture
def runs(tmp_path):
  return SharedRuns(tmp_path)


def algorithms(runs, *words):
  return [stage.algorithm for stage in runs.world(parsed(*words)).stages]


def test_schedules_lengths_and_seeds_share_algorithms_and_nothing_else(runs):
  first = runs.world(parsed())
  other = runs.world(parsed('--schedule=dense', '--workdir=x'))
  assert other.data is first.data
  for a, b in zip(first.stages, other.stages, strict=True):
    assert (a.algorithm, a.probe) == (b.algorithm, b.probe)
    assert a.schedule is not b.schedule
  short = runs.world(
    parsed('--algorithm.stage1_rounds=1', '--algorithm.stage2_rounds=2')
  )
  assert [(s.algorithm, s.rounds) for s in short.stages] == [
    (first.stages[0].algorithm, 1), (first.stages[1].algorithm, 2)
  ]  # fmt: skip
  alone = runs.world(parsed('--algorithm.stage2_rounds=0'))
  assert len(alone.stages) == 1
  new = runs.world(parsed('--seed=1'))
  assert [s.algorithm for s in new.stages] == [
    s.algorithm for s in first.stages
  ]
  fresh = worlds.world(parsed('--seed=1'))
  world.same(new.data, fresh.data)
  assert new.data.train.rows.tolist() != first.data.train.rows.tolist()


@pytest.mark.parametrize(
  'flag', ['--client.momentum=0.5', '--gate.kind=sigmoid', '--lora.rank=2',
           '--server.optimizer=adam', '--fedms.local_loss=both'],
)  # fmt: skip
def test_what_an_algorithm_is_made_of_is_not_shared(runs, flag):
  first, other = algorithms(runs), algorithms(runs, flag)
  assert first[1] != other[1]
  assert algorithms(runs) == first  # and is still there


def test_seeds_and_rates_share_algorithms_but_where_ranks_are_drawn(
  tmp_path,
):
  shelf = SharedRuns(tmp_path)
  assert algorithms(shelf) == algorithms(shelf, '--seed=1')
  assert algorithms(shelf) == algorithms(shelf, '--schedule=dense')
  assert algorithms(shelf) == algorithms(shelf, '--client.learning_rate=0.1')
  # Then a gate that is fitted has the clients' learning rate.
  other = '--gate.learning_rate=0', '--client.learning_rate=0.1'
  assert algorithms(shelf, other[0]) != algorithms(shelf, *other)
  ranks = ('--algorithm.name=hetlora', '--lora.ranks=1,2')
  first = algorithms(shelf, *ranks)
  assert algorithms(shelf, *ranks) == first
  assert algorithms(shelf, *ranks, '--seed=1') != first


def test_the_server_trains_once_for_a_seed_and_a_killed_benchmark(
  tmp_path, monkeypatch
):
  trained = []

  def train(config, shared, before, watch, after):
    trained.append(config.seed)
    shapes = worlds.pretrained_shapes(config, shared)
    value = config.seed + config.pretrain.epochs
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)

  monkeypatch.setattr(worlds, 'pretrained', train)

  def made(runs, *words):
    config = parsed(*words)
    runs.prepare(config)
    shared = runs.world(config)
    before = runs.initial(config, shared)
    return runs.pretrained(config, shared, before, observer.Silent())

  runs = SharedRuns(tmp_path)
  first = made(runs)
  assert made(runs, '--schedule=dense', '--client.epochs=1') is first
  assert trained == [0]
  again = made(SharedRuns(tmp_path))  # the process was killed
  assert trained == [0]
  world.same(again, first)
  other = made(runs, '--seed=1'), made(runs, '--pretrain.epochs=2')
  assert trained == [0, 1, 0]
  for tree in other:
    assert jax.tree.leaves(tree)[0].ravel()[0] == 2
