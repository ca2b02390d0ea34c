"""Tables: every scope and place gives the same numbers, each block once."""

import json

import jax
import numpy as np
import pytest
from jax.extend import core as jex
from jax.interpreters import partial_eval

from fedms_jax.cluster import memory
from fedms_jax.core import columns, tree
from fedms_jax.core.columns import Choice, Sizes
from fedms_jax.core.types import Plan, Roles
from fedms_jax.models import counted
from fedms_jax.simulation import derivation
from fedms_jax.simulation.tables import Tables
from tests import world

BLOCK = 16
WAYS = [
  {'scope': 'run', 'place': 'device'}, {'scope': 'run', 'place': 'host'},
  {'scope': 'round'}, {'scope': 'step'},
]  # fmt: skip
SOME = [np.array([0, 17, 40, -1]), np.array([18, 95, 80, 3]), np.arange(96)]


complete = jax.jit(columns.complete, static_argnums=(0, 3))


def tables(**kwargs):
  return Tables(world.columns(), block=BLOCK, **kwargs)


def looked_up(found, rows, algorithm, roles, plan):
  """What a step sees of these rows: by column, without the padding."""
  table, translate = found.view(algorithm, roles, rows, plan)
  batch = columns.take(table, translate(rows))
  if not all(name in batch for name in algorithm.derived):
    batch = complete(algorithm, roles, batch, plan)
  assert (batch.pop('mask') == (rows >= 0)).all()
  return jax.tree.map(lambda x: np.asarray(x)[rows >= 0], batch)


@pytest.mark.parametrize('stage', [world.first_stage, world.second_stage])
def test_every_scope_and_place_gives_the_same_columns(stage):
  """To rounding, where a pass leaves more than it was asked for, or a step
  computes them; bitwise, where the same program has made them."""
  algorithm, roles = stage()
  made = [tables(**way) for way in WAYS]
  for plan in (world.TOP, world.DENSE):  # SAL deepens: another prefix
    for rows in (SOME[0], SOME[1], SOME[0]):
      device, host, sent, step = (
        looked_up(t, rows, algorithm, roles, plan) for t in made
      )
      world.same(host, sent)
      world.close(device, host)
      world.close(device, step)
  assert [t.scope for t in made] == ['run', 'run', 'round', 'step']
  assert [t.place for t in made] == ['device', 'host', 'device', 'device']


def test_a_process_holds_the_rows_that_it_reads_and_no_others():
  algorithm, roles = world.first_stage()
  asked = SOME[0]
  only = np.unique(asked[asked >= 0])
  for way in WAYS:
    found = tables(**way, only=only)
    ours = looked_up(found, asked, algorithm, roles, world.TOP)
    theirs = looked_up(tables(**way), asked, algorithm, roles, world.TOP)
    world.close(ours, theirs)
    table, _ = found.view(algorithm, roles, asked, world.TOP)
    assert len(table['labels']) < only.size + BLOCK


def test_a_run_with_columns_in_host_memory_is_the_same_bitwise():
  """Also after the depth has grown."""
  _, state, records = world.simulate(world.stages(2)[:1], scope='round')
  simulation, found, seen = world.simulate(
    world.stages(2)[:1], scope='run', place='host'
  )
  assert simulation.tables.place == 'host'
  world.same(state.roles, found.roles)
  for a, b in zip(records, seen, strict=True):
    assert a['train_loss'] == b['train_loss'] and a['score'] == b['score']


@pytest.mark.parametrize(('place', 'deeper'), [('device', 0), ('host', 3)])
def test_a_block_is_derived_once_per_prefix(place, deeper):
  """On the device, the pass to a prefix leaves the columns of shorter ones."""
  algorithm, roles = world.first_stage()
  passes = []
  found = tables(
    scope='run', place=place, on_block=lambda *at: passes.append(at)
  )
  derived = []
  for plan, rows in [
    (world.TOP, SOME[0]), (world.TOP, SOME[1]), (world.TOP, SOME[1]),
    (world.DENSE, SOME[1]), (world.TOP, SOME[1]),
  ]:  # fmt: skip
    passes.clear()
    found.view(algorithm, roles, rows, plan)
    derived.append(passes[-1][1])
  # Of rows 0, 17, 40 three blocks; then of 80, 95 one; then of all, anew.
  assert derived == [3, 1, 0, deeper, 3]
  assert found.derived_rows == BLOCK * sum(derived)


def plan(boundary):
  return Plan(tuple(b >= boundary for b in range(3)), boundary)


