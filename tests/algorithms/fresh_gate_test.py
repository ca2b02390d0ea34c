"""A gate that learns from rows that the local expert has not trained on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import adapted, fedms, fresh_gate, mixture
from fedms_jax.core import columns, reduction, rounds
from fedms_jax.core.contract import Clients, Work
from fedms_jax.data import fresh
from fedms_jax.models import gate
from fedms_jax.simulation.state import Stage
from fedms_jax.systems.ledger import Meter
from tests import world

FIT = mixture.Fit(steps=20, rate=0.02, odds_rate=0.1, pull=0.1)
ALL = ('feature', 'confidence', 'likeness')
ROWS = np.arange(8, dtype=np.int32).reshape(1, 2, 4) + 1  # of one client
HELD = np.array([[1, 2, 60, -1]], np.int32)  # two of them, and another one


def choice(rows='holdout', inputs=ALL, mix='logits', **kwargs):
  return fedms.Personal(
    world.spec(inputs=inputs, odds=True, mix=mix), local_loss='own', rows=rows,
    fit=FIT, **kwargs,
  )  # fmt: skip


def client(rows, how='vmap', held=HELD, data=None, count=1, **kwargs):
  """(gate and profile that are sent, personal) of a round of equal clients."""
  algorithm, roles = world.second_stage(choice(rows, **kwargs))
  work = Work(data or world.table(), jax.random.key(5))
  mine = Clients(
    np.arange(count, dtype=np.uint32),
    world.stacked(roles.personal, count),
    np.repeat(ROWS, count, 0),
    np.ones(count, np.float32),
    None if held is None else np.repeat(held, count, 0),
  )
  totals = reduction.empty(algorithm, roles)
  totals, own, _ = rounds.train(algorithm, world.TOP, roles, work, totals, mine)
  sent = jax.tree.map(lambda x, y: x + y / count, roles.shared, totals.update)
  return sent, own


def relabeled(row):
  labels = np.array(world.table()['labels'])
  labels[row] = (labels[row] + 1) % world.CLASSES
  return world.table() | {'labels': jnp.asarray(labels)}


def differ(a, b):
  return max(
    float(np.abs(np.asarray(x) - np.asarray(y)).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


EXPERT = ('blocks', 'head')


@pytest.mark.parametrize(
  ('rows', 'expert', 'apart'),
  [('holdout', False, None), ('crossfit', True, False)],
)
def test_what_the_gate_learns_with_never_trains_on_held_rows(
  rows, expert, apart
):
  """Another label of a held row moves the gate, and no expert it reads."""
  sent, own = client(rows)
  other, moved = client(rows, data=relabeled(1))
  assert differ(sent['gate_odds'], other['gate_odds']) > 1e-3
  assert (differ(*({k: x[k] for k in EXPERT} for x in (own, moved))) > 0) == (
    expert
  )
  if apart is not None:
    keys = [f'{mixture.APART}{k}' for k in EXPERT]
    assert (differ(*({k: x[k] for k in keys} for x in (own, moved))) > 0) == (
      apart
    )
    start = world.second_stage(choice(rows))[1].personal
    assert differ(own[keys[1]], start[keys[1]]) > 1e-4  # but it trains


def test_crossfit_fits_the_gate_as_a_holdout_does():
  """Its second expert is the one that a holdout has, and its gate reads it."""
  (sent, own), (other, alone) = client('crossfit'), client('holdout')
  world.close(sent, other)
  for key in EXPERT:
    world.close(own[f'{mixture.APART}{key}'], alone[key])


def test_both_experts_train_in_one_program():
  """A crossfit's second expert is compiled with the first, not beside it."""
  both, alone = (
    str(jax.make_jaxpr(lambda rows=rows: client(rows))())
    for rows in ('crossfit', 'holdout')
  )
  found = [x.count('dot_general[') for x in (both, alone)]
  assert 20 < found[1] <= found[0] < 1.1 * found[1]


def test_the_second_expert_is_no_part_of_the_global_one():
  _, before = world.first_stage()
  second = fedms.personal_stage(world.setting(), choice('crossfit'))
  roles = second.begin(jax.random.key(0), before)
  assert set(roles.frozen['global']) == set(EXPERT)
  assert {f'{mixture.APART}{k}' for k in EXPERT} < set(roles.personal)


@pytest.mark.parametrize('rows', ['train', 'crossfit'])
def test_its_own_loss_alone_trains_the_local_expert(rows):
  """Whatever is mixed, and so whatever the mixture's loss is."""
  made = []
  for mix in ('logits', 'features'):
    made.append(client(rows, inputs=('feature',), mix=mix)[1])
  for key in EXPERT:
    world.close(made[0][key], made[1][key])


