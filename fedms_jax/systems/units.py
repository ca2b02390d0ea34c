"""Quantities in words: bytes and FLOPs with their units."""

from __future__ import annotations

from collections.abc import Sequence


def in_bytes(value: float) -> str:
  return _scaled(value, 1000, ('B', 'kB', 'MB', 'GB', 'TB'))


def in_flops(value: float) -> str:
  units = ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP', 'EFLOP')
  return _scaled(value, 1000, units)


def _scaled(value: float, step: float, units: Sequence[str]) -> str:
  for unit in units[:-1]:
    if value < step:
      return f'{value:.3g} {unit}'
    value /= step
  return f'{value:.3g} {units[-1]}'
