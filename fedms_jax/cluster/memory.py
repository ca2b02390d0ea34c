"""How much memory is free, on the host and on the device."""

from __future__ import annotations

import ctypes
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


def for_tables(free: float = 0.0) -> float:
  """Bytes that tables may take of each device: half of what is free, and the
  rest is left to training. A CPU's memory is the host's, half of which columns
  there may take, so it is half of the other half.

  free: bytes that are to be taken as free; 0: what `device` says.
  """
  share = 0.25 if jax.local_devices()[0].platform == 'cpu' else 0.5
  return share * (free or device())


# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
  """Lets this process keep the memory that it frees; call it before JAX runs.

  XLA:CPU asks for the workspace of every call anew, and glibc gives blocks of
  32 MB and more back to the kernel at once. Then each step pays for clearing
  its pages again: a fifth of a step of ViT-Ti at batch 32. All threads share
  one arena, because only the first one can grow so far.

  Returns:
    Whether the process will do so: not without glibc, nor where the user has
    set variables of malloc.
  """
  if any(name.startswith(('MALLOC_', 'GLIBC_TUNABLES')) for name in os.environ):
    return False
  wanted = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # not Linux, or another libc
    return False
  return all([mallopt(name, value) for name, value in wanted.items()])


def make_room(share: float = 0.5) -> bool:
  """Drops what is compiled if it fills this share of the memory maps that
  Linux gives a process: XLA:CPU takes some for each program, and one too many
  ends the process.

  Returns:
    Whether it did.
  """
  try:
    maps = pathlib.Path('/proc/self/maps').read_bytes().count(b'\n')
    most = int(pathlib.Path('/proc/sys/vm/max_map_count').read_text())
  except OSError:  # not Linux
    return False
  if maps < share * most:
    return False
  jax.clear_caches()
  return True
