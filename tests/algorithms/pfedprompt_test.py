"""pFedPrompt: PromptFL, and what a client's own rows say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import pfedprompt, soft_prompts
from fedms_jax.core import columns
from fedms_jax.models import pretrained
from tests import world
from tests.algorithms import clip_world, cohort
from tests.algorithms.clip_world import LENGTH

# They compile for a minute.
pytestmark = pytest.mark.slow

CHOICE = pfedprompt.Choice(rows=5, weight=3.0, sharpness=40.0)


@functools.cache
def method():
  algorithm = pfedprompt.pfedprompt(
    clip_world.setting(), clip_world.model().prompted, LENGTH, CHOICE,
    classes=world.CLASSES,
  )  # fmt: skip
  return algorithm, clip_world.begin(algorithm)


@functools.cache
def after():
  algorithm, roles = method()
  rows = world.cohort_rows(steps=3)
  return rows, cohort.one_round(algorithm, roles, rows, world.DENSE)


@functools.cache
def seen(*rows):
  """Features of rows, of length 1."""
  base = clip_world.start().frozen['base']
  images = world.columns()['inputs'][list(rows)]
  x = np.asarray(pretrained.encode(clip_world.model().backbone, base, images))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_prompt_is_that_of_promptfl():
  _, roles = method()
  prompted = clip_world.model().prompted
  setting = clip_world.setting()
  form = soft_prompts.of_classes(setting, prompted, LENGTH)
  rows, found = after()
  plain = cohort.one_round(
    soft_prompts.promptfl(setting, form), roles._replace(personal={}), rows,
    world.DENSE,
  )  # fmt: skip
  world.close(found.roles.shared, plain.roles.shared)
  # Nor do rows that clients have kept before say anything while it trains.
  again = cohort.one_round(
    method()[0], roles, rows, world.DENSE, personal=found.personal
  )
  world.close(again.roles.shared, plain.roles.shared)


def test_a_client_keeps_its_first_real_rows_and_no_more():
  rows, found = after()
  for mine, keys, labels in zip(rows, *found.personal.values(), strict=True):
    real = mine[mine >= 0][: CHOICE.rows]
    none = CHOICE.rows - len(real)
    wanted = [*world.columns()['labels'][real], *[-1] * none]
    np.testing.assert_array_equal(labels, wanted)
    np.testing.assert_allclose(keys[: len(real)], seen(*real), atol=1e-5)
    assert not np.any(keys[len(real) :])
  assert (np.asarray(found.personal['labels']) < 0).any()  # of client 1


def predict(personal, rows):
  algorithm, roles = method()
  roles = roles._replace(personal=personal)
  batch = columns.take(world.table(), jnp.asarray(rows))
  batch = columns.complete(algorithm, roles, batch, world.DENSE)
  return jax.jit(lambda r, b: algorithm.predict(r, b, world.DENSE).logits)(
    roles, batch
  )


def test_what_rows_say_is_a_softmax_over_them():
  own = jax.tree.map(lambda x: x[0], after()[1].personal)
  rows = np.arange(40, 48)
  found = predict(own, rows)
  scores = CHOICE.sharpness * seen(*rows) @ np.asarray(own['keys']).T
  weights = np.exp(scores - scores.max(axis=1, keepdims=True))
  weights /= weights.sum(axis=1, keepdims=True)
  expected = np.zeros((len(rows), world.CLASSES))
  for j, label in enumerate(np.asarray(own['labels'])):
    expected[:, label] += 3.0 * weights[:, j]
  np.testing.assert_allclose(found['local'], expected, atol=1e-3)
  np.testing.assert_allclose(
    found['mixture'], found['global'] + found['local'], atol=1e-5
  )
  assert np.ptp(expected) > 0.1


def test_who_has_no_rows_gets_the_prompt_and_a_gap_counts_for_nothing():
  _, roles = method()
  rows = np.arange(40, 48)
  found = predict(roles.personal, rows)
  assert not found['local'].any()
  np.testing.assert_array_equal(found['mixture'], found['global'])
  few = jax.tree.map(lambda x: x[1], after()[1].personal)  # some are missing
  # Of a dull attention, to which a row of zeros is as good as any.
  dull = CHOICE._replace(sharpness=0.1)
  total = pfedprompt.attended(few, seen(*rows), dull, world.CLASSES).sum(axis=1)
  np.testing.assert_allclose(total, CHOICE.weight, rtol=1e-5)