@pytest.mark.parametrize('stage', [world.first_stage, world.second_stage])
def test_who_goes_deeper_derives_nothing_again_resumed_or_not(stage):
  """What is found is what another table derives, and a resumed run's is the
  same bitwise; nothing is counted twice."""
  algorithm, roles = stage()
  passes = []
  whole = tables(scope='run', on_block=lambda *at: passes.append(at[1]))
  looked_up(whole, SOME[2], algorithm, roles, plan(2))
  first, saved = whole.derived_rows, json.loads(json.dumps(whole.counted()))
  for boundary in (1, 0):
    passes.clear()
    went_on = looked_up(whole, SOME[2], algorithm, roles, plan(boundary))
    assert passes == [0] and whole.derived_rows == first
    fresh = looked_up(
      tables(scope='run'), SOME[2], algorithm, roles, plan(boundary)
    )
    world.close(went_on, fresh)
    for before in (saved, json.loads(json.dumps(whole.counted()))):
      resumed = tables(scope='run')
      resumed.count_as_done(before)
      again = looked_up(resumed, SOME[2], algorithm, roles, plan(boundary))
      world.same(went_on, again)
      assert resumed.derived_rows == 0


@pytest.mark.parametrize(('room', 'lower'), [(0, ()), (1, (1,)), (9, (0, 1))])
def test_a_pass_leaves_the_next_boundaries_as_far_as_they_fit(room, lower):
  algorithm, roles = world.first_stage()
  whole = tables(scope='run')
  table, _ = whole.view(algorithm, roles, SOME[2], plan(2))
  size = {name: tree.nbytes(x) for name, x in table.items()}
  budget = sum(size.values()) + 2 * room * size['prefix']
  some = tables(scope='run', budget=budget)
  some.view(algorithm, roles, SOME[2], plan(2))
  (_, boundary), kept = json.loads(json.dumps(some.counted()))[2]
  assert boundary == 2 and tuple(kept) == lower


def flops(algorithm, roles, lower):
  """Of the pass to boundary 2, without what nobody reads."""
  raw = {name: x[:4] for name, x in world.columns().items()}
  shared = Roles(roles.frozen, roles.shared, None)
  args = shared, raw

  def derived(roles, raw):
    return derivation.derive.__wrapped__(algorithm, roles, raw, plan(2), lower)

  made = jax.make_jaxpr(derived)(*args)
  used, _ = partial_eval.dce_jaxpr(
    made.jaxpr, [True] * len(made.out_avals), instantiate=True
  )
  run = jex.jaxpr_as_fun(jex.ClosedJaxpr(used, made.consts))
  return counted.cost(run, *jax.tree.leaves(args))[0]


@pytest.mark.parametrize('stage', [world.first_stage, world.second_stage])
def test_what_a_pass_leaves_costs_nothing(stage):
  algorithm, roles = stage()
  alone = flops(algorithm, roles, ())
  assert alone > 0
  assert flops(algorithm, roles, (1,)) == alone
  assert flops(algorithm, roles, (0, 1)) == alone


def test_of_many_blocks_few_are_under_way_and_all_are_told_of():
  algorithm, roles = world.first_stage()
  told = []
  found = Tables(
    world.columns(), scope='run', place='host', block=4,
    on_block=lambda *at: told.append(at),
  )  # fmt: skip
  once = looked_up(found, SOME[2], algorithm, roles, world.TOP)
  assert {total for _, total in told} == {24}
  done = [d for d, _ in told]
  assert done == sorted(set(done)) and done[0] < 24 and done[-1] == 24
  # Read again, from host memory this time.
  world.same(once, looked_up(found, SOME[2], algorithm, roles, world.TOP))


def test_a_table_in_use_is_not_written_to():
  """The device may still read a round's table while the next one is made."""
  algorithm, roles = world.first_stage()
  for way in WAYS:
    found = tables(budget=1.0, **way)
    rows = SOME[0]
    table, translate = found.view(algorithm, roles, rows, world.TOP)
    before = jax.tree.map(np.array, columns.take(table, translate(rows)))
    if way != WAYS[0]:  # whose columns are given away to be filled
      found.view(algorithm, roles, SOME[1], world.TOP)
      world.same(before, columns.take(table, translate(rows)))


