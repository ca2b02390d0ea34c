"""Every method of the catalog runs on digits, or says why not."""

import json

import pytest

from benchmarks import methods
from fedms_jax.shell import catalog

SMALL = (
  '--model.blocks=3 --model.width=16 --model.heads=2 --pretrain.epochs=1 '
  '--partition.num_clients=6 --partition.unseen_clients=1 --cohort.size=3 '
  '--algorithm.stage1_rounds=1 --algorithm.stage2_rounds=1 --client.epochs=1 '
  '--data.max_rows=500 --lora.rank=2 --eval.pooled_rows=100 '
  '--fedpft.steps=2 --fgl.epochs=1'
).split()
# Built-in models have no tower of texts.
TOWERS = {'fedclip', 'fedpgp', 'pfedmoap', 'pfedprompt', 'fedotp', 'pfedmma'}


@pytest.mark.slow
def test_every_method_runs_on_digits(tmp_path, capsys):
  rows = {*catalog.METHODS, 'fgl/fedavg'}
  own = [f'--methods={",".join(sorted(rows))}', '--seeds=0', '--search=']
  words = [*own, f'--out={tmp_path}', '--', *SMALL]
  assert methods.main(words) == 0
  told = json.loads((tmp_path / 'sweep.json').read_text())['benchmark']
  missing = told['missing']
  assert set(missing) == TOWERS, capsys.readouterr().out
  assert all('Name a checkpoint of CLIP' in why for why in missing.values())
  assert set(told['labels'].values()) == rows - TOWERS
  table = (tmp_path / 'table.md').read_text().splitlines()
  assert len(table) == 2 + len(rows - TOWERS)
