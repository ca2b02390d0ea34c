"""Correlated noise of banded matrices: published numbers and its own law."""

import numpy as np
import pytest

from fedms_jax.systems import banded


def test_the_best_bands_of_64_rounds_are_those_that_are_known():
  found = np.array(banded.coefficients(64, 8))
  assert found @ found == pytest.approx(1.0, abs=1e-8)
  known = [0.6767, 0.3977, 0.3238, 0.2830, 0.2544, 0.2314, 0.2109, 0.1904]
  np.testing.assert_allclose(found, known, atol=2e-3)
  errors = banded.squared_errors(found, 64)
  assert errors.mean() == pytest.approx(7.0968, abs=1e-3)
  assert errors.max() == pytest.approx(11.88, abs=2e-2)
  # Of independent noise the errors add up.
  alone = banded.squared_errors(np.array([1.0]), 64)
  np.testing.assert_array_equal(alone, np.arange(1, 65))


def test_errors_are_those_of_the_matrices():
  column, rounds = np.array(banded.coefficients(12, 3)), 12
  matrix = sum(np.diag([c] * (rounds - i), -i) for i, c in enumerate(column))
  rows = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(matrix)
  np.testing.assert_allclose(
    banded.squared_errors(column, rounds), (rows**2).sum(1), rtol=1e-6
  )


def test_one_band_is_independent_noise_and_prefixes_are_known():
  assert banded.coefficients(64, 1) == (1.0,)
  assert len(banded.coefficients(3, 8)) == 3
  np.testing.assert_allclose(
    banded.prefix(6), [1, 0.5, 0.375, 0.3125, 0.27344, 0.24609], atol=1e-5
  )
