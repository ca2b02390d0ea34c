"""The devices of clients: how long a task takes, and when they are online."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.systems.arrivals import Tasks
from fedms_jax.systems.availability import Availability

# FedScale counts a model in units of 1024 / 8 bytes, and such units a second.
_KILOBIT = 1024 / 8


class Devices(NamedTuple):
  """The devices of N clients.

  speed: FLOP per second, [N]. down, up: bytes per second, [N]; numbers may be
  infinite. availability: None: all are always online.
  """

  speed: np.ndarray
  down: np.ndarray
  up: np.ndarray
  availability: Availability | None = None

  def phases(self, ids: np.ndarray, tasks: Tasks) -> np.ndarray:
    """Seconds [K, 3] that clients receive, compute and send."""
    return np.stack(
      [
        tasks.down / self.down[ids],
        tasks.flops / self.speed[ids],
        tasks.up / self.up[ids],
      ],
      axis=1,
    )

  def online(self, time: float) -> np.ndarray | None:
    """Who is online, bool [N]; None: all are."""
    if self.availability is None:
      return None
    return self.availability.online(np.arange(len(self.speed)), time)

  def on_for(self, ids: np.ndarray, time: float) -> np.ndarray:
    """Seconds [K] that clients stay online from now on."""
    if self.availability is None:
      return np.full(len(ids), np.inf)
    return self.availability.on_for(ids, time)

  def next_on(self, time: float) -> float:
    """The earliest time, this one or later, at which somebody is online; a
    later one by a microsecond more, so that no rounding leaves it before."""
    if self.availability is None:
      return time
    everybody = np.arange(len(self.speed))
    first = float(self.availability.next_on(everybody, time).min())
    return first if first == time else first + 1e-6


def instant(clients: int) -> Devices:
  """Devices that take no time."""
  none = np.full(clients, np.inf)
  return Devices(none, none, none)


def lognormal(
  clients: int,
  seed: int,
  *,
  speed: float,
  down: float,
  up: float,
  speed_sigma: float = 0.6,
  bandwidth_sigma: float = 1.0,
) -> Devices:
  """Devices whose speeds and bandwidths are lognormal.

  speed: median, FLOP per second. down, up: medians, bytes per second; those of
  a client are in the same proportion. That speed and bandwidth are independent
  is ours, as the usual bandwidth_sigma is; speed_sigma is FedScale's.
  """
  rng = np.random.default_rng([seed, Stream.DEVICES.number, 0])
  fast = np.exp(speed_sigma * rng.standard_normal(clients))
  wide = np.exp(bandwidth_sigma * rng.standard_normal(clients))
  return Devices(speed * fast, down * wide, up * wide)


class _Plain(pickle.Unpickler):
  """Reads numbers, texts and containers; nothing in the file is run."""

  def find_class(self, module: str, name: str) -> Any:
    raise pickle.UnpicklingError(f'{module}.{name} is no plain value')


def read(path: str | pathlib.Path) -> Any:
  """What a file of devices or of availability holds: JSON, JSON lines with an
  'id' each, or a pickle of dicts, lists, texts and numbers alone.

  Raises:
    ValueError: the file is none of these.
  """
  path = pathlib.Path(path)
  try:
    data = path.read_bytes()
  except OSError as e:
    raise ValueError(f'{path} cannot be read: {e.strerror}.') from None
  try:
    if data[:1] == b'\x80':
      return _Plain(io.BytesIO(data)).load()
    try:
      found = json.loads(data)
    except ValueError:
      found = [json.loads(line) for line in data.splitlines() if line.strip()]
  except Exception as e:  # a damaged pickle may raise anything
    raise ValueError(
      f'{path} is neither JSON, nor JSON lines, nor a pickle of plain values: '
      f'{e}.'
    ) from None
  if isinstance(found, dict) and 'id' in found:
    found = [found]
  if isinstance(found, list):
    try:
      return {one['id']: one for one in found}
    except (KeyError, TypeError):
      raise ValueError(f"{path} has a line without an 'id'.") from None
  return found


def table(path: str | pathlib.Path) -> Mapping[Any, Any]:
  """What `read` gives, if it is a table of devices with at least one.

  Raises:
    ValueError: it is not.
  """
  found = read(path)
  if not isinstance(found, dict) or not found:
    raise ValueError(f'{path} holds no device; allowed: an object of each.')
  return found


def of_table(
  found: Mapping[Any, Any], clients: int, reference: float = 0.0
) -> Devices:
  """The devices of a file; client k has the k-th one, in turn.

  Args:
    found: {id: {'speed': FLOP/s, 'down': bytes/s, 'up': bytes/s}}, or
      FedScale's {id: {'computation': milliseconds that a forward pass takes
      for one example, 'communication': kbit/s}}.
    clients: N.
    reference: FLOPs of such a forward pass in the model that FedScale's file
      was measured with; a backward pass is counted by the ledger.

  Raises:
    ValueError: something is missing, or no positive number.
  """
  rows = [_row(key, one, reference) for key, one in found.items()]
  columns = np.asarray(rows, float)[np.arange(clients) % len(rows)].T
  speed, down, up = columns
  return Devices(speed, down, up)


def _row(key: Any, one: Any, reference: float) -> tuple[float, float, float]:
  """(speed, down, up) of a device."""
  try:
    if 'computation' in one:
      if not reference:
        raise ValueError(
          f'device {key!r} has milliseconds per example, which say nothing of '
          'FLOPs without those of the model that they were measured with. Give '
          '`reference`.'
        )
      wide = float(one['communication']) * _KILOBIT
      row = reference / (float(one['computation']) / 1000), wide, wide
    else:
      row = float(one['speed']), float(one['down']), float(one['up'])
  except (KeyError, TypeError, ZeroDivisionError):
    row = (0.0,)
  if not all(np.isfinite(x) and x > 0 for x in row) or len(row) < 3:
    raise ValueError(
      f"device {key!r} lacks positive numbers under 'speed', 'down' and 'up', "
      "or under 'computation' and 'communication'."
    )
  return row
