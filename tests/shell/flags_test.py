"""Flags and the config dataclasses say the same, in both directions."""

import dataclasses
import random
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from fedms_jax.shell import catalog, flags
from fedms_jax.shell import config as config_lib
from fedms_jax.shell.config import model


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
    high = rule['high'] if rule['high'] is not None else low + 10**6
    return rng.randint(low, min(high, low + 10**6))
  return low + (1e-9 + rng.random()) * ((rule['high'] or 1.0) - low) * 0.3


# What only one kind of model looks at.
OF_BUILT_IN = {
  f'model.{name}'
  for name in (*model.OF_BUILT_IN, *model.OF_SCRATCH, *model.OF_PATCHES)
}
OF_CHECKPOINT = {
  f'model.{name}' for name in (*model.OF_CHECKPOINT, *model.OF_SCRATCH)
}


def any_config(seed):
  rng = random.Random(seed)
  flat = {
    name: any_value(name, field, rng)
    for name, field in config_lib.flatten(config_lib.Config).items()
    if name not in flags.PER_COMMAND
  }
  flat['cohort.size'] = 1 + flat['partition.num_clients'] // 2
  flat |= {'lora.ranks': '1', 'lora.init': '', 'model.mlp_ratio': 2.0}
  flat['loggers'] = rng.choice(['', 'csv', 'tensorboard,csv'])
  built_in = rng.random() < 0.5
  flat['model.name'] = 'vit' if built_in else 'a/b'
  # Options of these must fit each other.
  fitted = ('privacy.', 'compression.', 'secagg.', 'time.', 'select.')
  fitted += ('attack.', 'tasks.')
  flat = {k: v for k, v in flat.items() if not k.startswith(fitted)}
  flat |= {'compression.down': 'top_k', 'compression.share': rng.random()}
  flat |= {'attack.update': 'replacement', 'attack.scale': rng.random()}
  flat |= {'tasks.count': rng.randint(1, 9), 'tasks.method': 'replay'}
  flat |= {'tasks.memory': rng.randint(1, 99), 'tasks.order': 'staggered'}
  flat |= {'cohort.sampling': 'poisson', 'cohort.cap': 0, 'cohort.groups': 1}
  flat |= {'privacy.mode': 'central', 'privacy.noise': 0.1 + rng.random()}
  unused = OF_CHECKPOINT if built_in else OF_BUILT_IN
  allowed = model.HEADS_OF['vit'] if built_in else ('causal_lm', 'contrast')
  flat['model.head'] = rng.choice(allowed)
  flat |= {'stages': '', 'pretrain.head': '', 'pretrain.client_rate': 0.0}
  flat |= {'client.schedule': 'constant', 'data.masks': 'once'}
  flat |= {'plugin': ''}  # which is imported
  flat |= {'data.shift': 'blur', 'data.shift_groups': rng.randint(2, 3)}
  flat |= {'data.concept_groups': rng.randint(2, 9)}
  flat['algorithm.label_prior'] = rng.choice(['', '0.5', 'validation'])
  flat['gate.bias'] = rng.choice(['auto', '0', '-1.5'])
  flat['client.personal_learning_rate'] = rng.choice([-1.0, rng.random()])
  flat = {k: v for k, v in flat.items() if k not in unused}
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


OLD = """--algorithm.local_start=zero
--algorithm.local_loss=both
--algorithm.stage2_depth=dense
--algorithm.upload_blocks=0.25
--algorithm.hetlora_prune=0.5
--algorithm.hetlora_lambda=0.25
--algorithm.prox_mu=0.25
--algorithm.fedrep_head_share=0.25
--algorithm.ditto_lambda=0.25
--algorithm.apfl_alpha=0.25
--algorithm.apfl_alpha_learning_rate=0.25
--algorithm.pfedme_lambda=0.25
--algorithm.pfedme_steps=3
--algorithm.pfedme_learning_rate=0.25
--algorithm.feddpa_scale=0.25
--algorithm.promptfolio_local=0.25
--algorithm.fedpgp_rank=3
--algorithm.fedpgp_contrast=0.25
--algorithm.fedpgp_temperature=0.25
--algorithm.pfedmoap_experts=3
--algorithm.pfedmoap_pool=3
--algorithm.pfedmoap_width=3
--algorithm.pfedmoap_heads=3
--algorithm.pfedmoap_scale=0.25
--algorithm.pfedmoap_local=0.25
"""


def test_names_of_earlier_versions_work_and_are_written_as_today_s(tmp_path):
  words = OLD.split()
  config = parse(*words)
  assert parse_text(OLD, tmp_path) == config
  flat = dict(word.removeprefix('--').split('=') for word in words)
  text = flags.to_text(config)
  for old, value in flat.items():
    assert f'--{old}=' not in text
    assert f'--{flags.ALIASES[old]}={value}\n' in text
  defaults = flags.to_text(config_lib.Config()).splitlines()
  changed = set(text.splitlines()) - set(defaults)
  assert len(changed) == len(flat)  # each is an option of its own
  assert config_lib.from_values({'algorithm.prox_mu': 0.25}) == parse(
    '--fedprox.mu=0.25'
  )


def test_a_folder_of_an_earlier_version_keeps_its_words(tmp_path):
  text = flags.to_text(parse('--fedprox.mu=0.25'))
  file = tmp_path / 'flags.txt'
  assert flags.as_kept(text, file) == text
  old = text.replace('--fedprox.mu=', '--algorithm.prox_mu=')
  old = old.replace('--fedms.upload_blocks=0.0\n', '')
  assert old.count('\n') == text.count('\n') - 1
  file.write_text(old)
  assert flags.as_kept(text, file) == old
  other = flags.to_text(parse('--fedprox.mu=0.5'))
  assert flags.as_kept(other, file) == other


def test_every_method_has_a_section_of_its_own_options():
  declared = {
    name: {f.name for f in dataclasses.fields(method.options)}
    for name, method in catalog.METHODS.items()
    if method.options
  }
  flat = config_lib.flatten(config_lib.Config)
  for name, own in declared.items():
    assert {n for n in flat if n.startswith(f'{name}.')} == {
      f'{name}.{option}' for option in own
    }
  others = {n.partition('.')[0] for n in flat if '.' in n} - set(declared)
  assert others == {
    field.name
    for field in dataclasses.fields(config_lib.Config)
    if field.default_factory is not dataclasses.MISSING
  } - {'methods'}


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
    ('--lora.alpha=nan', ['--lora.alpha=nan', 'finite']),
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
