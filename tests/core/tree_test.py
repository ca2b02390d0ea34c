"""Trees: what is asked of all leaves at once."""

import chex
import jax
import jax.numpy as jnp
import pytest

from fedms_jax.core import compile, tree


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize('leaf', [0, 1, 2])
def test_one_value_of_any_leaf_that_is_not_finite_is_seen(bad, leaf):
  leaves = [jnp.zeros((2, 3)), jnp.zeros(()), jnp.ones(4), jnp.arange(3)]
  assert tree.all_finite(leaves)
  leaves[leaf] = leaves[leaf] + bad
  assert not tree.all_finite(leaves)


def test_clients_are_told_apart_and_what_has_no_number_is_finite():
  leaves = [jnp.zeros((3, 2)), jnp.zeros(3).at[1].set(jnp.nan)]
  found = jax.vmap(tree.all_finite)(leaves)
  chex.assert_trees_all_equal(found, jnp.array([True, False, True]))
  assert tree.all_finite({})
  assert tree.all_finite([jnp.zeros((0, 2)), jnp.arange(3)])


def test_choosing_by_it_compiles_to_what_grows_as_the_tree_does():
  """XLA copies what is cheap into all that reads it, so that a chain over
  leaves that chooses leaves grows with the square of their number."""

  @compile.jit(light=True)
  def chosen(new, old):
    return tree.where(tree.all_finite(new), new, old)

  def lines(count: int) -> int:
    leaves = [jnp.zeros((2, 3))] * count
    return (
      chosen.program().lower(leaves, leaves).compile().as_text().count('\n')
    )

  assert lines(48) < 3 * lines(24)
