"""What is said to people of a run's virtual time."""

from __future__ import annotations

from typing import Any

_WORDS = {
  'offline': 'gone offline',
  'late': 'late',
  'cancelled': 'cancelled',
  'stale': 'too stale',
  'partial': 'in part',
}


def lines(found: dict[str, Any]) -> list[str]:
  """The lines on what summary.json holds under `time`."""
  dropped = [
    f'{found["dropped"][name]} {words}'
    for name, words in _WORDS.items()
    if found['dropped'].get(name)
  ]
  if found['dropped'].get('failed'):
    dropped.append(f'{found["dropped"]["failed"]} rounds failed')
  chosen = f'{found["selection"]} selection of clients'
  now, policy = found['virtual_time'], found['policy']
  clock = f'virtual time: {now:.4g} s, {policy} rounds'
  out = [
    chosen if policy == 'none' else f'{clock}, {chosen}',
    f'  wasted: {found["wasted_flops"]:.1%} of FLOPs, '
    f'{found["wasted_bytes"]:.1%} of bytes'
    + (f'; tasks: {", ".join(dropped)}' if dropped else ''),
    f'  participation: Gini {found["participation_gini"]:.2f}, the busiest '
    f'30 % of clients sent {found["top_share"]:.0%} of reports',
  ]
  if 'staleness_mean' in found:
    out.append(
      f'  reports were {found["staleness_mean"]:.2f} server steps old, at most '
      f'{found["staleness_max"]}'
    )
  fast, slow = found.get('fastest_tenth'), found.get('slowest_tenth')
  if fast is not None and slow is not None:
    out.append(
      f'  score of the fastest tenth of clients {100 * fast:.1f} %, of the '
      f'slowest {100 * slow:.1f} %'
    )
  return out
