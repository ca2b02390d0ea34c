"""Class prompts as the head of an encoder of texts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import tree
from fedms_jax.core.types import Span
from fedms_jax.models import class_prompts, pretrained, tasks
from fedms_jax.models.family import Options
from fedms_jax.server import averaged
from tests.models import references
from tests.persistence.model_files_test import CONFIGS

CLASSES = 3
LORA = lora.Spec(2, 2.0, ('attn/q', 'mlp/down'))


def made(kind: str = 'bert', **chosen):
  """(model, params whose class features are of length 1)."""
  config, _ = CONFIGS[kind]
  options = Options(head='zero_shot', classes=CLASSES)
  model = pretrained.model(config, dataclasses.replace(options, **chosen))
  params, head = references.weights(model, 0.3)
  assert head == {}
  rows = params['final']['classes']
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return model, params


@pytest.mark.parametrize('pooling', ['', 'mean', 'cls'])
@pytest.mark.parametrize('kind', ['bert', 'roberta', 'distilbert'])
def test_logits_are_twenty_times_the_cosine(kind, pooling):
  model, params = made(kind, pooling=pooling)
  words = references.tokens()
  states, _, logits = references.walk(model.backbone, params, {}, words)
  expected = np.zeros((len(words), CLASSES))
  for row, tokens in enumerate(words):
    states_of = np.asarray(states[-1][row], np.float64)[tokens >= 0]
    x = states_of[0] if pooling == 'cls' else states_of.mean(axis=0)
    for c, feature in enumerate(params['final']['classes']):
      expected[row, c] = 20 * x @ feature / np.sqrt(x @ x)
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert np.ptp(expected) > 1  # or any constant would do


def test_fresh_class_features_have_length_one():
  rows = class_prompts.fresh(jax.random.key(0), CLASSES, 5)
  np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)


def test_a_text_without_tokens_is_like_no_class_and_teaches_nothing():
  head = class_prompts.text_head(4, CLASSES)
  params = {'final': {'classes': jnp.eye(CLASSES, 4)}}

  def loss(x):
    return jnp.sum(jax.nn.log_softmax(head.logits(params, {}, x))[:, 0])

  value, slope = jax.value_and_grad(loss)(jnp.zeros((1, 4)))
  assert float(value) == pytest.approx(-np.log(CLASSES))
  assert np.all(np.isfinite(slope))


def test_what_is_learned_moves_logits_and_holds_no_class_feature():
  model, params = made()
  params = jax.tree.map(jnp.asarray, params)
  setting = fedms.Setting(
    model.backbone, tasks.classification(), optax.sgd(0.5), optax.sgd(1.0),
    averaged.mean(), LORA,
  )  # fmt: skip
  roles = fedms.start(params, {})
  roles = fedms.global_stage(setting).begin(jax.random.key(0), roles)
  learned = tree.flat({'shared': roles.shared, 'personal': roles.personal})
  assert learned and all('/blocks/' in path for path in learned)
  frozen = tree.flat(roles.frozen)
  kept = [path for path in frozen if path.endswith('final/classes')]
  assert kept
  words = references.tokens()
  labels = jnp.array([0, 1, 2])

  @jax.jit
  def loss(blocks):
    spans = [Span(0, model.backbone.blocks, (params['blocks'], blocks))]
    backbone = model.backbone.adapted(LORA)
    mask = backbone.mask(words)
    x = backbone.run(spans, backbone.embed(params, words), mask)
    logits = backbone.logits(params, {}, backbone.features(params, x, mask))
    picked = jax.nn.log_softmax(logits)[jnp.arange(3), labels]
    return -jnp.mean(picked), logits

  rng = np.random.default_rng(0)
  blocks = jax.tree.map(
    lambda x: np.asarray(x) + 0.01 * rng.normal(size=x.shape).astype('float32'),
    LORA.init(jax.random.key(0), params['blocks']),
  )
  (before, first), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    blocks
  )
  step = jax.tree.map(lambda x, g: x - 0.02 * g, blocks, slope)
  after, second = loss(step)
  assert float(after) < float(before)
  assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
  ('kind', 'chosen', 'said'),
  [
    ('gpt2', {}, "'zero_shot' does not fit.*allowed: classification, causal"),
    ('llama', {}, "'zero_shot' does not fit.*allowed: classification, causal"),
    ('vit', {}, "'zero_shot' does not fit"),
    ('bert', {'pooling': 'pooler'}, "'pooler' does not fit.*: mean, cls"),
    ('distilbert', {'pooling': 'last'}, "'last' does not fit.*: mean, cls"),
  ],
)
def test_what_has_no_feature_of_sentences_is_refused(kind, chosen, said):
  config, _ = CONFIGS[kind]
  options = Options(head='zero_shot', classes=CLASSES)
  with pytest.raises(ValueError, match=said):
    pretrained.model(config, dataclasses.replace(options, **chosen))
