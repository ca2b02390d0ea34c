"""Flags and the config dataclasses say the same, in both directions."""

import random
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from fedms_jax.shell import config as config_lib
from fedms_jax.shell import flags


def parse(*words):
  return flags.parse(['fedms', *words])


def parse_text(text, tmp_path, *words):
  path = tmp_path / 'flags.txt'
  path.write_text(text)
  return parse(f'--flagfile={path}', *words)


def any_value(name, field, rng):
  """Some value that the field allows, of the field's type."""
  default, rule = field.default, field.metadata
  if isinstance(default, bool):
    return rng.random() < 0.5
  if rule['choices']:
    return rng.choice(rule['choices'])
  if isinstance(default, str):
    return rng.choice(['', 'a b=c', '--seed=3', '#no comment', '\'"', 'ü'])
  low = rule['low'] if rule['low'] is not None else rule['above'] or 0
  if isinstance(default, int):
    return low + rng.randrange(10**6)
  return low + (1e-9 + rng.random()) * ((rule['high'] or 1.0) - low) * 0.3


def any_config(seed):
  rng = random.Random(seed)
  flat = {
    name: any_value(name, field, rng)
    for name, field in config_lib.flatten(config_lib.Config).items()
    if name not in flags.PER_COMMAND
  }
  flat['cohort.size'] = 1 + flat['partition.num_clients'] // 2
  return config_lib.from_values(flat)


def test_no_flags_is_the_default_config():
  assert parse() == config_lib.Config()


@pytest.mark.parametrize('seed', range(10))
def test_text_of_a_config_parses_to_an_equal_config(seed, tmp_path):
  config = any_config(seed)
  assert parse_text(flags.to_text(config), tmp_path) == config


def test_text_overrides_every_flag_given_before(tmp_path):
  # Options at their default are in the text too, empty ones included.
  text = flags.to_text(config_lib.Config())
  path = tmp_path / 'flags.txt'
  path.write_text(text)
  words = ('--data.subset=x', '--schedule=dense', '--client.momentum=0.1')
  assert parse(*words) != config_lib.Config()
  assert parse(*words, f'--flagfile={path}') == config_lib.Config()


def test_text_leaves_out_what_only_one_command_needs(tmp_path):
  config = config_lib.Config(workdir='w', resume=True, break_lock=True, seed=4)
  assert parse_text(flags.to_text(config), tmp_path) == config_lib.Config(
    seed=4
  )


def test_text_keeps_the_order_of_declaration():
  names = [
    line[2:].partition('=')[0]
    for line in flags.to_text(config_lib.Config()).splitlines()
  ]
  declared = list(config_lib.flatten(config_lib.Config))
  assert names == [n for n in declared if n not in flags.PER_COMMAND]


@pytest.mark.parametrize('value', ['two\nlines', ' space', 'space ', 'a\x85b'])
def test_text_that_no_flag_file_can_hold_is_refused(value):
  config = config_lib.Config(data=config_lib.DataConfig(source=value))
  with pytest.raises(ValueError, match='--data.source'):
    flags.to_text(config)


def test_alias_bool_forms_and_the_last_one_counts():
  config = parse(
    '--schedule=dense', '--resume', '--noprogress', '--seed=1', '--seed=2'
  )
  assert config.schedule.name == 'dense'
  assert (config.resume, config.progress, config.seed) == (True, False, 2)


@pytest.mark.parametrize(
  ('word', 'parts'),
  [
    ('--lora.rnk=3', ['--lora.rnk', 'Did you mean --lora.rank']),
    ('--alpha=3', ['Did you mean', '--lora.alpha', '--partition.alpha']),
    ('--lora.rank=three', ['--lora.rank=three', 'a whole number']),
    ('--lora.rank=1.5', ['a whole number']),
    ('--lora.rank=0', ['--lora.rank', 'at least 1']),
    ('--gate.bias=nan', ['--gate.bias=nan', 'finite']),
    ('--resume=maybe', ['--resume=maybe', 'true, false']),
    ('--schedule=dens', ["'geometric'", 'Did you mean dense?']),
    ('--flagfile=absent.flags', ['absent.flags']),
    ('--lora.rank', ['--lora.rank']),
    ('rank=3', ["'rank=3'", '--name=value']),
    ('--cohort.size=1000', ['--cohort.size', 'partition.num_clients']),
  ],
)
def test_user_errors_are_value_errors_that_say_what_to_do(word, parts):
  with pytest.raises(ValueError) as error:
    parse(word)
  for part in parts:
    assert part in str(error.value)


def test_help_names_every_option_and_loads_nothing_heavy():
  code = (
    'import sys\nfrom fedms_jax.shell import flags\n'
    'try:\n  flags.parse(["fedms", "--help"])\n'
    'except SystemExit as e:\n  assert e.code == 0\n'
    'heavy = {"jax", "numpy", "flax", "lmdb"} & set(sys.modules)\n'
    'assert not heavy, heavy\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  for name, field in config_lib.flatten(config_lib.Config).items():
    default = field.default
    shown = str(default).lower() if isinstance(default, bool) else default
    assert f'  --{name}={shown}\n' in done.stdout


def test_own_flag_values_neither_clash_nor_touch_the_global_ones():
  first = flags.define(absl_flags.FlagValues())
  second = flags.define(absl_flags.FlagValues())
  first(['fedms', '--seed=7'])
  second(['fedms'])
  assert (flags.read(first).seed, flags.read(second).seed) == (7, 0)
  assert 'lora.rank' not in absl_flags.FLAGS
