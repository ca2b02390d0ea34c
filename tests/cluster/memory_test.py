"""What the process keeps of freed memory."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from fedms_jax.cluster import memory

# Blocks above 32 MB, in the main thread and in another, as XLA's are.
SCRIPT = """
import json, resource, threading
from fedms_jax.cluster import memory

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  b'x' * 64_000_000
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept, found = memory.keep_memory(), []

def work():
  faults()
  found.append(faults())

work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps([kept, found]))
"""


def run(**variables):
  """(whether memory is kept, page faults of a block that was freed before)."""
  plain = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}
  plain.pop('GLIBC_TUNABLES', None)
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT],
    env=plain | variables,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def test_a_freed_block_is_used_again_without_a_page_fault():
  kept, faults = run()
  if not kept:
    pytest.skip('no glibc here')
  assert max(faults) < 100  # of 15,625 pages


def test_what_the_user_asked_of_malloc_stays():
  kept, faults = run(MALLOC_ARENA_MAX='4')
  assert not kept
  assert min(faults) > 10_000 or sys.platform != 'linux'


@pytest.mark.skipif(sys.platform != 'linux', reason='of Linux alone')
def test_compiled_programs_make_room_before_a_process_ends_of_them():
  def maps():
    return pathlib.Path('/proc/self/maps').read_bytes().count(b'\n')

  compiled = jax.jit(lambda x, k: x @ x * k, static_argnums=1)
  for number in range(20):
    compiled(np.ones((4, 4), np.float32), number)
  before = maps()
  assert not memory.make_room(share=1.0)
  assert compiled._cache_size() == 20
  assert memory.make_room(share=0.0)
  assert compiled._cache_size() == 0 and maps() < before
