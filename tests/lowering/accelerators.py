"""Accelerators that this machine need not have: programs are lowered for them,
which is all that happens to a program before its compilation."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax._src.cudnn import fused_attention_stablehlo as flash

from fedms_jax.models import attention
from fedms_jax.models.attention import Device


class Accelerator(NamedTuple):
  """platform: as JAX lowers for it. device: as attention sees it."""

  platform: str
  device: Device


ACCELERATORS = {
  'turing': Accelerator('cuda', Device('gpu', (7, 5))),
  'ampere': Accelerator('cuda', Device('gpu', (8, 0))),
  'hopper': Accelerator('cuda', Device('gpu', (9, 0))),
  'tpu': Accelerator('tpu', Device('tpu')),
}
CUDNN = 91000


def pretend(monkeypatch, where: Accelerator) -> None:
  """Lets attention choose, and JAX's checks before cuDNN pass, as there."""

  def reached(capability: str) -> bool:
    wanted = tuple(map(int, capability.split('.')))
    return where.device.capability >= wanted

  monkeypatch.setattr(attention, 'device', lambda: where.device)
  monkeypatch.setattr(flash, 'check_cudnn_version', lambda: CUDNN)
  monkeypatch.setattr(flash, 'check_compute_capability', reached)


def lowered(function, args, where: Accelerator) -> str:
  """StableHLO of a function of shapes. A new function each time, for JAX
  remembers what it traced, and would not ask anew what attention to take."""
  fresh = jax.jit(lambda *args: function(*args))
  return (
    fresh.trace(*args).lower(lowering_platforms=(where.platform,)).as_text()
  )
