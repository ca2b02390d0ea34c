"""What is said to people of a run's privacy."""

from __future__ import annotations

from typing import Any


def lines(found: dict[str, Any]) -> list[str]:
  """The lines on what summary.json holds under `privacy`."""
  bound = 'no bound: there is no noise'
  if found['epsilon'] is not None:
    bound = f'epsilon {found["epsilon"]:.4g} at delta {found["delta"]:.3g}'
    if found['epsilon_rdp'] is not None:
      bound += f' (by Renyi divergences {found["epsilon_rdp"]:.4g})'
  noise = ', '.join(f'{z:.4g}' for z in dict.fromkeys(found['noise']))
  values = ', '.join(
    f'{z:.4g}' for z in dict.fromkeys(found['noise_of_values'])
  )
  most = f', at most {found["cap"]} in a round'
  groups = f', {found["groups"]} groups in turn' if found['groups'] > 1 else ''
  out = [
    f'privacy: {bound}; {found["accountant"]}',
    f'  of each {found["unit"]}, neighbors: {found["neighbors"]}; trusted: '
    f'{found["trusted"]}',
    f'  {found["sampler"]} cohorts, chance {found["chance"]:.4g} of '
    f'{found["clients"]} clients{most}{groups}; {found["rounds"]} '
    f'{"steps" if "row" in found["unit"] else "rounds"} counted',
    f'  noise multiplier {noise}, of the values {values}',
    f'  covers {"; ".join(found["covers"])}',
    f'  does not cover {"; ".join(found["not_covered"])}',
  ]
  if found['population']:
    out.insert(1, f'  {found["population"]}')
  return out
