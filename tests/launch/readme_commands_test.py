"""What launch/README.md tells a reader to type is what the launchers take."""

import importlib
import re
import shlex

import pytest

from launch import command
from tests.launch import runs

README = (runs.ROOT / 'launch' / 'README.md').read_text()
PRESETS = sorted((runs.ROOT / 'launch' / 'presets').iterdir())


def commands():
  """The commands of the code blocks that start a launcher."""
  text = README.replace('\\\n', ' ')
  return re.findall(r'^    python -m (launch\.\w+ .*)$', text, re.MULTILINE)


@pytest.mark.parametrize('line', commands())
def test_a_command_is_taken(line, monkeypatch, capsys):
  monkeypatch.chdir(runs.ROOT)
  name, *words = shlex.split(line)
  launcher = importlib.import_module(name)
  own, flags = command.split(words)
  options = launcher._parser().parse_args(own)
  command.check(flags)
  if flags and 'dry_run' in options:
    assert launcher.main([*own, '--dry_run', '--', *flags]) == 0
    assert 'fedms_jax' in capsys.readouterr().out


def test_there_are_commands_of_all_launchers():
  found = {line.split()[0] for line in commands()}
  names = ('local', 'slurm', 'kubernetes', 'sweep')
  assert found == {f'launch.{name}' for name in names}


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_taken_and_listed(path):
  command.check([f'--flagfile={path}'])
  assert f'\n| `{path.stem}` | ' in README
