"""Every preset in `launch/presets` is one that a run can start from."""

import pathlib

import pytest

from fedms_jax.shell import catalog, flags
from fedms_jax.shell import world as worlds

FOLDER = pathlib.Path(__file__).parents[2] / 'launch' / 'presets'
PRESETS = sorted(FOLDER.glob('*.flags'))
# These name data or a model that is not here.
EXTERNAL = {
  'agnews_fewshot', 'agnews_minilm', 'cifar10', 'clip_vit_b16', 'diloco',
  'photon', 'maxtext',
}  # fmt: skip
SMALL = FOLDER / 'smoke.flags'


def of(path, *words):
  return flags.parse(['fedms', *words, f'--flagfile={path}'])


def test_a_preset_is_given_by_name_where_its_file_would_be():
  for words in (['--preset=smoke'], ['--preset', 'smoke']):
    assert flags.parse(['fedms', *words]) == of(SMALL)
  after = flags.parse(['fedms', '--preset=smoke', '--cohort.size=2'])
  assert after.cohort.size == 2
  before = flags.parse(['fedms', '--cohort.size=2', '--preset=smoke'])
  assert before.cohort.size == of(SMALL).cohort.size == 3


def test_a_preset_that_is_none_is_refused_with_those_that_are():
  for word in ('smok', '../presets/smoke', ''):
    with pytest.raises(ValueError, match='Presets: .*smoke'):
      flags.parse(['fedms', f'--preset={word}'])


def test_the_checkout_s_folder_is_the_package_s():
  assert FOLDER.samefile(flags.PRESETS)


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_written_in_today_s_names_and_says_something(path):
  config = of(path)
  assert config != flags.parse(['fedms']) or path.stem == 'digits'
  catalog.find(config.algorithm.name)
  words = path.read_text().splitlines()
  names = [w[2:].partition('=')[0] for w in words if w.startswith('--')]
  assert names and not set(names) & set(flags.ALIASES)


@pytest.mark.parametrize(
  'path', [p for p in PRESETS if p.stem not in EXTERNAL], ids=lambda p: p.stem
)
def test_the_world_of_a_preset_on_embedded_data_is_built(path):
  """Ablations are given after the flags of a run: here, of a small one."""
  # A pipeline has no epochs of the server's.
  more = ['--pretrain.epochs=30'] if path.stem == 'pretraining' else []
  config = of(path, f'--flagfile={SMALL}', *more)
  world = worlds.world(config)
  without = config.algorithm.name != 'fedms' or 'no_stage2' in path.stem
  before = ['server-1', 'federated', 'server-2'] if config.stages else []
  if config.tasks.on:
    count = config.tasks.count
    assert [s.name for s in world.stages] == [
      f'global-{i + 1}' for i in range(count)
    ]
    return
  assert [stage.name for stage in world.stages] == before + (
    ['global'] if without else ['global', 'personal']
  )
  assert world.data.train.num_clients == config.partition.num_clients
