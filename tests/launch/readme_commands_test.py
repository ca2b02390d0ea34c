"""What launch/README.md tells a reader to type is what the launchers take."""

import importlib
import re
import shlex

import pytest

from fedms_jax.launch import command
from fedms_jax.shell import main
from fedms_jax.shell.commands import launch
from tests.launch import runs

README = (runs.ROOT / 'launch' / 'README.md').read_text()
PRESETS = sorted((runs.ROOT / 'launch' / 'presets').iterdir())


def commands():
  """The commands of the code blocks that start a launcher."""
  text = README.replace('\\\n', ' ')
  return re.findall(r'^    fedms launch (\w+ .*)$', text, re.MULTILINE)


@pytest.mark.parametrize('line', commands())
def test_a_command_is_taken(line, monkeypatch, capsys):
  monkeypatch.chdir(runs.ROOT)
  name, *words = shlex.split(line)
  launcher = importlib.import_module(f'fedms_jax.launch.{name}')
  own, flags = command.split(words)
  options = launcher._parser().parse_args(own)
  command.check(flags)
  if flags and 'dry_run' in options:
    assert launcher.main([*own, '--dry_run', '--', *flags]) == 0
    assert 'fedms_jax' in capsys.readouterr().out


def test_there_are_commands_of_all_launchers():
  found = {line.split()[0] for line in commands()}
  names = ('local', 'slurm', 'kubernetes', 'sweep')
  assert found == set(names) == set(launch.LAUNCHERS)


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_taken_and_listed(path):
  command.check([f'--flagfile={path}'])
  assert f'\n| `{path.stem}` | ' in README


def test_the_command_starts_the_launcher(tmp_path, capsys):
  words = ['--dry_run', '--', f'--workdir={tmp_path}', '--preset=smoke']
  assert main.main(['fedms', 'launch', 'slurm', *words]) == 0
  assert '#SBATCH' in capsys.readouterr().out
  assert main.main(['fedms', 'launch', 'slrum', *words]) == 2
  assert "'slrum' is no launcher" in capsys.readouterr().err
  assert main.main(['fedms', 'launch']) == 0
  assert all(name in capsys.readouterr().out for name in ('slurm',))


def test_a_checkout_s_names_are_the_same_launchers():
  one = importlib.import_module('launch.slurm')
  other = importlib.import_module('fedms_jax.launch.slurm')
  assert one.__file__ == other.__file__
