"""On another number of cores a run agrees to float32 rounding.

XLA's CPU client divides a matrix product over the threads of its pool, and so
the order of a sum follows their number: bitwise equality is promised for one
number of cores only (BUILD.md). The number of threads is fixed when a process
starts its client, hence the processes here.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import json, os, sys
os.sched_setaffinity(0, set(json.loads(sys.argv[1])))
import jax
from fedms_jax.core import compile
compile.leave_to_xla()
from tests import world
_, state, records = world.simulate(world.stages(2)[:1])
leaves = [x.ravel().tolist() for x in jax.tree.leaves(state.roles.shared)]
print(json.dumps([[r['train_loss'] for r in records], sum(leaves, [])]))
"""


def run(cores, flags=''):
  """Losses and parameters of a run on so many cores."""
  done = subprocess.run(
    [sys.executable, '-c', CODE, json.dumps(cores)],
    cwd=ROOT,
    env=os.environ
    | {'XLA_FLAGS': f'--xla_backend_optimization_level=0 {flags}'},
    capture_output=True,
    text=True,
    check=True,
  )
  return [np.array(part) for part in json.loads(done.stdout.splitlines()[-1])]


ALL = sorted(os.sched_getaffinity(0))


@pytest.mark.slow
def test_the_same_cores_give_the_same_bits():
  for one, two in zip(run(ALL), run(ALL), strict=True):
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow
@pytest.mark.skipif(len(ALL) < 2, reason='one core is all there is')
@pytest.mark.parametrize('flags', ['', '--xla_cpu_multi_thread_eigen=false'])
def test_other_threads_agree_to_rounding(flags):
  for one, two in zip(run(ALL), run(ALL[:1], flags), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=2e-6)
