"""What a model learns of another one's predictions (arXiv 1503.02531)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core.types import Batch


def divergence(teacher, student, weights, temperature: float = 1.0):
  """Mean of t^2 KL(softmax(teacher / t) || softmax(student / t)), t =
  `temperature`; float32 scalar.

  teacher, student: logits [..., C]; no gradient reaches the teacher. weights:
  float32 [...], 0 for what is padding; nothing weighs: 0.
  """
  teacher = jax.lax.stop_gradient(teacher)
  q, p = (
    jax.nn.log_softmax(x.astype(jnp.float32) / temperature, axis=-1)
    for x in (student, teacher)
  )
  each = temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1)
  each = jnp.where(weights > 0, each, 0.0)
  return jnp.sum(each * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def weights(logits, batch: Batch, tokens):
  """What counts of logits [B, C] or [B, T, C]: real rows, and of those the
  tokens that exist. tokens: bool [B, T] or None, all; float32 [B] or [B, T].
  """
  rows = batch['mask'].astype(jnp.float32)
  if logits.ndim == 2:
    return rows
  held = jnp.ones(logits.shape[:2]) if tokens is None else tokens
  return rows[:, None] * held.astype(jnp.float32)
