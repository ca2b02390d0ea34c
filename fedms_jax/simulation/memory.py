"""How much memory is free, on the host and on the device."""

from __future__ import annotations

import os
import pathlib

import jax

_CONTROL_GROUP = pathlib.Path('/sys/fs/cgroup')


def host(
  table: pathlib.Path = pathlib.Path('/proc/meminfo'),
  groups: pathlib.Path = _CONTROL_GROUP,
) -> float:
  """Bytes that this process may still take: what the machine has available,
  or what is left of its container's or job's limit (cgroup v2) if that is
  less."""
  try:
    lines = dict(line.split(':') for line in table.read_text().splitlines())
    free = 1024.0 * int(lines['MemAvailable'].split()[0])
  except (OSError, KeyError, ValueError):  # no Linux
    free = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2
  return min([free, *_left(groups)])


def _left(root: pathlib.Path):
  """What is left of the limits of the group and of those it is part of."""
  try:
    own = pathlib.Path('/proc/self/cgroup').read_text()
  except OSError:
    return
  path = next((p[3:] for p in own.split('\n') if p.startswith('0::')), '/')
  for folder in [root, *(root / part for part in _parts(path))]:
    try:
      limit = float((folder / 'memory.max').read_text())  # 'max': none
      used = float((folder / 'memory.current').read_text())
      stat = (folder / 'memory.stat').read_text().splitlines()
    except (OSError, ValueError):
      continue
    # Pages of files are given back when they are needed.
    cached = dict(line.split() for line in stat).get('inactive_file', 0)
    yield max(0.0, limit - used + float(cached))


def _parts(path: str):
  """`a`, `a/b`, ... of a path `/a/b/...`."""
  parts = path.strip('/').split('/')
  return ['/'.join(parts[: i + 1]) for i in range(len(parts)) if parts[0]]


def device() -> float:
  """Bytes free on the fullest device of this process; where a back-end does
  not say, as the CPU's, those of the host."""
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  if not all('bytes_limit' in s for s in stats):
    return host()
  return float(min(s['bytes_limit'] - s['bytes_in_use'] for s in stats))
