"""The laws of design.md, section 7, each once, over all it applies to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import activation, columns, reduction, rounds, tree
from fedms_jax.core.contract import Work
from fedms_jax.core.types import Plan, Roles
from fedms_jax.models import gate
from fedms_jax.schedules import triggers
from fedms_jax.simulation import needs
from tests import world

PLANS = {'dense': world.DENSE, 'top': world.TOP, 'gap': world.GAP}
STAGES = {
  'global': world.first_stage,
  'personal': world.second_stage,
  'upload': lambda **kw: world.second_stage(
    fedms.Personal(world.spec(), upload=0.4), **kw
  ),
  'gate tower': lambda **kw: world.second_stage(
    fedms.Personal(world.spec(), tower='lora'), **kw
  ),
  'from zero': lambda **kw: world.second_stage(
    fedms.Personal(world.spec(mix='probabilities'), local_start='zero'), **kw
  ),
}


# Each stage and each plan at least once; all pairs would compile for minutes.
PAIRS = [
  ('global', 'gap'), ('personal', 'top'),
  pytest.param('gate tower', 'top', marks=pytest.mark.slow),
  pytest.param('upload', 'gap', marks=pytest.mark.slow),
  pytest.param('from zero', 'gap', marks=pytest.mark.slow),
]  # fmt: skip


def blocks(stacked, numbers):
  return jax.tree.map(lambda x: x[np.asarray(numbers)], stacked)


@pytest.mark.parametrize(('stage', 'plan'), PAIRS)
def test_wide_vmap_equals_a_loop_over_clients(stage, plan):
  algorithm, roles = STAGES[stage](optimizer=world.ADAM)
  rows = world.cohort_rows()
  wide = world.train(algorithm, roles, rows, PLANS[plan])
  for how in ('chunk', 'loop'):
    world.close(wide, world.train(algorithm, roles, rows, PLANS[plan], how=how))


def test_steps_in_one_program_equal_steps_one_by_one():
  """Two together, of three: one is left over."""
  algorithm, roles = world.first_stage(optimizer=world.ADAM)
  rows = world.cohort_rows(steps=3)
  alone = world.train(algorithm, roles, rows, how='loop')
  world.close(alone, world.train(algorithm, roles, rows, how='unrolled'))


def test_padding_is_not_looked_at():
  algorithm, roles = world.second_stage()
  rows = world.cohort_rows(clients=1)
  plain = world.train(algorithm, roles, rows)
  padded = np.full((1, 4, 6), -1, np.int32)
  padded[:, : rows.shape[1], : rows.shape[2]] = rows
  poisoned = dict(world.columns())
  poisoned['inputs'] = poisoned['inputs'].copy()
  poisoned['inputs'][0] = 255  # the row that padding repeats
  poisoned['labels'] = poisoned['labels'].copy()
  poisoned['labels'][0] = 3
  data = jax.tree.map(jnp.asarray, poisoned)
  world.close(plain, world.train(algorithm, roles, padded, data=data))


@pytest.mark.parametrize('plan', PLANS)
def test_static_depth_equals_a_traced_mask(plan):
  """The oracle trains all blocks and masks the step, so it saves nothing."""
  rows = world.cohort_rows()
  algorithm, roles = world.first_stage()
  shared, _, _ = world.train(algorithm, roles, rows, PLANS[plan])
  mask = jnp.asarray(PLANS[plan].active, jnp.float32)

  def masked(updates, state, params=None):
    del params
    stacked = jax.tree.map(
      lambda x: x * mask.reshape(-1, 1, 1), updates['shared']['blocks']
    )
    kept = updates['shared'] | {'blocks': stacked}
    return updates | {'shared': kept}, state

  oracle = optax.chain(
    optax.sgd(0.5),
    optax.GradientTransformation(lambda p: optax.EmptyState(), masked),
  )
  slow, roles = world.first_stage(optimizer=oracle)
  world.close(shared, world.train(slow, roles, rows, world.DENSE)[0])


@pytest.mark.parametrize(('stage', 'plan'), PAIRS)
def test_inactive_blocks_stay_bitwise(stage, plan):
  """Momentum and weight decay on both sides included."""
  algorithm, roles = STAGES[stage](optimizer=world.DECAY, outer=world.DECAY)
  shared, personal, _ = world.train(
    algorithm, roles, world.cohort_rows(), PLANS[plan]
  )
  active = algorithm.masks(PLANS[plan])
  for before, after, mask, axis in (
    (roles.shared, shared, active[0], 0),
    (world.stacked(roles.personal, 3), personal, active[1], 1),
  ):
    for key in before:
      if tree.is_stacked(key):
        for x, y in zip(
          jax.tree.leaves(before[key]), jax.tree.leaves(after[key]),
          strict=True,
        ):  # fmt: skip
          moved = np.asarray(x != y).any(axis=tuple(range(axis + 1, x.ndim)))
          moved = moved if axis == 0 else moved.any(axis=0)
          assert not moved[~np.asarray(mask)].any()


def test_the_trained_blocks_do_move():
  algorithm, roles = world.first_stage()
  shared, _, _ = world.train(algorithm, roles, world.cohort_rows(), world.GAP)
  b = np.asarray(shared['blocks']['attn']['q']['b'])
  assert [bool(x.any()) for x in b] == [True, False, True]


def full_logits(model, base, head, blocks_lora, images):
  """The model from its inputs, all blocks in one span."""
  model = model.adapted(world.LORA)
  x = model.embed(base, images)
  spans = activation.prefix(base['blocks'], blocks_lora, model.blocks)
  features = model.features(base, model.run(spans, x, None), None)
  return model.logits(base, head, features)


def test_factored_lora_equals_merged_and_fresh_lora_is_the_base():
  model, (_, roles) = world.backbone(), world.first_stage()
  images = world.columns()['inputs'][:8]
  base, head = roles.frozen['base'], roles.shared['head']
  plain = full_logits(model, base, head, None, images)
  fresh = full_logits(model, base, head, roles.shared['blocks'], images)
  world.same(plain, fresh)
  moved = world.trained(roles).shared['blocks']
  merged = base | {
    'blocks': lora.merge(base['blocks'], moved, world.LORA.scale)
  }
  factored = full_logits(model, base, head, moved, images)
  world.close(factored, full_logits(model, merged, head, None, images))
  assert np.abs(factored - plain).max() > 0.01


@pytest.mark.parametrize('mix', ['logits', 'probabilities', 'features', 'top1'])
@pytest.mark.parametrize('chosen', ['global', 'local'])
def test_a_gate_of_one_and_zero_is_one_expert(mix, chosen):
  algorithm, roles = world.second_stage(fedms.Personal(world.spec(mix=mix)))
  personal = jax.tree.map(lambda x: x * 1.1 + 0.01, roles.personal)
  # With mixed features both experts share the head, which is the local one.
  if mix == 'features':
    personal['head'] = roles.frozen['global']['head']
  bias = jnp.asarray([1e4, -1e4]) * (1 if chosen == 'global' else -1)
  linear = roles.shared['gate']['linear'] | {'bias': bias}
  shared = {'gate': roles.shared['gate'] | {'linear': linear}}
  batch = columns.take(world.table(), jnp.arange(8))
  roles = Roles(roles.frozen, shared, personal)
  batch = columns.complete(algorithm, roles, batch, world.TOP)
  found = algorithm.predict(roles, batch, world.TOP)
  expected = found.logits[chosen]
  if mix == 'probabilities':
    expected = jax.nn.log_softmax(expected)
  world.close(found.logits['mixture'], expected, atol=1e-6)
  other = {'global': 'local', 'local': 'global'}[chosen]
  assert np.abs(found.logits[chosen] - found.logits[other]).max() > 1e-3


def test_stage_two_freezes_the_global_expert_and_uploads_the_gate_alone():
  algorithm, roles = world.second_stage()
  shared, personal, _ = world.train(algorithm, roles, world.cohort_rows())
  assert set(shared) == {'gate'}
  assert not any('global' in path for path in tree.flat(personal))
  moved = jax.tree.leaves(
    jax.tree.map(lambda x, y: bool((x != y).any()), shared, roles.shared)
  )
  assert any(moved)
  expert = world.reference()[1].roles.frozen['global']
  first = world.simulate(world.stages(2)[:1])[1]
  world.same(expert, first.roles.shared)


def test_one_client_and_one_full_batch_step_is_sgd():
  model, (algorithm, roles) = world.backbone(), world.first_stage()
  rows = world.cohort_rows(clients=1, steps=1, batch=8)
  shared, _, _ = world.train(algorithm, roles, rows)
  data = world.columns()
  images, labels = data['inputs'][rows[0, 0]], data['labels'][rows[0, 0]]

  def loss(shared):
    base = roles.frozen['base']
    out = full_logits(model, base, shared['head'], shared['blocks'], images)
    return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

  gradient = jax.grad(loss)(roles.shared)
  world.close(
    shared, jax.tree.map(lambda p, g: p - 0.5 * g, roles.shared, gradient)
  )


@pytest.mark.parametrize('stage', ['global', 'personal'])
def test_order_of_the_cohort_and_clients_of_weight_zero_do_not_matter(stage):
  algorithm, roles = STAGES[stage]()
  rows, ids = world.cohort_rows(), np.arange(3, dtype=np.uint32)
  shared, personal, _ = world.train(algorithm, roles, rows)
  turned = np.array([2, 0, 1])
  other = world.train(algorithm, roles, rows[turned], ids=ids[turned])
  world.close(shared, other[0])
  world.close(jax.tree.map(lambda x: x[turned], personal), other[1])
  more = np.concatenate([rows, rows[:1] + 7])
  weights = np.append((rows >= 0).sum((1, 2)), 0).astype(np.float32)
  ignored = world.train(algorithm, roles, more, weights=weights)
  world.close(shared, ignored[0])


def test_a_block_is_averaged_over_those_who_held_it():
  """Two groups with different active sets, by hand."""
  algorithm, roles = world.first_stage()
  rows = world.cohort_rows(clients=2, steps=1)
  weights = np.array([4.0, 4.0], np.float32)
  alone = [
    world.train(algorithm, roles, rows[i : i + 1], plan)[0]
    for i, plan in enumerate([world.TOP, world.GAP])
  ]
  totals = reduction.empty(algorithm, roles)
  work = Work(world.table(), jax.random.key(5))
  for i, plan in enumerate([world.TOP, world.GAP]):
    one = world.clients(rows[i : i + 1], weights=weights[i : i + 1])
    totals, _, _ = rounds.train(algorithm, plan, roles, work, totals, one)
  shared = world.close_round(algorithm, roles, totals)[0].shared
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *alone)
  both, one, none = [2], [0], [1]
  stack = shared['blocks']
  world.close(blocks(stack, both), blocks(mean['blocks'], both))
  world.close(blocks(stack, one), blocks(alone[1]['blocks'], one))
  world.same(blocks(stack, none), blocks(roles.shared['blocks'], none))
  world.close(shared['head'], mean['head'])


def test_a_newly_active_block_has_fresh_server_moments():
  """Its first step is that of a fresh optimizer, whatever others have had."""
  algorithm, roles = world.first_stage(outer=optax.adam(0.1))
  none = reduction.empty(algorithm, roles)

  def totals(held):
    held = jnp.asarray(held, jnp.float32)
    ones = jax.tree.map(
      lambda x: jnp.ones_like(x) * held.reshape(-1, 1, 1),
      roles.shared['blocks'],
    )
    head = jax.tree.map(jnp.ones_like, roles.shared['head'])
    return none._replace(
      update={'blocks': ones, 'head': head},
      cover={'blocks': held, 'head': jnp.ones(())},
    )

  now, memory = roles, None
  for _ in range(3):
    now, memory, _ = world.close_round(
      algorithm, now, totals([0, 0, 1]), memory
    )
  both = totals([1, 0, 1])
  late = world.close_round(algorithm, now, both, memory)[0].shared['blocks']
  fresh = world.close_round(algorithm, roles, both)[0].shared['blocks']
  world.same(blocks(late, [0]), blocks(fresh, [0]))
  world.same(blocks(late, [1]), blocks(roles.shared['blocks'], [1]))


@pytest.mark.parametrize('other', ['round', 'step'])
def test_scopes_give_the_same_numbers(other):
  _, run, seen = world.reference()
  _, state, records = world.simulate(world.stages(2), scope=other)
  world.close(run.roles.shared, state.roles.shared)
  for a, b in zip(seen, records, strict=True):
    assert a['train_loss'] == pytest.approx(b['train_loss'], abs=1e-5)


def test_narrow_and_widen_are_inverse():
  _, roles = world.first_stage()
  for plan in PLANS.values():
    part = tree.narrow(roles.shared, plan.active)
    world.same(tree.widen(roles.shared, part, plan.active), roles.shared)
    size = jax.tree.leaves(part['blocks'])[0].shape[0]
    assert size == sum(plan.active)


def test_nothing_is_traced_again_at_the_same_depth():
  """One program per depth and stage, for any number of rounds and runs: a
  chunk of one client, too, has two lanes."""
  stages = world.stages(2, triggers.dense(world.BLOCKS))
  run = {'clients': 'chunk', 'chunk': 2, 'steps': 2}
  before = rounds.step_chunk.program()._cache_size()
  world.simulate(stages, **run)
  assert rounds.step_chunk.program()._cache_size() == before + 2
  world.simulate([stage._replace(rounds=4) for stage in stages], **run)
  assert rounds.step_chunk.program()._cache_size() == before + 2


def test_a_client_update_may_be_any_three_functions():
  """The engine asks nothing of an algorithm but its contract."""
  algorithm, roles = world.first_stage()
  inner = algorithm.update

  def finish(carry, start):
    message, personal = inner.finish(carry, start)
    before = tree.narrow(start.roles.shared, start.plan.active)
    half = jax.tree.map(lambda a, b: (a + b) / 2, before, message.update)
    return message._replace(update=half), personal

  half = algorithm._replace(update=inner._replace(finish=finish))
  rows = world.cohort_rows()
  whole = world.train(algorithm, roles, rows)[0]
  found = world.train(half, roles, rows)[0]
  world.close(
    found, jax.tree.map(lambda a, b: (a + b) / 2, roles.shared, whole)
  )


def test_the_base_model_is_not_copied_per_client():
  """The frozen matmuls stay one product over all clients: no array of the
  program has a client axis before the two axes of a frozen kernel."""
  algorithm, roles = world.first_stage()
  rows = world.cohort_rows(clients=7)
  args = needs.arguments(
    algorithm, world.DENSE, roles, Work(world.table(), jax.random.key(0)),
    reduction.empty(algorithm, roles), world.clients(rows),
  )  # fmt: skip
  text = rounds.step_chunk.program().lower(*args.step).as_text()
  assert 'tensor<7x8x12xf32>' not in text  # K x D x MLP
  assert 'tensor<7x8x2xf32>' in text  # K x D x R: LoRA has one per client


def test_gate_starts_undecided_or_biased():
  x = jnp.ones((2, world.WIDTH))
  for kind in ('softmax', 'sigmoid', 'per_class'):
    for bias, weight in ((0.0, 0.5), (2.0, 0.8807971)):
      spec = world.spec(kind=kind, bias=bias)
      w = gate.weights(spec, gate.init(jax.random.key(0), spec), x)
      np.testing.assert_allclose(w[:, gate.GLOBAL], weight, rtol=1e-5)
      np.testing.assert_allclose(w.sum(-2), 1.0, rtol=1e-6)


def test_update_without_a_step_changes_nothing():
  algorithm, roles = world.first_stage()
  none = np.full((2, 2, 4), -1, np.int32)
  weights = np.ones(2, np.float32)
  for count in (1, 2):
    shared, _, sums = world.train(
      algorithm, roles, none[:count], world.TOP, weights=weights[:count]
    )
    world.same(shared, roles.shared)
    assert not np.asarray(sums['loss']).any()


def test_plans_are_values():
  assert Plan((True, False), 0) == Plan((True, False), 0)
  assert hash(world.TOP) == hash(Plan((False, False, True), 2))
