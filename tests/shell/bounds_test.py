"""Numbers that no run could hold are refused in one line, before anything."""

import os
import warnings

import jax
import numpy as np
import pytest

from fedms_jax.cluster import memory
from fedms_jax.core import seeds
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Table
from fedms_jax.data.names import DataWarning
from fedms_jax.shell import (
  aggregators,
  config,
  dealing,
  flags,
  foundation,
  main,
  said,
  sizes,
  world,
)
from fedms_jax.systems.units import in_bytes
from tests import folders
from tests import world as toy

HUGE = 10**12
NUMBERS = {
  name: field
  for name, field in config.flatten(config.Config).items()
  if type(field.default) in (int, float)
}


def refused(capsys, *words):
  assert main.main(['fedms', '--noprogress', *words]) == 2
  text = capsys.readouterr().err
  assert text.startswith('fedms: ') and text.count('\n') == 1, text
  return text


@pytest.mark.parametrize('name', NUMBERS)
def test_every_number_that_has_a_bound_keeps_it(name, capsys):
  rule = NUMBERS[name].metadata
  for key, step in (('low', -1), ('high', 1)):
    if rule[key] is not None:
      text = refused(
        capsys, f'--{name}={rule[key] + step * max(1, abs(rule[key]) // 2)}'
      )
      assert f'--{name}=' in text and f'{rule[key]}' in text


@pytest.mark.parametrize('flag', [
  'seed', 'data.image_size', 'data.synthetic_rows', 'data.synthetic_classes',
  'data.max_tokens', 'model.width', 'model.heads', 'model.blocks',
  'model.mlp_ratio', 'model.patch', 'pretrain.batch_size', 'prompt.length',
  'client.batch_size', 'client.epochs', 'client.steps', 'lora.rank',
  'columns.batch', 'engine.chunk', 'engine.unroll', 'partition.num_clients',
])  # fmt: skip
@pytest.mark.parametrize('value', [HUGE**2, 2**63])
def test_numbers_that_would_fill_the_memory_are_out_of_bounds(
  flag, value, capsys
):
  assert f'--{flag}=' in refused(capsys, f'--{flag}={value}')


@pytest.mark.parametrize('ratio', ['1e-300', '1e300', '1e308', '5e-324'])
def test_an_mlp_without_a_width_is_refused(ratio, capsys):
  assert '--model.mlp_ratio=' in refused(
    capsys, f'--model.mlp_ratio={ratio}', '--data.max_rows=400'
  )


@pytest.mark.parametrize('words', [
  ('--schedule.budgets=,',),
  ('--schedule=manual', '--schedule.depths= , '),
  ('--algorithm.name=flexlora', '--lora.ranks=,,'),
])  # fmt: skip
def test_a_list_of_nothing_is_no_list(words, capsys):
  small = ('--pretrain.mode=none', '--data.public_fraction=0')
  text = refused(capsys, *small, *words)
  assert words[-1].split('=')[0] in text and 'is no list' in text


@pytest.mark.parametrize('classes', ['0', '-1', str(HUGE)])
def test_a_plan_has_a_number_of_classes(classes, capsys):
  assert main.main(['fedms', 'plan', f'--classes={classes}']) == 2
  assert f'--classes={classes} is not allowed' in capsys.readouterr().err


def test_prompts_that_say_nothing_are_warned_of(tmp_path):
  folders.checkpoint(tmp_path, 'clip')
  small = ('--prompt.length=2', '--model.head=zero_shot')
  zero_shot = parsed(f'--model.name={tmp_path}', *small)
  found = foundation.find(zero_shot.model)
  assert found is not None
  with pytest.warns(DataWarning, match='classes are numbers.*photo of a 3'):
    foundation._class_features(
      zero_shot.model, zero_shot.data, ('3', '7'), found
    )
  with pytest.warns(DataWarning, match="'ball' and 'ball' have the same"):
    foundation.class_tokens(zero_shot.prompt, ('ball', 'ball'), found)


@pytest.mark.filterwarnings('default::UserWarning')
def test_warnings_of_the_data_are_the_commands_own_words(monkeypatch, capsys):
  others = []
  monkeypatch.setattr(warnings, 'showwarning', lambda *a, **k: others.append(a))
  with warnings.catch_warnings():
    said.own_process()
    for kind in (DataWarning, UserWarning):
      warnings.warn('look at `min_rows`', kind, stacklevel=1)
  shown = 'fedms: warning: look at --partition.min_rows\n'
  assert capsys.readouterr().err == shown
  assert len(others) == 1


def test_a_world_is_looked_at_before_it_is_run(tmp_path):
  folders.checkpoint(tmp_path, 'gpt2')
  folders.texts(tmp_path / 'data')
  words = (
    f'--model.name={tmp_path}', '--model.head=causal_lm',
    f'--data.source={tmp_path}/data', '--data.train_split=test',
    '--data.input_column=answer', '--algorithm.name=fedit',
    '--partition.num_clients=3', '--partition.unseen_clients=0',
    '--cohort.size=2', '--data.public_fraction=0',
  )  # fmt: skip
  with pytest.warns(DataWarning, match='test rows .* that somebody trains on'):
    world.world(parsed(*words))


