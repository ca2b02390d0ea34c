"""What the documentation makes of the code while it is built (MkDocs)."""

from __future__ import annotations

import pathlib
import sys

from mkdocs.structure.files import File

HERE = pathlib.Path(__file__).parent
METHODS = '<!-- methods -->'


def _generated():
  """The module beside this one; neither it nor the package need be installed
  (MkDocs takes back what a hook does to the path while it is loaded)."""
  for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
      sys.path.insert(0, str(folder))
  import generated

  return generated


def on_config(config):
  """Puts the pages of the rooms into the navigation."""
  rooms = [f'reference/{room}.md' for room in _generated().rooms()]
  for entry in config.nav:
    if isinstance(entry, dict) and 'Reference' in entry:
      entry['Reference'] = [entry['Reference'], *rooms]
  return config


def on_files(files, config):
  """Adds the pages of the reference."""
  generated = _generated()
  pages = {room: generated.reference(room) for room in generated.rooms()}
  pages['index'] = generated.reference_index()
  for name, text in pages.items():
    uri = f'reference/{name}.md'
    files.append(File.generated(config, uri, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Puts the table of methods where its mark stands."""
  if METHODS in markdown:
    return markdown.replace(METHODS, _generated().methods())
  return markdown
