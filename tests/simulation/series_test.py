"""Blocks that have been active in a series of stages."""

from types import SimpleNamespace

from fedms_jax.simulation import handover
from fedms_jax.simulation.state import Past, Stage
from tests import world

EVER = (False, True, True)


def test_a_series_goes_on_with_the_blocks_that_have_been_active():
  """Else columns of blocks that have moved would be those of the start."""
  algorithm = world.algorithms()[0]
  stages = [
    Stage(f'{i}', algorithm, 1, lambda handover: None, series=series)
    for i, series in enumerate(('a', 'a', 'b', 'a', ''))
  ]

  def ever(index, past):
    before = SimpleNamespace(stage=index - 1, ever=EVER) if index else None
    return handover.ever(stages, index, past, before)

  none, every = (False,) * 3, (True,) * 3
  assert ever(0, {}) == none
  assert ever(1, {'a': Past(0)}) == EVER
  assert ever(2, {'a': Past(0)}) == none  # it begins with values of its own
  assert ever(3, {'a': Past(0), 'b': Past(0)}) == every
  assert ever(4, {'a': Past(0), 'b': Past(0), '': Past(0)}) == none
