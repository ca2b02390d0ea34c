"""A LoRA for each task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import continual, general, stacked_lora
from fedms_jax.core import columns, tree
from fedms_jax.core.contract import Start
from fedms_jax.core.types import Plan
from tests import world
from tests.algorithms import continual_test as sequence


def fedit(setting):
  return general.fedprox(setting, 0.0)


def begun(step=0):
  """(algorithm, roles) of a step, whose LoRA has learned something."""
  algorithm, roles = sequence.begun(continual.How(fresh=False), method=fedit)
  stacked = stacked_lora.stacked(algorithm, world.LORA)
  arrays = {k: roles.frozen[continual.KEY][k]
            for k in ('visible', 'learned', 'old')}  # fmt: skip
  roles = world.start()
  roles = roles._replace(frozen=roles.frozen | continual.start(**arrays))
  for number in range(step + 1):
    roles = jax.jit(stacked.begin)(jax.random.key(number), roles)
    if number < step:
      roles = world.trained(roles)
  return stacked, roles


def said(algorithm, roles):
  batch = columns.take(sequence.table(), jnp.arange(8))
  batch = columns.complete(algorithm, roles, batch, world.DENSE)
  return algorithm.predict(roles, batch, world.DENSE).logits['global']


def test_what_was_learned_is_part_of_the_base_of_the_next_task():
  algorithm, first = begun()
  learned = world.trained(first)
  after = jax.jit(algorithm.begin)(jax.random.key(1), learned)
  visible = np.asarray(said(algorithm, learned)) > -1e8
  np.testing.assert_allclose(
    np.asarray(said(algorithm, after))[visible],
    np.asarray(said(algorithm, learned))[visible],
    atol=1e-4,
  )
  for _, b in lora.pairs(after.shared['blocks']).values():
    assert not np.asarray(b).any()
  # A column of the frozen prefix is that of the new base.
  top = Plan((False, False, True), 2)
  batch = columns.take(sequence.table(), jnp.arange(8))
  low = algorithm.columns(after, batch, top)['prefix']
  np.testing.assert_allclose(
    algorithm.predict(after, batch | algorithm.columns(after, batch, top), top)
    .logits['global'],
    said(algorithm, after),
    atol=1e-4,
  )  # fmt: skip
  assert np.isfinite(low).all()


def test_a_new_lora_is_pushed_out_of_the_directions_of_old_ones():
  _, roles = begun(step=1)
  weight, plan = 0.7, Plan((False, True, True), 1)
  past = roles.frozen[continual.KEY][stacked_lora.PAST]['blocks']
  step = stacked_lora.orthogonal(weight)
  shared = roles.shared
  part = tree.narrow(shared, plan.active)
  zero = {'shared': jax.tree.map(jnp.zeros_like, part), 'personal': {}}
  found, _ = step.update(
    zero,
    optax.EmptyState(),
    {'shared': part, 'personal': {}},
    start=Start(roles, plan),
    masks=(plan.active, plan.active),
  )

  def penalty(part):
    total = 0.0
    for target, (a, _) in lora.pairs(part['blocks']).items():
      total += jnp.einsum('lir,lij,ljr->', a, past[target][1:], a)
    return weight * total

  world.close(found['shared'], jax.grad(penalty)(part), atol=1e-5)
  moved = lora.pairs(found['shared']['blocks'])
  assert all(np.asarray(a).any() for a, _ in moved.values())


def test_what_is_no_plain_lora_is_refused():
  algorithm, roles = sequence.begun(continual.How())
  del roles
  stacked = stacked_lora.stacked(algorithm, world.LORA)
  with pytest.raises(ValueError, match='Tasks.method'):
    begun_probe = world.start()
    arrays = sequence.by_task(sequence.SEEN)
    frozen = continual.start(arrays, arrays, arrays)
    stacked.begin(
      jax.random.key(0),
      begun_probe._replace(frozen=begun_probe.frozen | frozen),
    )
