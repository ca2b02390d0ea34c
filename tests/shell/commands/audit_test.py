"""`fedms audit`: what is refused, and one audit of each kind from flags."""

import json

import pytest

from fedms_jax.report import audited
from fedms_jax.shell import main

SMALL = (
  '--noprogress', '--algorithm.name=fedit', '--schedule.name=dense',
  '--model.blocks=1', '--model.width=16', '--model.heads=2',
  '--pretrain.epochs=1', '--algorithm.stage1_rounds=2',
  '--algorithm.stage2_rounds=0', '--partition.num_clients=24',
  '--cohort.size=12', '--partition.min_rows=5',
)  # fmt: skip
PRIVATE = ('--privacy.mode=central', '--cohort.sampling=poisson')


def audit(*words):
  return main.main(['fedms', 'audit', *SMALL, *words])


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (['--what=all'], 'canaries, membership, inversion'),
    (['--canaries=16'], 'allowed: central'),
    ([*PRIVATE, '--canaries=25'], 'num_clients=24'),
    ([*PRIVATE, '--canaries=16', '--schedule.name=linear'], 'allowed: dense'),
    ([*PRIVATE, '--canaries=16', '--attack.update=sign_flip'], 'allowed: none'),
    ([*PRIVATE, '--canaries=16', '--server.optimizer=adam'], 'allowed: mean'),
    (['--what=membership', '--shadows=3'], 'even numbers from 6'),
    (['--what=membership', '--rows=-1'], 'at least 0'),
    (['--what=inversion', '--steps=0'], 'at least 1'),
    (['--workdir=/nowhere/at/all'], 'holds no run'),
  ],
)
def test_what_cannot_be_audited_is_refused(words, said, capsys):
  assert audit(*words) == 2
  text = capsys.readouterr().err
  assert said in text and text.count('\n') == 1, text


@pytest.mark.slow
def test_much_noise_hides_what_little_noise_shows(tmp_path, capsys):
  """The same canaries at two noises; the bound is below what is accounted."""
  found = []
  for noise in ('0.05', '20'):
    out = tmp_path / f'{noise}.json'
    assert not audit(
      *PRIVATE, '--canaries=24', f'--privacy.noise={noise}', f'--out={out}'
    )
    found.append(json.loads(out.read_text()))
    assert found[-1]['epsilon_lower_bound'] <= found[-1]['epsilon_accounted']
  few, much = found
  assert few['auroc'] > 0.85 > 0.75 > much['auroc']
  assert few['epsilon_estimate'] > much['epsilon_estimate']
  assert much['epsilon_lower_bound'] == 0.0
  assert 'accounted' in capsys.readouterr().out


@pytest.mark.slow
def test_audits_of_a_run_are_kept_with_it(tmp_path, capsys):
  folder = f'--workdir={tmp_path}/run'
  assert not main.main(['fedms', *SMALL, folder])
  assert not main.main(
    ['fedms', 'audit', folder, '--what=membership', '--shadows=6', '--rows=50']
  )
  assert not main.main(
    ['fedms', 'audit', folder, '--what=inversion', '--steps=5', '--rows=1']
  )
  kept = json.loads((tmp_path / 'run' / audited.FILE).read_text())
  assert set(kept) == {'membership', 'inversion'}
  # The pre-trained model has seen none of the rows.
  assert kept['membership']['models']['pretrained']['auroc'] == 0.5
  assert not main.main(['fedms', 'report', folder])
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'LiRA' in page and 'PSNR' in page
