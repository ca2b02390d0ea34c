"""Tasks: what is learned and how it is scored, one number per example."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from fedms_jax.base import Batch, Task


def _cross_entropy(logits, batch: Batch):
  labels = jnp.maximum(batch['labels'], 0)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), labels
  )


def _accuracy(logits, batch: Batch):
  hit = jnp.argmax(logits, axis=-1) == batch['labels']
  return hit.astype(jnp.float32), batch['mask'].astype(jnp.float32)


def classification() -> Task:
  """Cross-entropy and accuracy of logits [B, C] against labels [B]."""
  return Task('accuracy', _cross_entropy, _accuracy)


def masked_mean(values, mask):
  """Mean of values [B] where mask [B] holds; 0 if it holds nowhere."""
  mask = mask.astype(jnp.float32)
  return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)
