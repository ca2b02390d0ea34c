"""Plugins of one test alone."""

import contextlib
import sys

from fedms_jax.shell import catalog, plugins


@contextlib.contextmanager
def fresh():
  """What is added inside is gone afterwards, and so are its modules."""
  held = (plugins._found, plugins._modules, catalog.PLUGINS)
  kept = [dict(x) for x in held]
  options, path = catalog.Options.type, list(sys.path)
  modules = set(sys.modules)
  plugins._declared.cache_clear()
  try:
    yield
  finally:
    for now, before in zip(held, kept, strict=True):
      now.clear()
      now.update(before)
    catalog.Options.type, sys.path[:] = options, path
    for name in set(sys.modules) - modules:
      if '/pytest-' in str(getattr(sys.modules[name], '__file__', '')):
        del sys.modules[name]
    plugins._declared.cache_clear()
