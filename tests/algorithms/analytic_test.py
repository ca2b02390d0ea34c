"""Heads that follow from sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import analytic
from fedms_jax.core import columns, reduction, rounds
from fedms_jax.core.contract import Work
from tests import world

HEADS = {
  'nearest': analytic.nearest(0.1),
  'ridge': analytic.ridge(2.0, 0),
  'random features': analytic.ridge(2.0, 20),
}
ROWS = np.arange(1, 25, dtype=np.int32)


@functools.cache
def made(name):
  algorithm = analytic.analytic(
    world.setting(), name, HEADS[name], world.CLASSES
  )
  return algorithm, jax.jit(algorithm.begin)(jax.random.key(0), world.start())


def after(name, *cohorts):
  """The head after rounds of these rows [K, S, B] each."""
  algorithm, roles = made(name)
  roles, memory, channel = reduction.begin(algorithm, roles, 0)
  work = Work(world.table(), jax.random.key(0))
  for rows in cohorts:
    totals = reduction.empty(algorithm, roles)
    totals, *_ = rounds.train(
      algorithm, world.DENSE, roles, work, totals, world.clients(rows)
    )
    roles, memory, *_ = reduction.close(
      algorithm, roles, memory, channel, totals, work.key, 0
    )
  return roles.shared['head']


def cut(rows, clients, steps):
  """Rows dealt unevenly: -1 where a client has less."""
  out = np.full((clients, steps, 4), -1, np.int32)
  places = [(k, s, b) for s in range(steps) for b in range(4)
            for k in range(clients)]  # fmt: skip
  for place, row in zip(places, rows, strict=False):
    out[place] = row
  return out


@pytest.mark.parametrize('name', HEADS)
def test_a_head_is_the_same_for_any_clients_and_any_order_of_tasks(name):
  whole = after(name, ROWS.reshape(1, 6, 4))
  many = after(name, cut(ROWS, 3, 3))
  labels = np.asarray(world.table()['labels'])[ROWS]
  early, late = ROWS[labels < 2], ROWS[labels >= 2]
  tasks = after(name, cut(late, 3, 3), cut(early, 3, 3))
  world.close(many, whole, atol=1e-5)
  world.close(tasks, whole, atol=1e-5)
  part = after(name, cut(late, 3, 3))
  assert not np.allclose(*map(_first, (part, whole)), atol=1e-3)


def _first(head):
  return jax.tree.leaves(head)[0]


@functools.cache
def features():
  algorithm, roles = made('ridge')
  batch = columns.take(world.table(), jnp.asarray(ROWS))
  found = algorithm.columns(roles, batch, world.DENSE)
  return np.asarray(found[analytic.FEATURES], np.float64)


def test_a_ridge_head_is_the_closed_form():
  phi = np.concatenate([features(), np.ones((len(ROWS), 1))], axis=1)
  hot = np.eye(world.CLASSES)[np.asarray(world.table()['labels'])[ROWS]]
  expected = np.linalg.solve(phi.T @ phi + 2.0 * np.eye(phi.shape[1]),
                             phi.T @ hot)  # fmt: skip
  head = after('ridge', cut(ROWS, 2, 3))
  found = np.concatenate([head['kernel'], head['bias'][None]])
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_class_mean_is_the_mean_of_its_rows():
  labels = np.asarray(world.table()['labels'])[ROWS]
  means = np.stack([features()[labels == c].mean(0)
                    for c in range(world.CLASSES)])  # fmt: skip
  means /= np.linalg.norm(means, axis=1, keepdims=True)
  found = after('nearest', cut(ROWS, 2, 3))['kernel'].T
  np.testing.assert_allclose(found, means, atol=1e-5)


def test_what_competes_for_old_classes_is_all_that_changes():
  """Scores among the classes of a task stay as they were."""
  labels = np.asarray(world.table()['labels'])[ROWS]
  early, late = ROWS[labels < 2], ROWS[labels >= 2]
  before = after('nearest', cut(early, 2, 3))['kernel'][:, :2]
  both = after('nearest', cut(early, 2, 3), cut(late, 2, 3))['kernel'][:, :2]
  world.same(before, both)


def test_who_only_fills_a_chunk_adds_nothing():
  rows = np.concatenate([cut(ROWS, 2, 3)] * 2)
  algorithm, roles = made('ridge')
  totals = reduction.empty(algorithm, roles)
  chunk = world.clients(rows, weights=np.array([1, 1, 0, 0], np.float32))
  work = Work(world.table(), jax.random.key(0))
  totals, *_ = rounds.train(algorithm, world.DENSE, roles, work, totals, chunk)
  assert float(totals.extras['sums']['gram'][-1, -1]) == len(ROWS)
