"""Below the shell messages name arguments, and the command shows flags."""

import ast
import pathlib
import re

import numpy as np
import pytest

from fedms_jax.data import partition
from fedms_jax.shell import arguments, config, flags, main
from fedms_jax.shell.commands import COMMANDS

ROOT = pathlib.Path(arguments.__file__).parents[1]
BELOW = [
  path
  for path in sorted(ROOT.rglob('*.py'))
  if path.relative_to(ROOT).parts[0] not in ('shell', 'launch', '__main__.py')
]
NAMES = {*config.flatten(config.Config), *flags.ALIASES, 'flagfile', 'help'}


def texts(node):
  """Every string in a piece of code, the parts of f-strings included."""
  for inner in ast.walk(node):
    if isinstance(inner, ast.Constant):
      if isinstance(inner.value, bytes):
        yield inner.value.decode(errors='replace')
      elif isinstance(inner.value, str):
        yield inner.value


def sections_and_names():
  """What may follow `--`: names, sections, and names of switches turned off."""
  return (
    NAMES | {n.partition('.')[0] for n in NAMES} | {f'no{n}' for n in NAMES}
  )


@pytest.mark.parametrize('path', BELOW, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_below_the_shell_prints_a_flag(path):
  known = sections_and_names()
  for text in texts(ast.parse(path.read_text())):
    for name in re.findall(r'(?<![\w-])--([a-z][\w.]*)', text):
      # Custom properties of style sheets look alike.
      assert name.split('.')[0] not in known or path.name == 'style.py', text


def test_every_quoted_name_in_a_message_is_an_argument_with_a_flag():
  """And every one in the table is in some message."""
  raised, said = {}, set()
  for path in BELOW:
    code = ast.parse(path.read_text())
    said |= {n for t in texts(code) for n in arguments.QUOTED.findall(t)}
    for node in ast.walk(code):
      if isinstance(node, ast.Raise):
        for text in texts(node):
          for name in arguments.QUOTED.findall(text):
            raised.setdefault(name, path)
  functions = {'save_pretrained', 'foundation.text_tower'}
  unknown = {n: p for n, p in raised.items() if n not in arguments.FLAGS}
  assert set(unknown) <= functions, unknown
  # These are put together: `{flag}`, `{name}_split`, `{column}_column`.
  made = {'image_size', 'revision', 'subset', 'label_column', 'target_column'}
  assert set(arguments.FLAGS) <= said | made
  extra = {name for c in COMMANDS.values() for name in c.extra}
  flags = set(config.flatten(config.Config)) | extra
  assert set(arguments.FLAGS.values()) <= flags


def test_arguments_become_flags_and_nothing_else_changes():
  before = "`num_clients`=3 and `x`, `Spec.targets`[0]='a`seed', num_clients."
  assert arguments.in_flags(before) == (
    "--partition.num_clients=3 and `x`, --lora.targets[0]='a`seed', "
    'num_clients.'
  )


def test_the_command_shows_flags_and_the_library_arguments(capsys):
  small = ROOT.parent / 'launch' / 'presets' / 'smoke.flags'
  words = ['fedms', f'--flagfile={small}', '--noprogress']
  assert main.main([*words, '--partition.min_rows=400']) == 2
  said = capsys.readouterr().err
  assert '--partition.min_rows' in said and '`' not in said
  with pytest.raises(ValueError, match='`min_rows`') as error:
    labels, rows = np.zeros(9, np.int32), np.arange(9)
    partition.deal('iid', labels, rows, num_clients=4, seed=0, min_rows=400)
  assert '--' not in str(error.value)
