"""The frozen prefix that the experts of stage 2 have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fedms
from tests import world


def counting(backbone, calls):
  """The backbone; `calls` gets the blocks of each run that is executed."""

  def run(spans, x, mask, **adapter):
    blocks = sum(span.stop - span.start for span in spans)
    jax.debug.callback(lambda: calls.append(blocks))
    return backbone.run(spans, x, mask, **adapter)

  return backbone._replace(run=run)


@pytest.mark.parametrize('moved, prefixes', [(2, 1), (1, 2)])
def test_the_prefix_is_computed_again_only_if_stage_one_moved_it(
  moved, prefixes
):
  """moved: the lowest block that stage 1 trained; the boundary is 2."""
  _, before = world.first_stage()
  blocks = jax.tree.map(
    lambda x: x.at[moved:].add(0.3), before.shared['blocks']
  )
  before = before._replace(shared=before.shared | {'blocks': blocks})
  calls = []

  def columns(backbone):
    setting = world.setting()._replace(model=backbone)
    stage = fedms.personal_stage(setting, fedms.Personal(world.spec()))
    roles = stage.begin(jax.random.key(0), before)
    raw = jax.tree.map(lambda x: x[:4], world.table())
    raw['mask'] = jnp.ones(4, bool)
    run = jax.jit(lambda r, b: stage.columns(r, b, world.TOP))
    out = jax.block_until_ready(run(roles._replace(personal=None), raw))
    jax.effects_barrier()
    return roles, out

  roles, out = columns(counting(world.backbone(), calls))
  assert sorted(calls) == [1, 1] + [2] * prefixes

  # What the global expert says is the same, by whichever way.
  setting, plan = world.setting(), world.TOP
  first = fedms.global_stage(setting)
  raw = jax.tree.map(lambda x: x[:4], world.table())
  whole = world.Plan(world.TOP.active, 0)
  alone = before._replace(personal=None)
  batch = raw | first.columns(alone, raw, whole)
  expected = first.predict(before, batch, whole).logits['global']
  np.testing.assert_allclose(out['global_logits'], expected, atol=1e-5)
  assert roles.frozen['global'] is not None and plan.boundary == 2
