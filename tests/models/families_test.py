"""Every family goes through both stages of FedMS."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import reduction, rounds
from fedms_jax.core.contract import Clients, Work
from fedms_jax.core.types import Plan
from fedms_jax.models import gate, pretrained, storages, tasks
from fedms_jax.models.family import Options
from fedms_jax.server import averaged
from tests import world
from tests.models.references import images, tokens, weights
from tests.persistence.model_files_test import CONFIGS

ROWS, END = 12, 59
TASKS = {
  'classification': tasks.classification,
  'zero_shot': tasks.classification,
  'causal_lm': tasks.causal_lm,
  'masked_lm': tasks.masked_lm,
  'contrast': tasks.contrast,
}
CASES = {
  'vit': ('vit', Options(classes=3)),
  'bert': ('bert', Options(classes=3, pooling='mean')),
  'bert_mlm': ('bert', Options(head='masked_lm')),
  'bert_zero_shot': ('bert', Options(head='zero_shot', classes=3)),
  'gpt2': ('gpt2', Options(head='causal_lm', remat=True)),
  'llama_int8': ('llama', Options(head='causal_lm', storage='int8')),
  'gemma3': ('gemma3', Options(head='causal_lm', unroll=0)),
  'phi3_int8': ('phi3', Options(head='causal_lm', storage='int8')),
  'clip_zero_shot': ('clip', Options(head='zero_shot', classes=3)),
  'clip_image': ('clip', Options(head='contrast', tower='image')),
  'clip_text': ('clip', Options(head='contrast', tower='text')),
  'clip_both': ('clip', Options(head='contrast', tower='both')),
}


def table(kind: str, head: str):
  """Columns of one task."""
  rng = np.random.default_rng(0)
  words = np.concatenate([tokens(3, seed=i) for i in range(ROWS // 3)])
  out = {'labels': rng.integers(0, 3, ROWS).astype(np.int32)}
  out['inputs'] = images(ROWS) if kind in ('vit', 'clip') else words
  if head == 'contrast':
    out['texts'] = words.copy()
    out['texts'][np.arange(ROWS), (words >= 0).sum(1) - 1] = END
  if head == 'masked_lm':
    hidden = rng.random(words.shape) < 0.3
    out['targets'] = np.where(hidden, words, -1).astype(np.int32)
  return jax.tree.map(jnp.asarray, out)


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_both_stages_train_and_columns_change_nothing(name):
  kind, options = CASES[name]
  exact = dataclasses.replace(options, storage='float32')
  model = pretrained.model(CONFIGS[kind][0], exact)
  backbone, data = model.backbone, table(kind, options.head)
  params, head = weights(model, 0.2)
  params = storages.stored(params, options.storage, options.dtype)
  both = name == 'clip_both'
  targets = ('image/attn/q', 'text/attn/v') if both else ('attn/q', 'attn/v')
  sgd = optax.sgd(0.5)
  setting = fedms.Setting(
    backbone,
    TASKS[options.head](),
    sgd,
    optax.sgd(1.0),
    averaged.mean(),
    lora.Spec(2, 2.0, targets),
  )
  spec = gate.GateSpec(width=backbone.width, classes=max(1, options.classes))
  top = (False,) * (backbone.blocks - 1) + (True,)
  plan = Plan(top, backbone.blocks - 1)
  rows = np.arange(8, dtype=np.int32).reshape(2, 1, 4)
  counts, ids = np.full(2, 4, np.float32), np.arange(2, dtype=np.uint32)
  roles = fedms.start(params, head)
  for algorithm in (
    fedms.global_stage(setting),
    fedms.personal_stage(setting, fedms.Personal(spec, tower='lora')),
  ):
    roles = jax.jit(algorithm.begin)(jax.random.key(2), roles)
    personal = jax.tree.map(lambda x: jnp.stack([x, x]), roles.personal)
    alone = roles._replace(personal=None)
    derived = jax.jit(algorithm.columns, static_argnums=2)(alone, data, plan)
    results = []
    for columns in (data, data | derived):
      totals = reduction.empty(algorithm, roles)
      work = Work(columns, jax.random.key(5))
      chunk = Clients(ids, personal, rows, counts)
      results.append(rounds.train(algorithm, plan, roles, work, totals, chunk))
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
      np.testing.assert_allclose(x, y, atol=1e-4)
    totals, trained, sums = results[0]
    assert float(sums['loss'][:, 0].min()) > 0
    assert not float(sums['skipped'][:, 0].sum())
    shared = world.close_round(algorithm, roles, totals)[0].shared
    moved = jax.tree.map(
      lambda x, y: bool(jnp.any(x != y)),
      (shared, trained),
      (roles.shared, personal),
    )
    assert any(jax.tree.leaves(moved))
    roles = roles._replace(shared=shared)
