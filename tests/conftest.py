"""Settings of all tests: several CPU devices, quick compilation, --slow."""

import importlib.metadata
import os
import pathlib

# All must be set before JAX starts. Optimization costs more time than it
# saves at the sizes of these tests.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8'
  + ' --xla_backend_optimization_level=0'
)
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # Halves the time to compile; later versions end at an unknown flag.
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('HF_DATASETS_DISABLE_PROGRESS_BARS', '1')

# Processes of a run, and the next run, find what one has compiled; with a limit
# of its size JAX takes a lock, so that nobody reads what is half written.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ |= {
    'JAX_COMPILATION_CACHE_DIR': str(
      pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'programs'
    ),
    'JAX_COMPILATION_CACHE_MAX_SIZE': str(4 << 30),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  }

# A row plus a matrix is more often a fault than meant; code says its axes.
os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'raise')

import pytest


def pytest_addoption(parser):
  parser.addoption(
    '--slow', action='store_true', help='run the tests marked slow, too'
  )


def pytest_collection_modifyitems(config, items):
  if config.getoption('--slow'):
    return
  skip = pytest.mark.skip(reason='slow: run with --slow')
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(skip)


def pytest_configure(config):
  from fedms_jax.core import compile  # lazy: it starts JAX

  compile.leave_to_xla()


@pytest.fixture(autouse=True, scope='module')
def room():
  """A process that runs many files would end of too many compiled programs."""
  yield
  from fedms_jax.cluster import memory  # lazy: it starts JAX

  memory.make_room(0.2)
