"""Runs of one method share its algorithms, and with them their programs."""

import pytest

from fedms_jax.models.family import Model
from fedms_jax.shell import catalog, config, methods
from tests import world

# The others need a text tower.
PLAIN = [
  name
  for name, method in catalog.METHODS.items()
  if not method.text and name != 'fedclip'
]


@pytest.mark.parametrize('name', PLAIN)
def test_a_method_is_built_once_whether_it_has_options_of_its_own_or_none(name):
  def algorithms(**more):
    found = config.from_values({'algorithm.name': name} | more)
    model = Model(world.backbone(), {})
    made = methods.stages(found, model, world.CLASSES)
    return [stage.algorithm for stage in made]

  once, again = algorithms(), algorithms()
  other = algorithms(**{'lora.alpha': 0.123})
  for x, y, z in zip(once, again, other, strict=True):
    assert x is y and x is not z
