"""`fedms plan --encrypted=2`: a step of tuning on ciphertexts, see
`systems/encryption.py`."""

from __future__ import annotations

from typing import Any

from fedms_jax.core import tree
from fedms_jax.core.types import Roles
from fedms_jax.report.printed import grid
from fedms_jax.shell.config import Config
from fedms_jax.systems import encryption
from fedms_jax.systems.encryption import Load, Processor, Radio
from fedms_jax.systems.units import in_bytes

_SERVER = Processor(clock=3e9)


def check(values: dict[str, Any]) -> None:
  """Raises `ValueError` for numbers out of their bounds."""
  for name in ('radio_mhz', 'radio_watts'):
    if not 0 < values[name] <= 1e6:
      raise ValueError(
        f'--{name}={values[name]:g} is not allowed; allowed: more than 0, at '
        'most 1e6.'
      )
  if not 0 <= values['encrypted_weight'] <= 1e12:
    raise ValueError(
      f'--encrypted_weight={values["encrypted_weight"]:g} is not allowed; '
      'allowed: 0 to 1e12.'
    )
  depth = values['encrypted']
  if depth < 1:
    raise ValueError(
      f'--encrypted={depth} is not allowed; allowed: at least 0.'
    )


def load(config: Config, roles: Roles, tokens: int) -> Load:
  """Of a step of a cohort: each device sends what the stem makes of a batch,
  and the server multiplies it with A and B of all blocks."""
  width = roles.frozen['base']['blocks']['norm1']['scale'].shape[-1]
  rows = config.client.batch_size * tokens
  factors = tree.size(roles.frozen['start'].get('blocks', {}))
  return Load(config.cohort.size, rows * width, rows * factors)


def lines(
  config: Config, roles: Roles, tokens: int, values: dict[str, Any]
) -> list[str]:
  """A table of the rings that bear the depth, and which is best.

  roles: shapes of the first stage. values: of the command's own flags.
  """
  check(values)
  radio = Radio(values['radio_mhz'] * 1e6, values['radio_watts'])
  work = load(config, roles, tokens)
  costs = [
    encryption.cost(ring, work, radio, Processor(), _SERVER)
    for ring in encryption.rings(values['encrypted'])
  ]
  weight = values['encrypted_weight']
  best = encryption.best(costs, weight)
  rows = [
    ['ring', 'security', 'over float32', 'ciphertexts', 'sent', 'encrypts',
     'sends', 'devices', 'radio', 'server']
  ]  # fmt: skip
  for c in costs:
    rows.append(
      [
        str(c.ring.degree) + '*' * (c is best),
        f'{c.ring.security:.0f} bits',
        f'{c.ring.expansion:.1f}x',
        str(c.ciphertexts),
        in_bytes(c.sent),
        f'{c.seconds[0]:.3g} s',
        f'{c.seconds[1]:.3g} s',
        f'{c.encrypting:.3g} J',
        f'{c.sending:.3g} J',
        f'{c.serving:.3g} J',
      ]
    )
  bits = encryption.modulus(values['encrypted'])
  return [
    f'a step of {work.devices} devices on ciphertexts of CKKS with a modulus '
    f'of {bits} bits, a model: {work.values:,} values of a device, in all '
    f'{radio.band / 1e6:g} MHz',
    *grid(rows),
    f'*: least energy, where a bit of security is worth {weight:g} J',
  ]
