"""What is said to people of an audit."""

from __future__ import annotations

from typing import Any

from fedms_jax.report import printed, runs

FILE = runs.AUDITS


def lines(found: dict[str, Any]) -> list[str]:
  """The lines on what an audit found."""
  return {
    'canaries': _canaries,
    'membership': _membership,
    'inversion': _inversion,
  }[found['kind']](found)


def _canaries(found: dict[str, Any]) -> list[str]:
  accounted = found['epsilon_accounted']
  said = 'no bound' if accounted is None else f'{accounted:.4g}'
  return [
    f'audit by {found["canaries"]} canaries of the {found["rounds"]} rounds of '
    f'the {found["stage"]} stage, at delta {found["delta"]:.3g}',
    f'  epsilon: accounted {said}, at least '
    f'{found["epsilon_lower_bound"]:.4g} with 95 % confidence '
    f'({found["right"]} of {found["guesses"]} guesses were right); estimated '
    f'{found["epsilon_estimate"]:.4g}',
    f'  canaries that were in are told from others with an AUC of '
    f'{found["auroc"]:.3f}',
  ]


def _membership(found: dict[str, Any]) -> list[str]:
  names = printed.ordered(found['models'])
  head = ['', 'AUC', 'hits at 0.1 % false', 'hits at 1 % false']
  body = [
    [
      printed.MODELS.get(name, name),
      f'{found["models"][name]["auroc"]:.3f}',
      printed.share(found['models'][name]['hits_at_0.001']),
      printed.share(found['models'][name]['hits_at_0.01']),
    ]
    for name in names
  ]
  return [
    f'audit of membership (LiRA) of {found["rows"]} rows over {found["runs"]} '
    'runs, hits in %',
    *printed.grid([head, *body]),
  ]


def _inversion(found: dict[str, Any]) -> list[str]:
  return [
    f'audit by inversion of the first message of a client of one row, '
    f'{found["rows"]} rows, {found["steps"]} steps',
    f'  PSNR {found["psnr"]:.1f} dB, of the mean of the public images '
    f'{found["psnr_of_guess"]:.1f} dB; distance left {found["distance"]:.2g}',
    f'  labels shown by the head: {100 * found["label_shown"]:.0f} %',
  ]
