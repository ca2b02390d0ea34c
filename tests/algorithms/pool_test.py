"""The pool of prompts: who is in it, and who is near."""

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.algorithms import pool


def tickets(*numbers):
  return jnp.array([[n, 0.5] for n in numbers])


def prompts(*values):
  return jnp.array(values)[:, None, None]


def made(size, *rounds):
  """A pool after rounds of (values, tickets, which were sent)."""
  shared = pool.empty(size, jnp.zeros((1, 1)))
  for values, numbers, sent in rounds:
    new = pool.renewed(
      shared, prompts(*values), tickets(*numbers), jnp.array(sent)
    )
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, shared)
    shared = new
  return shared


def content(shared):
  """{ticket: prompt}, newest first."""
  pairs = zip(shared['owners'], shared['prompts'], strict=True)
  return [
    (round(float(o[0]), 2), float(p[0, 0])) for o, p in pairs if o[0] >= 0
  ]


def test_an_owner_has_one_prompt_and_the_oldest_make_room():
  first = ([1.0, 2.0], (0.1, 0.2), [True, True])
  again = ([3.0, 4.0], (0.2, 0.3), [True, True])
  assert content(made(4, first)) == [(0.1, 1.0), (0.2, 2.0)]
  assert content(made(4, first, again)) == [(0.2, 3.0), (0.3, 4.0), (0.1, 1.0)]
  assert content(made(2, first, again)) == [(0.2, 3.0), (0.3, 4.0)]


def test_what_was_not_sent_changes_nothing():
  first = ([1.0, 2.0], (0.1, 0.2), [True, True])
  lost = ([9.0, 8.0], (0.2, 0.4), [False, False])
  assert content(made(4, first, lost)) == content(made(4, first))
  assert content(made(3, lost)) == []


def test_the_nearest_of_others_come_first():
  shared = made(5, ([1.0, 5.0, 2.5], (0.1, 0.2, 0.3), [True] * 3))

  def near(own, number, count):
    found, held = pool.nearest(
      shared, jnp.full((1, 1), own), tickets(number)[0], count
    )
    return found[:, 0, 0][held].tolist()

  assert near(2.0, 0.9, 4) == [2.5, 1.0, 5.0]
  assert near(2.0, 0.9, 2) == [2.5, 1.0]
  assert near(2.0, 0.3, 4) == [1.0, 5.0]  # the own one is left out


def test_tickets_differ():
  drawn = np.array([pool.draw(jax.random.key(i)) for i in range(50)])
  assert not pool.is_nobody(drawn).any() and pool.is_nobody(pool.nobody())
  assert len({tuple(t) for t in drawn}) == 50
