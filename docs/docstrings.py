"""Docstrings as Markdown, for the reference (an extension of griffe)."""

from __future__ import annotations

import pathlib
import sys

import griffe


class Docstrings(griffe.Extension):
  """Lets docstrings be read as the plain texts that they are."""

  def on_instance(self, *, obj, **kwargs) -> None:
    del kwargs
    here = str(pathlib.Path(__file__).parent)
    if here not in sys.path:
      sys.path.insert(0, here)
    import generated

    if obj.docstring:
      obj.docstring.value = generated.as_markdown(obj.docstring.value)
