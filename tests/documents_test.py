"""What the pages say of the code is so."""

import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest

from fedms_jax.launch import command
from fedms_jax.shell import commands, config, flags, manual
from fedms_jax.shell.commands import launch
from tests import layering_test

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = layering_test.ROOT
PAGES = {
  name: (ROOT / name).read_text()
  for name in ('BUILD.md', 'README.md', 'launch/README.md')
}
PAGES |= {
  str(path.relative_to(ROOT)): path.read_text()
  for path in sorted((ROOT / 'docs').rglob('*.md'))
}
BUILD = PAGES['BUILD.md']
LAUNCHERS = ('local', 'slurm', 'kubernetes', 'sweep')
# Of other programs, where launch/README.md speaks of them.
FOREIGN = {
  'command', 'flagfile', 'help', 'mem', 'preset', 'signal', 'slow', 'worker'
}  # fmt: skip


def section(title: str) -> str:
  return BUILD.split(f'\n## {title}\n')[1].split('\n## ')[0]


def quoted(text: str) -> list[str]:
  """What stands in backticks, on one line or broken over two."""
  text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
  return [' '.join(x.split()) for x in re.findall(r'`([^`]+)`', text)]


def test_the_reader_s_order_stays_short():
  paths = [PACKAGE / name for name in quoted(section("A reader's order"))]
  assert len(paths) == 5
  assert sum(len(path.read_text().splitlines()) for path in paths) < 1200


def test_the_rooms_are_those_of_the_code():
  rows = re.findall(
    r'^\| `(\w+)/` \|.*\| ([^|]*) \|$', section('Rooms'), re.MULTILINE
  )
  found = {room: set(re.findall(r'\w+', allowed)) for room, allowed in rows}
  assert found == layering_test.ROOMS | {
    'shell': {'all'},
    'launch': {'all'},
  }


@pytest.mark.parametrize('page', PAGES)
def test_files_and_tests_that_a_page_names_are_there(page):
  named = re.compile(r'((?:[\w.]+/)+(?:\w+\.(?:py|md|flags))?)(?:::(\w+))?')
  for text in quoted(PAGES[page]):
    match = named.fullmatch(text)
    # Elsewhere folders may be those of a run.
    if match is None or (page != 'BUILD.md' and text.endswith('/')):
      continue
    found = [x for x in (ROOT, PACKAGE, ROOT / 'launch')
             if (x / match[1]).exists()]  # fmt: skip
    assert found, text
    if match[2]:
      assert f'\ndef {match[2]}(' in (found[0] / match[1]).read_text(), text


def test_names_of_the_code_that_the_page_on_building_uses_are_there():
  """`module.name`, `Type.field`, or a type alone."""
  texts = {path: path.read_text() for path in PACKAGE.rglob('*.py')}
  names = re.compile(r'(?:(\w+)\.)?(\w+)')
  made = r'^(?:(?:  |)(?:class|def) {0}\b|{0}\b *[:=]|  {0}: )'
  checked = 0
  for text in quoted(BUILD):
    match = names.fullmatch(text)
    if match is None or not (match[1] or match[2][0].isupper()):
      continue
    owner, name = match.groups()
    checked += 1
    assert any(
      re.search(made.format(name), code, re.MULTILINE)
      for path, code in texts.items()
      if owner is None
      or owner.lower() in (path.stem, path.parent.name)
      or re.search(rf'^class {owner}\b', code, re.MULTILINE)
    ), text
  assert checked > 30


def typed(text: str) -> list[str]:
  """The lines of a page's shell blocks, without what is said of them."""
  blocks = re.findall(r'^```sh\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
  return [line.split(' #')[0].strip() for b in blocks for line in b.split('\n')]


def lines_of_fedms():
  """Every command `fedms ...` of a page, with something for each blank."""
  for page, text in PAGES.items():
    for line in [*quoted(text), *typed(text)]:
      if re.match(r'fedms (?!_)', line) or line == 'fedms':
        line = re.sub(r'=(<[^>]*>|…|\$\w+)', '=1', line)
        yield pytest.param(re.sub(r'<[^>]*>|…', '', line), id=f'{page}: {line}')


@pytest.mark.parametrize('line', list(lines_of_fedms()))
def test_a_command_is_taken(line, monkeypatch):
  monkeypatch.chdir(ROOT)
  name, words = commands.split(shlex.split(line))
  words = [w for w in words if not w.startswith('--flagfile=runs/')]
  if manual.asked(name, words):
    return
  if name == 'launch':  # its options are read in tests/launch
    assert set(words[1:2]) <= set(launch.LAUNCHERS)
  elif name:
    if commands.COMMANDS[name].words:
      _, words = commands.topic(words)
    flags.parse_command(words, commands.COMMANDS[name].extra)
  else:
    command.check(words[1:])


def test_every_command_has_an_example():
  lines = [param.values[0].split() for param in lines_of_fedms()]
  assert set(commands.COMMANDS) <= {words[1] for words in lines if words[1:]}
  assert sum(len(words) > 1 for words in lines) > 30


def test_modules_that_are_started_are_there():
  for page, text in PAGES.items():
    found = re.findall(r'python -m ([\w.]*\w)', text)
    assert found or page == 'BUILD.md' or page.startswith('docs/')
    for name in found:
      where = importlib.util.find_spec(name)
      assert where is not None, (page, name)
      if where.submodule_search_locations:
        assert importlib.util.find_spec(f'{name}.__main__'), (page, name)


def test_flags_of_the_page_on_launching_exist():
  known = set(config.flatten(config.Config)) | set(flags.ALIASES) | FOREIGN
  for name in LAUNCHERS:
    parser = importlib.import_module(f'fedms_jax.launch.{name}')._parser()
    known |= {o.lstrip('-') for o in parser._option_string_actions}
  page = PAGES['launch/README.md']
  found = set(re.findall(r'(?<![\w-])--([a-z][\w.]*)', page))
  assert found <= known, found - known
