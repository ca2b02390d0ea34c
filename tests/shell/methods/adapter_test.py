"""Which methods start from the LoRA of --lora.init: all others refuse it."""

import jax
import numpy as np
import pytest

from fedms_jax.algorithms import adapted
from fedms_jax.models.family import Model
from fedms_jax.shell import build, catalog, config, methods
from tests import world
from tests.shell.methods.interned_test import PLAIN
from tests.shell.methods.methods_test import USUAL

WITH = {'hetlora': {'hetlora.prune': 1.0}}  # an adapter has one rank
BLACK_BOX = ('mezo', 'fedkseed', 'bbt', 'fedbpt')


def built(name, **more):
  """(stages, the adapter that they were given)."""
  found = config.from_values(USUAL | {'algorithm.name': name} | more)
  base = jax.eval_shape(world.backbone().init, jax.random.key(0))
  shapes = build.lora_spec(found.lora).init(jax.random.key(7), base['blocks'])
  adapter = jax.tree.map(lambda x: x + 0.375, shapes)
  model = Model(world.backbone(), {})
  return methods.stages(found, model, world.CLASSES, adapter), adapter


def begins_with(name, **flags):
  """Whether what a method begins with has all of an adapter."""
  (first, *_), adapter = built(name, **flags)
  key, backbone = jax.random.key(0), world.backbone()
  start = adapted.start(backbone.init(key), backbone.init_head(key))
  roles = first.algorithm.begin(key, start)
  held = [np.asarray(x) for x in jax.tree.leaves(roles)]
  return all(
    any(x.shape == leaf.shape and (x == np.asarray(leaf)).all() for x in held)
    for leaf in jax.tree.leaves(adapter)
  )


@pytest.mark.parametrize(
  ('name', 'flags'),
  [(name, WITH.get(name, {})) for name in sorted(methods.FROM_LORA)]
  + [(name, {f'{name}.trains': 'lora'}) for name in BLACK_BOX],
)
def test_an_adapter_is_where_a_method_begins(name, flags):
  assert begins_with(name, **flags, **{'lora.init': 'a folder'})


@pytest.mark.parametrize(
  'name', sorted(set(catalog.METHODS) - methods.FROM_LORA)
)
def test_a_method_that_would_not_look_at_it_refuses_it(name):
  with pytest.raises(ValueError, match='--lora.init=a folder'):
    built(name, **{'lora.init': 'a folder'})
  if name in PLAIN:  # the flag alone tells that there is one
    assert not begins_with(name)
