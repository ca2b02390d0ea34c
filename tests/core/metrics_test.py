"""Metrics are sums with counts; values and weights are one per example."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core import columns, metrics


def test_a_mean_of_sums_is_the_mean_of_all_examples():
  first = metrics.summed(jnp.array([1.0, 3.0]), jnp.array([True, True]))
  second = metrics.summed(jnp.array([8.0, np.nan]), jnp.array([True, False]))
  assert metrics.mean(first + second) == 4
  assert np.isnan(metrics.mean(np.zeros(2)))


def test_weights_that_would_be_broadcast_are_refused():
  values = jnp.ones(3)
  for weights in (jnp.ones(1), jnp.ones((3, 1)), jnp.ones(())):
    with pytest.raises(AssertionError):
      metrics.summed(values, weights)
  with pytest.raises(AssertionError):
    metrics.mean(np.zeros((2, 3)))


def test_a_batch_has_one_row_number_per_example():
  table = {'inputs': jnp.zeros((4, 2)), 'labels': jnp.arange(4)}
  assert columns.take(table, jnp.array([2, -1]))['labels'].tolist() == [2, 0]
  with pytest.raises(AssertionError):
    columns.take(table, jnp.zeros((2, 2), int))