def test_images_are_not_packed(capsys):
  assert '--data.pack is for texts' in refused(capsys, '--data.pack')


def parsed(*words):
  return flags.parse(['fedms', *words])


def check_flags(*words):
  c = parsed(*words)
  sizes.check_flags(c.data, c.model, c.client)


def check_steps(model, *words):
  c = parsed(*words)
  sizes.check_steps(c.client, c.pretrain, c.model, model)


LARGE = [
  ('--data.source=synthetic', '--data.synthetic_rows=100000000'),
  ('--data.source=synthetic', '--data.image_size=4096'),
  ('--data.source=synthetic', '--data.synthetic_classes=1000000'),
  ('--data.image_size=4096',),
  ('--data.image_size=4000', '--data.max_rows=2', '--model.patch=1'),
  ('--model.width=65536',),
  ('--model.mlp_ratio=100', '--model.width=8192'),
]


@pytest.mark.parametrize('words', LARGE)
def test_what_does_not_fit_is_refused_before_it_is_made(words, monkeypatch):
  monkeypatch.setattr(memory, 'host', lambda: 1e8)
  monkeypatch.setattr(
    dealing, 'federation', lambda *_, **__: pytest.fail('was made')
  )
  with pytest.raises(ValueError, match='memory and more; 100 MB are free'):
    world.world(parsed(*words))


def test_what_fits_is_not_refused(monkeypatch):
  free = 1797 * 64.0
  monkeypatch.setattr(memory, 'host', lambda: free)
  check_flags('--model.width=4', '--model.blocks=1')
  monkeypatch.setattr(memory, 'host', lambda: free - 1)
  with pytest.raises(ValueError, match='1797 images of --data.image_size=8'):
    check_flags('--model.width=4', '--model.blocks=1')


def test_rows_are_weighed_by_their_shapes(monkeypatch):
  table = Table({'inputs': np.zeros((10, 5, 5, 3), np.uint8)}, ())
  monkeypatch.setattr(memory, 'host', lambda: 750.0)
  sizes.check_table(table)
  monkeypatch.setattr(memory, 'host', lambda: 749.0)
  with pytest.raises(ValueError, match="10 rows of 'inputs', 5 x 5 x 3 each"):
    sizes.check_table(table)


@pytest.mark.parametrize('flag', ['client.batch_size', 'pretrain.batch_size'])
def test_batches_are_weighed_by_what_a_block_keeps(flag, monkeypatch):
  model = toy.backbone()
  words = ['--client.batch_size=1', '--pretrain.batch_size=1', f'--{flag}=50']
  monkeypatch.setattr(memory, 'host', lambda: 50 * model.cost.activation)
  check_steps(model, *words)
  monkeypatch.setattr(memory, 'host', lambda: 49 * model.cost.activation)
  text = in_bytes(model.cost.activation)
  with pytest.raises(ValueError, match=f'--{flag}=50, {text} each'):
    check_steps(model, *words)
  if flag == 'pretrain.batch_size':
    check_steps(model, *words, '--pretrain.mode=probe')


def test_seeds_of_all_sizes_differ():
  """JAX keeps the low word alone."""
  found = [0, 1, 2**31, 2**32, 2**32 + 1, 2**33, 2**63 - 1]
  for path in ((Stream.INIT,), (Stream.CLIENT, 3, 1)):
    keys = {
      tuple(jax.random.key_data(seeds.stream(seed, *path)).tolist())
      for seed in found
    }
    assert len(keys) == len(found)


def test_seeds_of_one_word_are_what_they_were():
  for seed in (0, 7, 2**32 - 1):
    np.testing.assert_array_equal(
      jax.random.key_data(seeds.stream(seed, Stream.INIT)),
      jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 0)),
    )


@pytest.mark.parametrize(
  ('size', 'trim', 'said'),
  [
    (2, 0.2, 'cohort.size to 5.'),
    (1, 0.49, 'cohort.size to 3.'),
    (4, 0.2, 'cohort.size to 5 or --server.trim to 0.25.'),
    (3, 0.1, 'cohort.size to 10 or --server.trim to 0.33.'),
  ],
)
def test_advice_on_a_small_cohort_can_be_followed(size, trim, said):
  words = ('--server.aggregator=trimmed_mean', f'--server.trim={trim}')
  with pytest.raises(ValueError) as error:
    aggregators.aggregator(parsed(*words, f'--cohort.size={size}'))
  assert str(error.value).endswith(said)
  enough = said.split()[2].rstrip('.')
  aggregators.aggregator(parsed(*words, f'--cohort.size={enough}'))


@pytest.mark.parametrize('content', [b'\xff\xfe\0', b'--seed=1\n\x80'])
def test_a_flag_file_that_is_no_text_is_named(content, tmp_path, capsys):
  (tmp_path / 'x.flags').write_bytes(content)
  text = refused(capsys, f'--flagfile={tmp_path}/x.flags')
  assert 'x.flags is no file of text' in text
  os.makedirs(tmp_path / 'run')
  (tmp_path / 'run' / 'flags.txt').write_bytes(content)
  assert main.main(['fedms', 'eval', f'--workdir={tmp_path}/run']) == 2
  assert 'flags.txt is no file of text' in capsys.readouterr().err
