"""Whether an LMDB file is all there, before it is mapped.

LMDB trusts its file: where it was cut, by a full disk or a broken copy, the
first access to a page that is missing kills the process (SIGBUS). The format
is that of `mdb.c`, little-endian with 64-bit words: pages of one size, the
first two with a header each, of which the newer one counts.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

_MAGIC = 0xBEEFC0DE
_PAGE = struct.Struct('<QHHHH')  # number, pad, flags, lower, upper
_NODE = struct.Struct('<HHHH')  # low and high half of a size, flags, key size
_ROOT = struct.Struct('<IHH5Q')  # a tree; the last word is its root page
_BRANCH, _LEAF = 0x01, 0x02
_BIG, _TREE = 0x01, 0x02  # flags of a node: pages of its own; a tree of its own
_NOWHERE = 2**64 - 1


class _Header(NamedTuple):
  page: int  # bytes
  roots: tuple[int, int]
  last: int  # page that was ever taken
  number: int  # of the transaction


def check(folder: str | os.PathLike) -> None:
  """Raises `ValueError` if pages are missing that the file refers to."""
  path = pathlib.Path(folder, 'data.mdb')
  if not path.exists() or not path.stat().st_size:
    return  # LMDB makes a new one
  with open(path, 'rb') as file:
    found = _header(file.fileno())
    if found is None:
      return  # no such file; LMDB says so by itself
    size = os.fstat(file.fileno()).st_size
    # Pages at the end that were taken and given back were never written.
    if size < (found.last + 1) * found.page and not all(
      page * found.page <= size for page in _ends(file.fileno(), found, size)
    ):
      raise ValueError(
        f'{path} has been cut: it has {size} bytes of about '
        f'{(found.last + 1) * found.page}. Bring back a whole copy, or start '
        'the run again in another folder.'
      )


def _header(descriptor: int) -> _Header | None:
  """The newer of the two headers."""
  first = _read_header(os.pread(descriptor, 152, 0))
  if first is None:
    return None
  second = _read_header(os.pread(descriptor, 152, first.page))
  return max(first, second or first, key=lambda header: header.number)


def _read_header(data: bytes) -> _Header | None:
  if len(data) < 152 or struct.unpack_from('<I', data, 16)[0] != _MAGIC:
    return None
  free, main = (_ROOT.unpack_from(data, 16 + at) for at in (24, 72))
  last, number = struct.unpack_from('<QQ', data, 16 + 120)
  return _Header(free[0], (free[-1], main[-1]), last, number)


def _ends(descriptor: int, header: _Header, size: int) -> Iterator[int]:
  """The numbers of the pages after everything that is in use."""
  todo = [root for root in header.roots if root != _NOWHERE]
  while todo:
    number = todo.pop()
    yield number + 1
    if (number + 1) * header.page > size:
      return
    data = os.pread(descriptor, header.page, number * header.page)
    _, _, flags, lower, _ = _PAGE.unpack_from(data)
    count = (lower - _PAGE.size) // 2
    for at in struct.unpack_from(f'<{count}H', data, _PAGE.size):
      low, high, kind, key = _NODE.unpack_from(data, at)
      value = at + _NODE.size + key
      if flags & _BRANCH:
        todo.append(low | high << 16 | kind << 32)
      elif flags & _LEAF and kind & _BIG:
        pages = (_PAGE.size - 1 + (low | high << 16)) // header.page + 1
        yield struct.unpack_from('<Q', data, value)[0] + pages
      elif flags & _LEAF and kind & _TREE:
        root = _ROOT.unpack_from(data, value)[-1]
        todo += [root] if root != _NOWHERE else []
