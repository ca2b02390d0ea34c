"""A run of a loaded model: evaluated, exported, and entered again."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedms_jax.models.family import Options
from fedms_jax.persistence import peft
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.shell import flags, main
from fedms_jax.shell.commands import export_notes
from tests import folders

SMALL = (
  '--noprogress --notensorboard --data.train_split=test --seed=3 '
  '--data.public_fraction=0.3 --partition.num_clients=3 '
  '--partition.unseen_clients=0 --partition.min_rows=6 --cohort.size=2 '
  '--client.epochs=1 --client.batch_size=4 --client.learning_rate=0.02 '
  '--algorithm.stage1_rounds=1 --algorithm.stage2_rounds=1 '
  '--model.pooling=pooler --pretrain.epochs=2'
).split()


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A finished run of a small BERT."""
  root = tmp_path_factory.mktemp('run')
  (root / 'base').mkdir()
  pooler = Options(classes=3, pooling='pooler')
  folders.checkpoint(root / 'base', 'bert', pooler)
  folders.texts(root / 'texts')
  assert fedms(root, '--workdir=' + str(root / 'wd')) == 0
  return root


def fedms(root, *flags, command=()):
  data, model = root / 'texts', root / 'base'
  flags = [f'--data.source={data}', f'--model.name={model}', *flags]
  return main.main(['fedms', *command, *([] if command else SMALL), *flags])


def on_workdir(root, name, *flags):
  return main.main(['fedms', name, f'--workdir={root / "wd"}', *flags])


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def listing(folder):
  """Files and their bytes, less the lock of readers."""
  return {
    str(path): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name != 'lock.mdb'
  }


def rows(text):
  """Figures of the table, by model."""
  found = {}
  for line in text.splitlines():
    name, *figures = line.split('  ')
    figures = [f.strip() for f in figures if f.strip()]
    if figures and figures[0].replace('.', '').isdigit():
      found[name] = figures
  return found


def test_eval_repeats_the_summary_of_a_run_that_holds_the_lock(root, capsys):
  before = listing(root / 'wd')
  flags = pathlib.Path(root / 'wd' / 'flags.txt').read_text()
  with Workdir.open(root / 'wd', flags, resume=True):
    held = listing(root / 'wd')
    assert on_workdir(root, 'eval') == 0
    assert listing(root / 'wd') == held
  text = capsys.readouterr().out
  assert 'personal stage, after 1 of 1 rounds' in text
  models = summary(root / 'wd')['models']
  for name, shown in (('global', 'global expert'), ('mixture', 'mixture')):
    wanted = f'{100 * models[name]["own_mean"]:.1f}'
    assert rows(text)[shown][0] == wanted
  assert set(before) == set(listing(root / 'wd'))


def test_an_exported_expert_is_where_another_run_starts(root, tmp_path):
  out = tmp_path / 'adapter'
  assert on_workdir(root, 'export', f'--out={out}') == 0
  config = json.loads((out / peft.CONFIG).read_text())
  assert config['task_type'] == 'SEQ_CLS'
  again = tmp_path / 'again'
  assert fedms(root, f'--lora.init={out}', f'--workdir={again}') == 0
  old, new = summary(root / 'wd')['models'], summary(again)['models']
  for score in ('own_loss', 'pooled_loss'):
    np.testing.assert_allclose(
      new['pretrained'][score], old['global'][score], rtol=1e-5
    )
  assert abs(new['global']['own_loss'] - old['global']['own_loss']) > 1e-4


def test_a_client_s_expert_is_its_own(root, tmp_path, capsys):
  for what in ('global', 'client:0', 'client:1', 'client:2'):
    folder = tmp_path / what.replace(':', '')
    assert on_workdir(root, 'export', f'--what={what}', f'--out={folder}') == 0
    # It has learned to be a part of the mixture.
    said = 'note: the local expert' in capsys.readouterr().err
    assert said == (what != 'global')
  found = {p.name: load_file(p / peft.WEIGHTS) for p in tmp_path.iterdir()}
  assert len({tuple(sorted(t)) for t in found.values()}) == 1
  b = {
    k: np.concatenate(
      [x.ravel() for n, x in sorted(t.items()) if 'lora_B' in n]
    )
    for k, t in found.items()
  }
  moved = [k for k in b if k != 'global' and np.any(b[k] != b['global'])]
  assert len(moved) == 2  # the cohort; nobody else has moved from the copy
  assert np.any(b[moved[0]] != b[moved[1]])


@pytest.mark.parametrize(
  'word',
  ['--fedms.local_loss=own', '--gate.mix=top1', '--algorithm.name=ditto'],
)
def test_a_model_that_learned_for_itself_is_exported_without_a_note(
  word, capsys
):
  export_notes.of_client(flags.parse(['fedms', word]))
  assert capsys.readouterr().err == ''


def test_the_merged_model_is_the_global_expert(root, tmp_path):
  out = tmp_path / 'merged'
  assert on_workdir(root, 'export', '--what=merged', f'--out={out}') == 0
  config = json.loads((out / 'config.json').read_text())
  assert list(config['label2id']) == sorted(folders.TOPICS)
  again = tmp_path / 'again'
  args = ['fedms', *SMALL, f'--data.source={root / "texts"}',
          f'--model.name={out}', '--model.keep_head', f'--workdir={again}',
          '--algorithm.stage1_rounds=0',
          '--algorithm.stage2_rounds=0']  # fmt: skip
  assert main.main(args) == 0
  old, new = summary(root / 'wd')['models'], summary(again)['models']
  for score in ('own_loss', 'pooled_loss'):
    np.testing.assert_allclose(
      new['global'][score], old['global'][score], rtol=1e-4
    )


