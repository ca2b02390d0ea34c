"""The LoRA methods on one small cohort, for tests that compare them."""

import functools

import numpy as np

from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms, lora_halves, lora_merging
from tests import world
from tests.algorithms import cohort

SCALE = world.LORA.scale
ROWS = world.cohort_rows()
WEIGHTS = (ROWS >= 0).sum((1, 2)).astype(np.float32)
MAKERS = {
  'fedit': fedms.global_stage,
  'ffa_lora': lora_halves.ffa_lora,
  'rolora': lora_halves.rolora,
  'fedsa_lora': lora_halves.fedsa_lora,
  'flora': lora_merging.flora,
  'fedex_lora': lora_merging.fedex_lora,
  'flexlora': lora_merging.flexlora,
  'hetlora': lora_merging.hetlora,
}


@functools.cache
def method(name):
  return MAKERS[name](world.setting())


@functools.cache
def started(name):
  """The roles of a method; those that keep A and B together all start from
  the same LoRA that has learned something."""
  return cohort.begin(method(name))


def update_of(roles):
  """What a model adds to its kernels, by target."""
  found = {
    t: SCALE * np.asarray(x)
    for t, x in lora.products(roles.shared['blocks']).items()
  }
  for target in found:
    delta = roles.frozen.get('delta_blocks')
    for part in target.split('/') if delta else ():
      delta = delta[part]
    found[target] = found[target] + (np.asarray(delta['delta']) if delta else 0)
  return found


def variant(name, number):
  decide = method(name).variant
  return world.TOP._replace(variant=decide and decide(number, 0))
