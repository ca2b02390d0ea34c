"""XLA's memory of the main programs, held to budgets."""

import jax
import pytest

from fedms_jax.core import token_logits
from tests.memory import programs
from tests.memory.budgets import QUICK, SCORED, TRAINED


def some(names, quick):
  return [
    name if name in quick else pytest.param(name, marks=pytest.mark.slow)
    for name in names
  ]


def check(taken, budget):
  """A budget that is far too large would hold nothing."""
  assert 0.5 * budget < taken <= budget


@pytest.mark.parametrize('name', some(TRAINED, QUICK))
def test_training_takes_no_more_than_its_budget(name):
  case, most = TRAINED[name]
  check(programs.memory(case).taken, most * programs.needed(case))


@pytest.mark.parametrize('name', some(SCORED, ()))
def test_evaluation_takes_no_more_than_its_budget(name):
  case, most = SCORED[name]
  taken = programs.memory(case, programs.evaluated).taken
  check(taken, most * programs.needed(case))


@pytest.mark.slow
def test_a_large_array_would_be_seen(monkeypatch):
  """Logits that are whole, as they were once, are over the budget."""
  case, most = TRAINED['gpt2-2']
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', 2**60)
  jax.clear_caches()
  program, _ = programs.lowered(case)
  taken = program.compile().memory_analysis().temp_size_in_bytes
  jax.clear_caches()
  assert taken > 2 * most * programs.needed(case)