def test_tables_have_few_widths():
  algorithm, roles = world.first_stage()
  found = Tables(world.columns(), scope='round', block=4)
  widths = []
  for count in (9, 10, 9, 12, 6, 2, 3, 24, 11):
    rows = 4 * np.arange(count)
    table, _ = found.view(algorithm, roles, rows, world.TOP)
    widths.append(len(table['prefix']) // 4)
    assert widths[-1] >= count
  assert widths == [9, 10, 9, 12, 9, 2, 3, 24, 12]


def test_an_algorithm_without_columns_needs_none():
  algorithm = world.first_stage()[0]._replace(
    columns=lambda roles, batch, plan: {}, derived=()
  )
  for way in WAYS:
    table, _ = tables(**way).view(
      algorithm, world.first_stage()[1], SOME[0], Plan((True,) * 3, 0)
    )
    assert set(table) == {'inputs', 'labels'}


SIZES = Sizes(derived=100, raw=10, round=20)


@pytest.mark.parametrize(
  ('wanted', 'device', 'host', 'chosen'),
  [
    (('auto', 'auto'), 110, 0, Choice('run')),
    (('auto', 'auto'), 109, 100, Choice('run', 'host')),
    (('auto', 'auto'), 109, 99, Choice('round')),
    (('auto', 'auto'), 40, 100, Choice('run', 'host')),
    # The next round's table is sent while this round's is in use.
    (('auto', 'auto'), 39, 100, Choice('step')),
    (('auto', 'host'), 110, 100, Choice('run', 'host')),
    (('auto', 'device'), 109, 100, Choice('round')),
    (('run', 'auto'), 0, 100, Choice('run', 'host')),
    (('run', 'device'), 0, 0, Choice('run')),
    (('run', 'host'), 0, 0, Choice('run', 'host')),
    (('round', 'auto'), 110, 100, Choice('round')),
    (('step', 'auto'), 110, 100, Choice('step')),
  ],
)
def test_the_longest_scope_that_fits_is_chosen(wanted, device, host, chosen):
  assert columns.choose(*wanted, SIZES, device, host) == chosen


def test_a_wanted_scope_that_fits_nowhere_is_refused():
  with pytest.raises(ValueError, match='`Options.host_budget`'):
    columns.choose('run', 'auto', SIZES, 109, 99)


@pytest.mark.parametrize(
  ('free', 'assumed', 'scope'),
  [
    (1e9, 0.0, 'run'),
    (2e4, 0.0, 'step'),
    (2e4, 1e9, 'run'),
    (1e9, 1.0, 'step'),
  ],
)
def test_without_a_budget_tables_take_a_share_of_what_is_free(
  monkeypatch, free, assumed, scope
):
  algorithm, roles = world.first_stage()
  monkeypatch.setattr(memory, 'device', lambda: free)
  found = tables(host_budget=1.0, device_memory=assumed)
  for left in (free, 1.0):  # what the table itself takes does not count
    monkeypatch.setattr(memory, 'device', lambda left=left: left)
    found.view(algorithm, roles, SOME[2], world.TOP)
    assert found.scope == scope


def test_a_budget_that_is_asked_for_is_kept(monkeypatch):
  algorithm, roles = world.first_stage()
  monkeypatch.setattr(memory, 'device', lambda: 1.0)
  found = tables(budget=1e9, host_budget=1.0, device_memory=1.0)
  found.view(algorithm, roles, SOME[2], world.TOP)
  assert found.scope == 'run'


def test_a_table_leaves_half_of_a_device_to_training(monkeypatch):
  class Gpu:
    platform = 'gpu'

    def memory_stats(self):
      return {'bytes_limit': 1000, 'bytes_in_use': 200}

  monkeypatch.setattr(memory, 'host', lambda: 1000.0)
  assert memory.for_tables() == 250  # columns in host memory may take 500
  monkeypatch.setattr(jax, 'local_devices', lambda: [Gpu()])
  assert memory.for_tables() == 400
  assert memory.for_tables(free=600) == 300


def test_host_memory_is_what_the_job_has_left(tmp_path):
  table, group = tmp_path / 'meminfo', tmp_path / 'group'
  table.write_text('MemTotal: 9000 kB\nMemAvailable:    4000 kB\n')
  group.mkdir()
  assert memory.host(table, group) == 4000 * 1024
  (group / 'memory.max').write_text('max\n')
  (group / 'memory.current').write_text('700000\n')
  (group / 'memory.stat').write_text('anon 600000\ninactive_file 100000\n')
  assert memory.host(table, group) == 4000 * 1024
  (group / 'memory.max').write_text('1000000\n')
  assert memory.host(table, group) == 400000
  assert memory.host(tmp_path / 'none', group) <= 400000


def test_the_usual_choice_is_that_of_most_rounds():
  """An evaluation of all rows may need another one at the end."""
  algorithm, roles = world.first_stage()
  row = 16 * 5 * (8 + 2 + 8 + 8) * 4  # generous, of one block
  found = tables(budget=2 * row, host_budget=1e9, place='auto')
  assert found.usual == Choice('auto', 'auto')
  for rows in (SOME[0][:1], SOME[0][:1], SOME[2]):
    found.view(algorithm, roles, rows, world.TOP)
  assert Choice(found.scope, found.place) != found.usual
  assert found.usual == Choice('run', 'host')
