"""What tuning under homomorphic encryption would cost: CKKS, analytically.

Devices encrypt what they send and a server computes on ciphertexts, so that
neither sees the other's model or data; nothing here trains (after PrivTuner,
arXiv 2410.00433, which chooses the ring and shares the radio band by such a
model). The paper's fitted curves are not used: all numbers follow from first
principles, and constants are arguments.

- A ring of degree N with a modulus of q bits packs N / 2 values in a ciphertext
  of 2 N q bits. Security at a given q grows about linearly in N; the largest q
  at 128 bits is that of the homomorphic encryption standard.
- A number of limbs L = ceil(q / 60) is what the machine computes with. To
  encrypt takes 2 L N log2 N operations (a transform each of two polynomials),
  to add N L, and to multiply with what that entails N L^2 log2 N.
- A processor at f Hz spends kappa f^2 joules a cycle, and an operation takes a
  cycle. A band of b Hz carries b log2(1 + g p / (N0 b)) bits a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Degree of the ring -> most bits of the modulus at 128 bits of security
# (homomorphicencryption.org, ternary secrets).
RINGS = {4096: 109, 8192: 218, 16384: 438, 32768: 881}
_LIMB = 60  # bits
_SCALE, _ENDS = 40, 60  # bits of the modulus: of a level, and of either end
_FLOAT = 32


class Radio(NamedTuple):
  """band: Hz, of all devices together. power: W, of a device. gain: of the
  channel. noise: W / Hz; -174 dBm / Hz."""

  band: float = 20e6
  power: float = 0.1
  gain: float = 1e-10
  noise: float = 10 ** (-174 / 10) / 1000


class Processor(NamedTuple):
  """clock: Hz. kappa: J / (cycle Hz^2)."""

  clock: float = 1e9
  kappa: float = 1e-28

  def joules(self, cycles: float) -> float:
    return self.kappa * self.clock**2 * cycles

  def seconds(self, cycles: float) -> float:
    return cycles / self.clock


class Ring(NamedTuple):
  """A ring under a modulus of so many bits."""

  degree: int
  bits: int

  @property
  def slots(self) -> int:
    """Values in a ciphertext."""
    return self.degree // 2

  @property
  def limbs(self) -> int:
    return math.ceil(self.bits / _LIMB)

  @property
  def nbytes(self) -> float:
    """Bytes of a ciphertext."""
    return 2 * self.degree * self.bits / 8

  @property
  def expansion(self) -> float:
    """Bits of a ciphertext over those of its values as float32."""
    return 8 * self.nbytes / (self.slots * _FLOAT)

  @property
  def security(self) -> float:
    """Bits, about: 128 at the standard's modulus, and as N / q otherwise."""
    return 128.0 * RINGS[self.degree] / self.bits

  def ciphertexts(self, values: float) -> int:
    return math.ceil(values / self.slots)

  def encrypting(self) -> float:
    """Operations of one ciphertext."""
    return 2.0 * self.limbs * self.degree * math.log2(self.degree)

  def adding(self) -> float:
    return float(self.degree * self.limbs)

  def multiplying(self) -> float:
    return float(self.degree * self.limbs**2 * math.log2(self.degree))


def modulus(depth: int) -> int:
  """Bits of the modulus for so many multiplications one after another."""
  return 2 * _ENDS + _SCALE * depth


def rings(depth: int) -> list[Ring]:
  """Rings that bear this depth at 128 bits of security, ascending.

  Raises:
    ValueError: none does.
  """
  bits = modulus(depth)
  found = [Ring(n, bits) for n, most in RINGS.items() if bits <= most]
  if not found:
    most = (max(RINGS.values()) - 2 * _ENDS) // _SCALE
    raise ValueError(
      f'`depth`={depth} multiplications need a modulus of {bits} bits, which '
      f'no ring has at 128 bits of security; allowed: at most {most}. Lower it.'
    )
  return found


def rate(radio: Radio, band: float) -> float:
  """Bits a second of a device with so many Hz."""
  signal = radio.gain * radio.power / (radio.noise * band)
  return band * math.log2(1 + signal)


def shared(
  radio: Radio, bits: Sequence[float], gains: Sequence[float]
) -> np.ndarray:
  """The band in shares, Hz [K], that spends the least energy to send `bits`
  [K] through channels of these `gains` [K].

  Energy p D / rate(b) is convex in b, so all have the same slope at the best;
  that slope, and the share that each then has, are found by bisection.
  """
  devices = [radio._replace(gain=gain) for gain in gains]
  amounts = np.asarray(bits, float)

  def slope(device: Radio, amount: float, band: float) -> float:
    """What one Hz more saves, J / Hz."""
    here, more = rate(device, band), rate(device, band * (1 + 1e-4))
    return device.power * amount * (1 / here - 1 / more) / (1e-4 * band)

  def wanted(price: float) -> np.ndarray:
    return np.array(
      [
        _bisected(lambda b, d=d, x=x: slope(d, x, b) > price, radio.band)
        for d, x in zip(devices, amounts, strict=True)
      ]
    )

  highest = max(
    slope(d, x, radio.band * 1e-6)
    for d, x in zip(devices, amounts, strict=True)
  )
  price = _bisected(lambda p: wanted(p).sum() > radio.band, highest)
  found = wanted(price)
  return radio.band * found / found.sum()


def _bisected(more, most: float) -> float:
  """The number in (0, most] up to which `more` holds, which falls; in steps of
  logarithms."""
  low, high = most * 1e-12, most
  for _ in range(80):
    middle = math.sqrt(low * high)
    low, high = (middle, high) if more(middle) else (low, middle)
  return math.sqrt(low * high)


class Cost(NamedTuple):
  """What so many values of each device cost in a ring.

  sent: bytes of a device. seconds: of a device, to encrypt and to send.
  encrypting, sending, serving: joules, of all devices, and of the server.
  """

  ring: Ring
  ciphertexts: int
  sent: float
  seconds: tuple[float, float]
  encrypting: float
  sending: float
  serving: float

  def objective(self, weight: float) -> float:
    """Joules minus `weight` times bits of security."""
    spent = self.encrypting + self.sending + self.serving
    return spent - weight * self.ring.security


class Load(NamedTuple):
  """What is computed. devices: K. values: that each encrypts. products:
  multiplications of the server, value by value, with as many additions."""

  devices: int
  values: float
  products: float


def cost(
  ring: Ring, load: Load, radio: Radio, device: Processor, server: Processor
) -> Cost:
  """The cost of a load in a ring; devices are alike, and share the band
  evenly, which then is best."""
  count = ring.ciphertexts(load.values)
  sent = count * ring.nbytes
  cycles = count * ring.encrypting()
  seconds = 8 * sent / rate(radio, radio.band / load.devices)
  work = ring.ciphertexts(load.products)
  work *= ring.multiplying() + ring.adding()
  return Cost(
    ring,
    count,
    sent,
    (device.seconds(cycles), seconds),
    load.devices * device.joules(cycles),
    load.devices * radio.power * seconds,
    load.devices * server.joules(work),
  )


def best(costs: Sequence[Cost], weight: float) -> Cost:
  """The ring of the least objective; there are few, so all are tried."""
  return min(costs, key=lambda c: c.objective(weight))
