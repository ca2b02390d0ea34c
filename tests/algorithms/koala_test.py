"""KOALA: small models of clients, a large one, and what passes between."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax import schedules
from fedms_jax.adapters import lora
from fedms_jax.algorithms import koala
from fedms_jax.core import columns, reduction
from fedms_jax.core.types import Plan
from fedms_jax.models import pretrained
from fedms_jax.schedules import orders, triggers
from fedms_jax.simulation import public_rows
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.algorithms import cohort
from tests.algorithms.two_models_test import noisy

# They compile for a minute.
pytestmark = pytest.mark.slow

RATE = 0.01
PLAN = Plan((True, True), 0)
CHOICE = koala.Choice((2,), lambda client: 2, 1, 8, RATE, 2.0)
BOTH = CHOICE._replace(depths=(1, 2), of_client=lambda client: 1 + client % 2)


@functools.cache
def method(choice):
  """(algorithm, roles, memory): all models learned, and different."""
  algorithm = koala.koala(world.setting(), choice)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  roles = roles._replace(shared=noisy(roles.shared, 1))
  _, memory, _ = reduction.begin(algorithm, roles, 0)
  memory = memory | {'large': noisy(memory['large'], 2)}
  return algorithm, reduction.broadcast(algorithm, roles, memory), memory


def part(shared, depth):
  blocks, head = f'small_{depth}_blocks', f'small_{depth}_head'
  return {'blocks': shared[blocks], 'head': shared[head]}


def logits(base, model, depth, images):
  """The oracle: LoRA merged into the first blocks of the base."""
  first = jax.tree.map(lambda x: x[:depth], (base['blocks'], model['blocks']))
  blocks = lora.merge(*first, world.LORA.scale)
  backbone = koala.small(world.backbone(), depth)
  x = pretrained.encode(backbone, base | {'blocks': blocks}, images)
  return backbone.logits(base, model['head'], x)


def softened(teacher, student, t):
  """t^2 KL by the definition."""
  p = jax.nn.softmax(jax.lax.stop_gradient(teacher) / t)
  ratio = jnp.log(p) - jnp.log(jax.nn.softmax(student / t))
  return t**2 * jnp.mean(jnp.sum(p * ratio, axis=-1))


def by_sign(x, slope):
  """A first step of Adam, where there is any slope."""
  return jax.tree.map(
    lambda x, g: x - RATE * jnp.where(jnp.abs(g) > 1e-5, jnp.sign(g), 0),
    x,
    slope,
  )


def test_models_are_the_first_blocks_and_all_of_them():
  algorithm, roles, _ = method(BOTH)
  batch = columns.take(world.table(), jnp.arange(8))
  batch = columns.complete(algorithm, roles, batch, PLAN)
  found = algorithm.predict(roles, batch, PLAN).logits
  base, images = roles.frozen['base'], world.columns()['inputs'][:8]
  models = {f'small_{d}': (part(roles.shared, d), d) for d in (1, 2)}
  models['global'] = (roles.frozen['server'], world.BLOCKS)
  models['pretrained'] = (roles.frozen['start'], world.BLOCKS)
  assert set(found) == set(models)
  for name, (model, depth) in models.items():
    expected = logits(base, model, depth, images)
    np.testing.assert_allclose(found[name], expected, atol=1e-4)


def test_a_step_of_reverse_and_of_forward_distillation():
  choice = BOTH
  algorithm, roles, memory = method(choice)
  models = koala.Models(world.setting(), choice)
  base, shared, large = roles.frozen['base'], roles.shared, memory['large']
  public = world.public(algorithm)
  found = jax.jit(functools.partial(koala.distilled, models))(
    base, large, shared, public
  )
  images, t = public['inputs'], choice.temperature

  def reverse(large):
    teachers = [logits(base, part(shared, d), d, images) for d in choice.depths]
    student = logits(base, large, world.BLOCKS, images)
    return softened(sum(teachers) / len(teachers), student, t)

  value, slope = jax.jit(jax.value_and_grad(reverse))(large)
  taught = by_sign(large, slope)

  def forward(shared):
    teacher = logits(base, taught, world.BLOCKS, images)
    return sum(
      softened(teacher, logits(base, part(shared, d), d, images), t)
      for d in choice.depths
    )

  slope = jax.jit(jax.grad(forward))(shared)
  np.testing.assert_allclose(found[2]['reverse_loss'], value, rtol=1e-4)
  for new, expected in ((found[0], taught), (found[1], by_sign(shared, slope))):
    moved = [
      np.mean(np.abs(x - y) < RATE / 10)
      for x, y in zip(
        jax.tree.leaves(new), jax.tree.leaves(expected), strict=True
      )
    ]
    assert min(moved) > 0.9  # but where a slope is next to nothing


def test_labels_of_public_rows_are_not_read():
  algorithm, roles, memory = method(CHOICE)
  models = koala.Models(world.setting(), CHOICE)
  public = world.public(algorithm)
  other = public | {'labels': (public['labels'] + 1) % world.CLASSES}
  run = jax.jit(functools.partial(koala.distilled, models))
  base, large = roles.frozen['base'], memory['large']
  world.same(
    run(base, large, roles.shared, public),
    run(base, large, roles.shared, other),
  )


def test_each_client_trains_the_model_that_it_has():
  algorithm, roles, memory = method(BOTH)
  rows = world.cohort_rows(clients=2, steps=1)
  plans = [PLAN._replace(variant=algorithm.variant(0, k)) for k in range(2)]
  assert [plan.variant for plan in plans] == [1, 2]
  deaf = algorithm._replace(public=0)  # averages alone
  both = cohort.one_round(deaf, roles, rows, plans, memory=memory).roles.shared
  for k, mine in enumerate((1, 2)):
    weights = np.array([k == 0, k == 1], np.float32)
    found = cohort.one_round(
      deaf, roles, rows, plans, memory=memory, weights=weights
    ).roles.shared
    other = 3 - mine
    world.same(part(found, other), part(roles.shared, other))
    assert np.any(
      found[f'small_{mine}_head']['kernel']
      != roles.shared[f'small_{mine}_head']['kernel']
    )
    # Who has the other model is not counted among those who train this one.
    world.close(part(both, mine), part(found, mine))


def test_without_clients_nobody_is_taught():
  algorithm, roles, memory = method(CHOICE)
  rows = world.cohort_rows(clients=2, steps=1)
  found = cohort.one_round(
    algorithm, roles, rows, PLAN, memory=memory,
    weights=np.zeros(2, np.float32),
  )  # fmt: skip
  world.same(found.memory['large'], memory['large'])
  world.same(found.roles.shared, roles.shared)


def test_a_client_pays_for_its_small_model_alone():
  algorithm, roles, _ = method(BOTH)
  meter = Meter(algorithm, roles, batch=4, slots=2)
  block = world.backbone().cost.block
  found = {}
  for depth in (1, 2):
    plan = PLAN._replace(variant=depth)
    found[depth] = meter.group(
      plan, PLAN.active, clients=1, newcomers=1, cohort=1, examples=1.0,
      steps=1.0, derived=0.0, scope='step',
    )  # fmt: skip
    sizes = part(roles.shared, depth)
    lora_bytes = sum(x[:depth].nbytes for x in jax.tree.leaves(sizes['blocks']))
    head_bytes = sum(x.nbytes for x in jax.tree.leaves(sizes['head']))
    assert found[depth].bytes_up == lora_bytes + head_bytes
  more = found[2].client_flops - found[1].client_flops
  assert more > 2 * block  # a block forward and back, and its LoRA
  assert found[1].peak_client_memory < found[2].peak_client_memory
  whole = Meter(algorithm._replace(held=None), roles, batch=4, slots=2)
  assert found[2].peak_client_memory < whole.memory(PLAN)


def test_public_rows_are_drawn_anew_in_each_round():
  algorithm, *_ = method(CHOICE)
  stage = world.stages(2)[0]._replace(algorithm=algorithm, schedule=dense)
  simulation, state, records = world.simulate([stage])
  seen = [
    np.asarray(public_rows.draw(simulation, state._replace(round=r))['inputs'])
    for r in (0, 0, 1)
  ]
  np.testing.assert_array_equal(seen[0], seen[1])
  assert np.any(seen[0] != seen[2])
  all_public = world.columns()['inputs'][simulation.federation.public]
  for image in seen[2]:
    assert (image == all_public).all((1, 2, 3)).any()
  assert records[-1]['reverse_loss'] > 0 and records[-1]['forward_loss'] > 0


def dense(handover):
  del handover
  order = orders.order('top_down', 2, 0)
  return schedules.delayed(schedules.schedule(triggers.dense(2), order), 1)


def test_a_server_without_public_rows_is_refused():
  algorithm, *_ = method(CHOICE)
  stage = world.stages(1)[0]._replace(algorithm=algorithm)
  data = world.federation()
  nobody = data._replace(public=data.public[:0])
  with pytest.raises(ValueError, match='koala learns .*`public_fraction`'):
    world.simulate([stage], data=nobody)
