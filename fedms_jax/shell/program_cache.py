"""Where compiled programs are kept from one command to the next."""

from __future__ import annotations

import os
import pathlib

import jax

from fedms_jax.core import compile

CACHE_BYTES = 4 << 30  # of compiled programs, in the user's cache folder
_CACHE = 'jax_compilation_cache_dir'


def begin() -> None:
  """Keeps compiled programs in the user's cache folder, unless told where; a
  level of optimization that the user has given to XLA stays."""
  if 'xla_backend_optimization_level' in os.environ.get('XLA_FLAGS', ''):
    compile.leave_to_xla()
  if getattr(jax.config, _CACHE) is None:  # no attribute that types know of
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(root) / 'fedms_jax' / 'programs'
    jax.config.update(_CACHE, str(folder))
    # With a limit JAX takes a lock, too: without, a process may read what
    # another one has half written.
    jax.config.update('jax_compilation_cache_max_size', CACHE_BYTES)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