def test_a_gate_of_features_is_fitted_beside_the_second_head():
  spec = choice('crossfit', ('feature',), mix='features')
  _, roles = world.second_stage(spec)
  experts = mixture.experts(world.setting(), spec)
  whole = adapted.at_rest(roles, world.backbone().blocks)
  batch = columns.take(world.table(), jnp.arange(1, 5))
  algorithm = fedms.personal_stage(world.setting(), spec)
  batch = columns.complete(algorithm, roles, batch, world.TOP)
  mixed = []
  for head in ('head', f'{mixture.APART}head', ''):
    own = dict(whole.personal)
    if head:
      own[head] = jax.tree.map(lambda x: 3.0 * x, own[head])
    changed = whole._replace(personal=own)
    seen = experts.see(changed, batch, world.TOP, apart=True)
    mixed.append(np.asarray(experts.weigh(changed, seen)[1]))
  np.testing.assert_array_equal(mixed[0], mixed[2])
  assert np.abs(mixed[1] - mixed[2]).max() > 0.1


def test_validation_rows_are_none_of_the_local_expert_s():
  held = np.array([[60, 61, 62]], np.int32)
  sent, own = client('validation', held=held)
  other, same = client('validation', held=held, data=relabeled(61))
  world.same(own, same)
  assert differ(sent['gate'], other['gate']) > 1e-4
  # And the gate is nothing of the rows that train, but for the expert.
  _, moved = client('validation', held=held, data=relabeled(3))
  assert differ(own['head'], moved['head']) > 1e-4


def test_padding_of_the_rows_is_not_looked_at():
  wider = np.pad(HELD, [(0, 0), (0, 3)], constant_values=-1)
  for a, b in zip(client('holdout'), client('holdout', held=wider),
                  strict=True):  # fmt: skip
    world.close(a, b)


def test_without_fresh_rows_the_gate_stays():
  """As in evaluation of what a message is, which has none."""
  _, roles = world.second_stage(choice())
  sent, _ = client('holdout', held=None)
  for key in mixture.GATES:
    world.close(sent[key], roles.shared[key])


@pytest.mark.parametrize(
  'rows',
  [
    pytest.param('validation', marks=pytest.mark.slow),
    pytest.param('holdout', marks=pytest.mark.slow),
    'crossfit',
  ],
)
def test_wide_vmap_equals_the_loop(rows):
  wide, loop = client(rows, count=2), client(rows, 'loop')
  world.close(wide[0], loop[0])
  world.close(jax.tree.map(lambda x: x[:1], wide[1]), loop[1])


def test_a_local_gate_is_fitted_as_the_shared_one():
  sent, own = client('holdout', inputs=('feature',))
  nothing, mine = client('holdout', inputs=('feature',), scope='local')
  assert not jax.tree.leaves(nothing)
  for key in mixture.GATES:
    world.close(jax.tree.map(lambda x: x[0], mine[key]), sent[key])


def test_the_fit_is_the_least_of_loss_and_pull():
  """Of log-odds alone, where it can be found by looking at all of them."""
  gains = jnp.array([1.0, 0.5, -2.0])

  def loss(gates):
    return jnp.sum(jnp.logaddexp(0.0, -gains * gates['gate_odds']))

  start = {'gate_odds': jnp.full(1, 0.3)}
  grid = np.linspace(-4, 4, 8001)
  for pull in (0.1, 2.0):
    fit = mixture.Fit(steps=300, odds_rate=0.05, pull=pull)
    values = [
      np.logaddexp(0, -np.asarray(gains) * x).sum() + pull / 2 * (x - 0.3) ** 2
      for x in grid
    ]
    found = fresh_gate.fitted(loss, start, fit)['gate_odds'][0]
    assert found == pytest.approx(grid[int(np.argmin(values))], abs=5e-3)


def test_a_gate_s_network_has_one_rate_and_what_is_added_another():
  """A step of Adam moves each leaf by its rate."""
  spec = world.spec(inputs=ALL, odds=True)
  gates = {'gate': gate.init(jax.random.key(0), spec), 'gate_odds': jnp.ones(1)}

  def loss(gates):
    return sum(jnp.sum(x) for x in jax.tree.leaves(gates))

  fit = mixture.Fit(steps=1, rate=1e-3, odds_rate=0.1, pull=0.0)
  moved = jax.tree.map(jnp.subtract, gates, fresh_gate.fitted(loss, gates, fit))
  slow, fast = dict(moved['gate']), [moved['gate_odds']]
  fast.append(slow.pop('measures'))
  for leaves, rate in ((slow, 1e-3), (fast, 0.1)):
    for leaf in jax.tree.leaves(leaves):
      np.testing.assert_allclose(leaf, rate, rtol=1e-3)