def test_a_client_s_merged_model_is_the_base_and_its_adapter(root, tmp_path):
  for what in ('client:1', 'merged:1'):
    out = tmp_path / what.split(':')[0]
    assert on_workdir(root, 'export', f'--what={what}', f'--out={out}') == 0
  base = load_file(root / 'base' / 'model.safetensors')
  merged = load_file(tmp_path / 'merged' / 'model.safetensors')
  adapter = load_file(tmp_path / 'client' / peft.WEIGHTS)
  config = json.loads((tmp_path / 'client' / peft.CONFIG).read_text())
  scale, adapted = config['lora_alpha'] / config['r'], 0
  for name in (n for n in adapter if n.endswith('lora_A.weight')):
    b = adapter[name.replace('lora_A', 'lora_B')]
    module = name.removeprefix('base_model.model.').replace('lora_A.', '')
    np.testing.assert_allclose(
      merged[module] - base[module], scale * b @ adapter[name], atol=1e-6
    )
    adapted += np.any(b != 0)
  assert adapted


def test_full_fine_tuning_is_exported_whole(root, tmp_path, capsys):
  flags = ('--algorithm.name=fedavg', f'--workdir={tmp_path / "wd"}')
  assert fedms(root, *flags) == 0
  export = ['fedms', 'export', f'--workdir={tmp_path / "wd"}']
  assert main.main([*export, f'--out={tmp_path / "adapter"}']) == 2
  assert 'Use --what=merged' in capsys.readouterr().err
  out = tmp_path / 'merged'
  assert main.main([*export, '--what=merged', f'--out={out}']) == 0
  args = ['fedms', *SMALL, f'--data.source={root / "texts"}',
          f'--model.name={out}', '--model.keep_head',
          f'--workdir={tmp_path / "again"}', '--algorithm.stage1_rounds=0',
          '--algorithm.stage2_rounds=0']  # fmt: skip
  assert main.main(args) == 0
  old, new = (summary(tmp_path / x)['models'] for x in ('wd', 'again'))
  for score in ('own_loss', 'pooled_loss'):
    np.testing.assert_allclose(
      new['global'][score], old['global'][score], rtol=1e-4
    )
    assert old['global'][score] != old['pretrained'][score]


def test_a_prompt_is_exported_as_arrays(root, tmp_path, capsys):
  flags = ('--algorithm.name=promptfolio', '--prompt.length=3')
  assert fedms(root, *flags, f'--workdir={tmp_path / "wd"}') == 0
  export = ['fedms', 'export', f'--workdir={tmp_path / "wd"}']
  found = {}
  out = tmp_path / 'parts'
  for what in ('global', 'client:0', 'client:1'):
    assert main.main([*export, f'--what={what}', f'--out={out}']) == 0
    found[what] = load_file(out / 'parts.safetensors')
    assert set(found[what]) == {'prompt', 'head.kernel', 'head.bias'}
    assert len(found[what]['prompt']) == 3
  assert len({parts['prompt'].tobytes() for parts in found.values()}) == 3
  assert main.main([*export, '--what=merged', f'--out={tmp_path / "y"}']) == 2
  assert 'trains prompt beside the model' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('name', 'flags', 'message'),
  [
    ('eval', ['--seed=4'], '--seed=4 is not what the run was made with, 3'),
    ('eval', ['--what=global'], '--what is no flag'),
    ('export', [], '--out is missing'),
    ('export', ['--what=mixture', '--out=x'], 'client:0 to client:2'),
    ('export', ['--what=client:3', '--out=x'], 'client:0 to client:2'),
  ],
)
def test_mistakes_end_with_one_line(root, capsys, name, flags, message):
  assert on_workdir(root, name, *flags) == 2
  text = capsys.readouterr().err
  assert message in text and text.count('\n') == 1


def test_an_adapter_needs_the_base_that_it_was_trained_on(
  root, tmp_path, capsys
):
  text = (root / 'wd' / 'flags.txt').read_text()
  text = text.replace('pretrain.mode=auto', 'pretrain.mode=full')
  (tmp_path / 'flags.txt').write_text(text)
  flags = [f'--workdir={tmp_path}', f'--out={tmp_path}/out']
  assert main.main(['fedms', 'export', *flags]) == 2
  assert 'Use --what=merged' in capsys.readouterr().err
  flags = [f'--workdir={root}/wd', f'--out={root}/base']
  assert main.main(['fedms', 'export', *flags]) == 2
  assert 'is the base model' in capsys.readouterr().err


def test_there_must_be_a_run(tmp_path, capsys):
  for name in ('eval', 'export'):
    flags = [f'--workdir={tmp_path}', '--out=x'][: 1 + (name == 'export')]
    assert main.main(['fedms', name, *flags]) == 2
    assert 'holds no run' in capsys.readouterr().err


def test_commands_are_listed_and_near_misses_named(capsys):
  assert main.main(['fedms', '--help']) == 0
  text = capsys.readouterr().out
  assert all(f'fedms {name}' in text for name in ('export', 'eval', 'plan'))
  assert main.main(['fedms', 'exprot']) == 2
  assert "Did you mean 'export'?" in capsys.readouterr().err


def test_evaluation_may_look_at_more_rows(root, capsys):
  assert on_workdir(root, 'eval', '--eval.pooled_rows=2') == 0
  assert '2 pooled test rows' in capsys.readouterr().out
