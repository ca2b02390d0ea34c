"""`fedms list` names everything that can be chosen, and nothing else."""

import pathlib

from fedms_jax.models import pretrained
from fedms_jax.shell import catalog, config, flags, main
from fedms_jax.shell.commands import listing
from fedms_jax.shell.config.model import SCRATCH


def choices(name):
  return set(config.flatten(config.Config)[name].metadata['choices'])


def test_the_lists_are_those_of_the_flags():
  assert set(listing.SCHEDULES) == choices('schedule.name')
  assert set(listing.ORDERS) == choices('schedule.order')
  assert {'', *listing.PARTITIONS} == choices('partition.name')
  named = {n for names in listing.MODELS for n in names.split(', ')}
  assert named == set(pretrained.FAMILIES)
  assert set(listing.NEW_MODELS) == set(SCRATCH)


def test_every_algorithm_is_printed_with_its_line_and_paper(capsys):
  assert main.main(['fedms', 'list']) == 0
  text = ' '.join(capsys.readouterr().out.split())
  for name, method in catalog.METHODS.items():
    assert f'{name} {method.summary}' in text
    assert method.paper in text
  for path in flags.PRESETS.glob('*.flags'):
    assert path.stem in text


def test_a_preset_is_told_by_its_first_sentence(tmp_path):
  (tmp_path / 'b.flags').write_text('# One. Two.\n--seed=1\n')
  (tmp_path / 'a.flags').write_text('# More\n# words\n# than one line.\n')
  found = listing.presets(pathlib.Path(tmp_path))
  assert found == {'a': ('More words than one line', '-'), 'b': ('One', '-')}