def test_confidence_is_entropy_margin_and_agreement():
  logits = jnp.log(
    jnp.array([[[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]],
               [[0.6, 0.4, 1e-9], [0.9, 0.05, 0.05]]])
  )  # fmt: skip
  found = np.asarray(gate.confidence(logits))
  np.testing.assert_allclose(found[0, 1], 1.5 * np.log(2), rtol=1e-5)
  np.testing.assert_allclose(found[:, 2:4], [[0.5, 0.25], [0.2, 0.85]], 1e-4)
  assert found[:, 4].tolist() == [0, 1]


def test_likeness_is_to_the_client_seen_from_everyone():
  x = jnp.array([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
  own, everyone = x[0], x[1]
  found = np.asarray(gate.likeness(x, own, everyone))
  assert found[0, 0] == pytest.approx(1) and found[1, 0] == 0
  np.testing.assert_allclose(found[:, 1], [0.96, 1.0, 0.6], rtol=1e-5)
  unknown = gate.likeness(x, jnp.zeros(2), everyone)
  assert not np.asarray(unknown)[:, 0].any()


def test_the_profile_is_the_mean_direction_of_the_client_s_rows():
  algorithm, roles = world.second_stage(choice())
  sent, own = client('holdout')
  batch = world.table() | {'mask': jnp.ones(world.ROWS, bool)}
  derive = jax.jit(lambda r, b: algorithm.columns(r, b, world.TOP))
  found = derive(roles, batch)['base_features']
  x = found / jnp.linalg.norm(found, axis=-1, keepdims=True)
  world.close(own['gate_profile'][0], x[ROWS.ravel()].mean(0))
  world.close(sent['gate_profile'], own['gate_profile'][0])


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid', 'per_class'])
def test_log_odds_move_the_weight_of_the_global_expert(kind):
  spec = world.spec(kind=kind, inputs=(), odds=True, bias=0.5)
  x, odds = jnp.ones((2, world.WIDTH)), jnp.full(1, 1.5)
  w = gate.weights(spec, gate.init(jax.random.key(0), spec), x, odds=odds)
  np.testing.assert_allclose(w[:, gate.GLOBAL], jax.nn.sigmoid(2.0), rtol=1e-6)
  np.testing.assert_allclose(w.sum(axis=-2), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    ({'local_loss': 'both'}, '`Personal.local_loss`=both'),
    ({'tower': 'lora'}, '`Personal.tower`=lora'),
    ({'gate': world.spec(kind='fixed')}, 'kind fixed'),
  ],
)
def test_what_does_not_go_with_fresh_rows_is_refused(changed, words):
  with pytest.raises(ValueError, match=words):
    fedms.personal_stage(world.setting(), choice()._replace(**changed))


@pytest.mark.parametrize('rows', ['train', 'crossfit'])
def test_a_loss_that_there_is_not_is_refused(rows):
  with pytest.raises(ValueError, match='local_loss'):
    fedms.personal_stage(
      world.setting(), choice()._replace(local_loss='auto', rows=rows)
    )


def stages(rows, public=3):
  """Both stages, the second one on fresh rows."""
  first, second = world.stages(2)
  made = choice(rows)
  rows = functools.partial(
    fresh.rows, kind=rows, share=0.3, most=4, public=public, seed=0, stage=1
  )
  algorithm = world.second_stage(made)[0]
  return [first, Stage('personal', algorithm, 2, second.schedule, fresh=rows)]


@pytest.mark.slow  # two runs of both stages are compiled
def test_scopes_and_widths_of_a_run_agree():
  _, one, records = world.simulate(stages('crossfit'), scope='run')
  _, other, _ = world.simulate(stages('crossfit'), scope='step', clients='vmap')
  world.close(one.roles.shared, other.roles.shared, atol=1e-4)
  assert 0 < records[-1]['gate_weight'] < 1  # of validation rows


@pytest.mark.parametrize(('scope', 'towers'), [('step', 3), ('run', 1)])
def test_the_ledger_counts_fresh_rows_once_a_round(scope, towers):
  """A row passes base, global and local expert; the simulator has derived the
  first two in a run whose columns last."""
  algorithm, roles = world.second_stage(choice('validation', ('feature',)))
  meter = Meter(algorithm, roles, batch=4, slots=0)
  none, some = (
    meter.group(
      world.TOP, world.TOP.active, clients=2, newcomers=0, cohort=2,
      examples=0.0, steps=0.0, derived=0.0, scope=scope, fresh=fresh,
    )
    for fresh in (0.0, 5.0)
  )  # fmt: skip
  cost = algorithm.backbone.cost
  below, above = cost.stem + 2 * cost.block, cost.block + cost.head
  assert some.client_flops - none.client_flops == 5 * (below + 3 * above)
  # The simulator computes no more of the last block than is read.
  top = cost.last.flops + cost.head
  spent = some.simulator_flops - none.simulator_flops
  assert spent == 5 * (towers * top + below * (scope == 'step'))
