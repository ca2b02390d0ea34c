"""The rows of the benchmark of privacy, and the audit of each."""

import json
import pathlib

import pytest

from benchmarks import privacy
from fedms_jax.launch import command
from fedms_jax.report import audited, markdown, ranking, runs, versus
from fedms_jax.shell import audits
from fedms_jax.shell import config as config_lib
from tests.report import finished

NAMES = list(privacy.methods(5))


def parsed(entry, *more):
  return command.check([*(f'--{k}={v}' for k, v in entry.flags.items()), *more])


def test_every_method_meets_every_epsilon_and_can_be_audited():
  """The run that is audited has the row's epsilon, rounds, method and chance,
  and none of a stated population's discount."""
  rows = privacy.entries(NAMES, privacy.EPSILONS, 5)
  assert len({row.label for row in rows}) == len(rows) == 16
  for row in rows:
    config = parsed(row, '--partition.alpha=0.1', '--cohort.size=6')
    found = privacy.audited(config, 40)
    assert found.privacy.epsilon == config.privacy.epsilon
    assert found.privacy.mode == 'central' and found.privacy.clip == 0.5
    assert (found.privacy.population, found.privacy.noise) == (0, 0)
    assert found.privacy.delta == pytest.approx(100_000**-1.1)
    assert (found.partition.num_clients, found.cohort.size) == (40, 8)
    assert found.algorithm == config.algorithm
    assert config_lib.values(found)['lora.rank'] == config.lora.rank
    audits._check_canaries(found, 40)  # or it would have no bound
  with pytest.raises(ValueError, match="--epsilons has '-1'"):
    privacy.entries(['gate'], ['-1'], 5)
  with pytest.raises(ValueError, match='--audit=3 is not allowed'):
    privacy.main(['--audit=3'])


FOUND = {
  'kind': 'canaries', 'stage': 'global', 'rounds': 2, 'canaries': 16,
  'guesses': 8, 'right': 7, 'delta': 1e-5, 'epsilon_accounted': 8.0,
  'epsilon_lower_bound': 1.25, 'epsilon_estimate': 3.0, 'auroc': 0.75,
}  # fmt: skip


def test_rows_are_audited_once_on_their_first_seed(tmp_path, monkeypatch):
  asked = []

  def canaries(config, count):
    asked.append((config.privacy.epsilon, config.seed, count))
    if config.algorithm.name == 'ffa_lora':
      raise ValueError('no direction')
    return FOUND

  monkeypatch.setattr(audits, 'canaries', canaries)

  def runner(config, log):
    private = {'epsilon': 1.98} if config.privacy.on else None
    more = {'privacy': private} if private else {}
    finished.run(
      pathlib.Path(config.workdir), 0.7, 1000.0, config.seed,
      config_lib.values(config), **more,
    )  # fmt: skip
    return 0

  words = ['--methods=fedit,ffa_lora', '--epsilons=none,2', '--seeds=4..5',
           '--audit=16', f'--out={tmp_path}']  # fmt: skip
  for _ in range(2):
    assert not privacy.main(words, runner)
  first, again = asked[:4], asked[4:]
  assert first == [(0, 4, 16), (2, 4, 16)] * 2
  # What has no audit is asked again, and nothing else.
  assert again == [(0, 4, 16), (2, 4, 16)]
  rows = (tmp_path / 'table.md').read_text().splitlines()
  cells = {line.split(' | ')[0].strip('| '): line for line in rows}
  assert '| epsilon | audit |' in rows[0]
  assert '| 1.98 | ≥ 1.25 of 8 |' in cells['fedit, epsilon 2']
  assert '| – | ≥ 1.25 of 8 |' in cells['fedit, not private']
  assert '| 1.98 | – |' in cells['ffa_lora, epsilon 2']
  page = (tmp_path / 'report.html').read_text()
  assert '≥ 1.25 of 8' in page
  head, *lines = (tmp_path / 'results.csv').read_text().splitlines()
  names = head.split(',')
  assert {'epsilon', 'audit.epsilon_lower_bound'} <= set(names)
  told = [line.count('1.25') for line in lines if 'fedit' in line]
  assert sum(told) == 2


def test_tables_without_privacy_have_no_columns_for_it(tmp_path):
  compared = runs.comparison(finished.comparison(tmp_path))
  assert ranking.promises(compared.rows) == {}
  assert 'epsilon' not in markdown.comparison(compared)
  assert 'audit' not in versus.report(compared, {})


def test_what_has_no_bound_is_said_so(tmp_path):
  folder = finished.run(tmp_path / 'a', privacy={'epsilon': None})
  more = FOUND | {'epsilon_accounted': None}
  (folder / audited.FILE).write_text(json.dumps({'canaries': more}))
  row = runs.Row('a', [runs.read(folder)])
  assert ranking.promises([row]) == {
    'epsilon': ['∞'],
    'audit': ['≥ 1.25 of ∞'],
  }


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_what_canaries_show_is_less_than_what_is_accounted(name):
  """And without noise they show much."""
  small = ('--model.blocks=1', '--model.width=16', '--model.heads=2')
  found = {}
  for row in privacy.entries([name], ['none', '2'], 4):
    if name != 'gate':
      row.flags.update({'algorithm.stage1_rounds': '4',
                        'algorithm.stage2_rounds': '0'})  # fmt: skip
    config = privacy.audited(parsed(row, *small), 32)
    found[config.privacy.epsilon] = audits.canaries(config, 32)
  loud, quiet = found[0], found[2]
  assert loud['rounds'] == quiet['rounds'] == 4
  assert loud['epsilon_accounted'] is None
  # A fifth of the canaries is in none of four rounds of a third of all.
  assert loud['auroc'] > 0.8 > 0.75 > quiet['auroc']
  assert loud['epsilon_lower_bound'] > quiet['epsilon_lower_bound'] == 0.0
  assert quiet['epsilon_lower_bound'] <= quiet['epsilon_accounted'] <= 2.0
