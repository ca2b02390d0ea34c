"""Commands on a run of the built-in model: exports, checks, plans."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedms_jax.models import vit
from fedms_jax.models.transformer import TransformerConfig
from fedms_jax.persistence import own_model
from fedms_jax.shell import flags, main
from fedms_jax.shell import world as worlds

FLAGS = (
  '--data.source=synthetic --data.synthetic_rows=400 '
  '--data.synthetic_classes=4 '
  '--partition.num_clients=4 --partition.unseen_clients=0 --cohort.size=2 '
  '--model.blocks=1 --model.width=8 --model.heads=2 --pretrain.epochs=2 '
  '--algorithm.name=fedit --algorithm.stage1_rounds=2 --lora.rank=2 '
  '--client.learning_rate=0.3 '
  '--algorithm.stage2_rounds=0 --noprogress'
).split()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('run') / 'wd'
  words = [*FLAGS, '--loggers=tensorboard,csv', f'--workdir={root}']
  assert main.main(['fedms', *words]) == 0
  return root


def test_the_loggers_of_the_run_have_its_rounds(folder):
  rows = (folder / 'metrics.csv').read_text().splitlines()
  assert len(rows) == 3 and rows[0].startswith('stage,round,name')
  stage, *ends = (folder / 'tensorboard').iterdir()
  assert {p.is_dir() for p in (stage, *ends)} == {True, False}
  names = {p.name for p in (stage, *ends) if p.is_dir()}
  assert names == {'global'}


def test_the_exported_model_scores_what_the_run_does(folder, tmp_path, capsys):
  words = ['--what=merged', f'--out={tmp_path}']
  assert main.main(['fedms', 'export', f'--workdir={folder}', *words]) == 0
  assert 'model.safetensors' in capsys.readouterr().out
  found = own_model.load(tmp_path)
  data = worlds.data(flags.parse(['fedms', *FLAGS]))
  rows = np.asarray(data.pooled)
  logits = found.logits(data.table.columns['inputs'][rows])
  right = logits.argmax(-1) == data.table.columns['labels'][rows]
  summary = json.loads((folder / 'summary.json').read_text())
  assert right.mean() == pytest.approx(
    summary['models']['global']['pooled'], abs=1e-6
  )
  assert found.labels == data.table.output_names


def test_what_is_beside_the_model_is_written_as_arrays(folder, tmp_path):
  word = f'--out={tmp_path}'
  assert main.main(['fedms', 'export', f'--workdir={folder}', word]) == 0
  assert [p.name for p in tmp_path.iterdir()] == ['parts.safetensors']


@pytest.mark.slow
def test_a_model_that_the_server_s_memory_is_part_of(tmp_path):
  """FedCAF gives who never trained the even mixture of the two who did."""
  root = tmp_path / 'wd'
  words = [
    *FLAGS, '--algorithm.name=fedcaf', '--algorithm.stage1_rounds=1',
    f'--workdir={root}',
  ]  # fmt: skip
  assert main.main(['fedms', *words]) == 0
  heads = []
  for client in range(4):
    words = [f'--what=client:{client}', f'--out={tmp_path / str(client)}']
    assert main.main(['fedms', 'export', f'--workdir={root}', *words]) == 0
    parts = load_file(tmp_path / str(client) / 'parts.safetensors')
    heads.append(parts['head.kernel'])
  alike = [sum(np.array_equal(x, y) for y in heads) for x in heads]
  assert sorted(alike) == [1, 1, 2, 2]
  made = [x for x, count in zip(heads, alike, strict=True) if count == 1]
  mixed = heads[alike.index(2)]
  np.testing.assert_allclose(mixed, sum(made) / 2, atol=1e-6)


def small(tmp_path):
  shape = TransformerConfig(blocks=2, width=4, heads=2, mlp_width=8)
  config = vit.VitConfig(shape, image=4, channels=1, patch=2, classes=3)
  model = vit.backbone(config)
  init = jax.jit(lambda key: (model.init(key), model.init_head(key)))
  params, head = init(jax.random.key(0))
  own_model.save(tmp_path, config, params, head, 'abc')
  return config, params, head


def test_a_model_comes_back_bitwise(tmp_path):
  config, params, head = small(tmp_path)
  found = own_model.load(tmp_path)
  assert found.config == config and found.labels == ('a', 'b', 'c')
  for one, other in ((found.params, params), (found.head, head)):
    same = jax.tree.map(lambda a, b: bool((a == b).all()), one, other)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
  ('before', 'after', 'message'),
  [
    ('"width": 4', '"width": 8', 'of shape'),
    ('"format": 1', '"format": 2', 'model_type and format'),
    ('"patch": 2', '"patches": 2', 'another version'),
  ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, before, after, message):
  small(tmp_path)
  path = tmp_path / own_model.CONFIG
  assert before in path.read_text()
  path.write_text(path.read_text().replace(before, after))
  with pytest.raises(ValueError, match=message):
    own_model.load(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
  with pytest.raises(ValueError, match='does not exist'):
    own_model.load(tmp_path)


def test_a_run_is_checked_and_nothing_written(folder, tmp_path, capsys):
  new = tmp_path / 'new'
  assert main.main(['fedms', 'check', *FLAGS, f'--workdir={new}']) == 0
  text = capsys.readouterr().out
  assert 'could start' in text and '4 clients' in text and '2 rounds' in text
  assert not new.exists()
  before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
  there = [*FLAGS, f'--workdir={folder}']
  assert main.main(['fedms', 'check', *there]) == 2
  assert '--resume' in capsys.readouterr().err
  assert main.main(['fedms', 'check', *there, '--resume']) == 0
  assert 'would go on' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in folder.rglob('*')}


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--data.synthetic_rows=20', '--partition.num_clients'),
    ('--model.patch=3', '--model.patch'),
    ('--algorithm.name=nothing', '--algorithm.name'),
    ('--lora.targets=attn/x', '--lora.targets'),
    ('--eval.metrics=nothing', '--eval.metrics'),
    ('--engine.devices=4000', '--engine.devices'),
  ],
)
def test_a_check_finds_what_a_run_would_be_refused_for(flag, said, capsys):
  assert main.main(['fedms', 'check', *FLAGS, flag]) == 2
  text = capsys.readouterr().err.splitlines()[-1]
  assert said in text


def test_the_built_in_model_is_planned_in_the_shape_of_its_data(capsys):
  assert main.main(['fedms', 'plan', *FLAGS]) == 0
  text = capsys.readouterr().out
  size, tokens = re.search(r'vit: (\d+) .* T = (\d+)', text).groups()
  data = flags.parse(['fedms', *FLAGS])
  backbone = worlds.world(data).model.backbone
  params = jax.eval_shape(backbone.init, jax.random.key(0))
  assert int(size) == sum(x.size for x in jax.tree.leaves(params))
  assert int(tokens) == backbone.cost.tokens
