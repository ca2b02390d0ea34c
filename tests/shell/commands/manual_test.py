"""Help is found by the page, and completion by the shell."""

import shutil
import subprocess
import sys

import pytest

from fedms_jax.shell import catalog, commands, config, flags, main, manual
from fedms_jax.shell.commands import completion, listing


def shown(capsys, *words):
  assert main.main(['fedms', *words]) == 0
  return capsys.readouterr().out


def test_every_command_shows_its_own_flags_before_the_shared_groups(capsys):
  for name, command in commands.COMMANDS.items():
    text = manual.of_command(name)
    assert text.startswith(f'fedms {name}') and command.help in text
    groups = text.index('by group')
    for flag in command.extra:
      assert text.index(f'--{flag}=') < groups
    for flag in command.flags:
      assert f'  --{flag}=' in text[:groups] or f'\n  {flag} ' in text[groups:]
    if not command.own_help:
      assert shown(capsys, name, '--help') == text + '\n'
      assert shown(capsys, name, '-h', '--seed=1') == text + '\n'
    assert shown(capsys, 'help', name) == text + '\n'


def test_the_groups_together_are_all_flags(capsys):
  found = []
  for name in [*manual.groups(), *catalog.METHODS]:
    text = shown(capsys, f'--help={name}')
    found += [line.split('=')[0].strip('- ') for line in text.splitlines()
              if line.startswith('  --')]  # fmt: skip
  assert sorted(found) == sorted(config.flatten(config.Config))
  assert set(manual.groups()) <= set(manual._ABOUT)


def test_a_method_without_options_has_a_page():
  assert catalog.METHODS['fedit'].options is None
  text = manual.page('fedit')
  assert catalog.METHODS['fedit'].paper in text and '--fedit.' not in text


def test_help_on_nothing_is_one_line_that_names_what_is_near(capsys):
  assert main.main(['fedms', 'help', 'lorra']) == 2
  text = capsys.readouterr().err
  assert 'lora' in text.split('Did you mean')[1] and text.count('\n') == 1
  assert main.main(['fedms', '--help=nothing']) == 2
  assert main.main(['fedms', 'help', 'lora', 'gate']) == 2
  assert 'more than one word' in capsys.readouterr().err.splitlines()[1]


def test_help_is_asked_for_in_any_place_and_not_by_mistake():
  assert manual.asked('', ['fedms', '--seed=1']) is None
  assert manual.asked('', ['fedms', '--seed=1', '-h']) == manual.overview()
  assert manual.asked('', ['fedms', '--help']) == flags.help_text({})
  assert manual.asked('plan', ['fedms', '--helpfull']) == flags.help_text({})
  assert manual.asked('', ['fedms', '--help=gate']) == manual.group('gate')


def test_help_needs_nothing_heavy():
  code = (
    'import sys\nfrom fedms_jax.shell import main\n'
    'for words in (["help"], ["plan", "-h"], ["--help=lora"], ["--help"]):\n'
    '  assert main.main(["fedms", *words]) == 0\n'
    'assert not {"jax", "flax", "numpy"} & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)


def test_one_list_is_that_part_of_all(capsys):
  whole = shown(capsys, 'list')
  for name in ('algorithms', 'schedules', 'models', 'presets'):
    part = shown(capsys, 'list', name)
    assert len(part) < len(whole) / 2
    assert all(line in whole for line in part.splitlines())
  assert 'random weights' in listing.text('models')
  assert main.main(['fedms', 'list', 'nothing']) == 2
  assert 'Lists: algorithms' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    ('fedms pl', ['plan']),
    ('fedms --lora.ra', ['--lora.rank=', '--lora.ranks=']),
    ('fedms --schedule=gee', []),
    ('fedms --schedule=ge', ['geometric']),
    ('fedms --seed=1 --algorithm.name=fedpr', ['fedprox']),
    ('fedms export --wh', ['--what=']),
    ('fedms --progress=', ['true', 'false']),
  ],
)
def test_bash_completes_what_is_typed(line, expected, tmp_path):
  (tmp_path / 'script').write_text(completion.bash())
  words = line.split(' ')
  # As bash does: a flag is three words, about its equals sign.
  number = len(words) - 1 + line.count('=') * 2
  code = (
    f'source {tmp_path}/script\nCOMP_LINE={line!r}\n'
    f'COMP_POINT=${{#COMP_LINE}} COMP_CWORD={number}\ncompopt() {{ :; }}\n'
    '_fedms\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
  )
  done = subprocess.run(
    ['bash', '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stderr == ''
  assert done.stdout.split() == expected


def test_the_other_shells_know_the_same_names():
  for script in (completion.zsh(), completion.fish()):
    for name in (*commands.COMMANDS, *catalog.METHODS, 'lora.rank'):
      assert name in script
  if shutil.which('zsh'):
    subprocess.run(['zsh', '-n'], input=completion.zsh(), text=True, check=True)


def test_a_shell_that_is_none_is_refused(capsys):
  assert main.main(['fedms', 'completion', 'cmd.exe']) == 2
  assert 'allowed: bash, zsh, fish' in capsys.readouterr().err
