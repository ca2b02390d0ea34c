"""The rows and the table of the benchmark of attacks."""

import pytest

from benchmarks import attacks
from launch import command


def test_each_attack_meets_each_aggregator_and_is_taken():
  rows = attacks.entries(list(attacks.ATTACKS), list(attacks.AGGREGATORS))
  assert len({row.label for row in rows}) == len(rows) == 100
  assert len({tuple(sorted(row.flags.items())) for row in rows}) == len(rows)
  for row in rows:
    config = command.check([f'--{k}={v}' for k, v in row.flags.items()])
    assert config.attack.on == (not row.label.startswith('none'))
  with pytest.raises(ValueError, match='--aggregators has'):
    attacks.entries(['none'], ['average'])


def test_the_table_is_of_honest_clients():
  def summary(own, score, honest, malicious):
    models = dict.fromkeys(('global', 'local', 'mixture'), {'own_mean': own})
    side = {'honest': honest, 'malicious': malicious}
    if score is None:
      return {'models': models}
    told = {'score': {m: {'honest': score} for m in models},
            'success': {m: side for m in models}}  # fmt: skip
    return {'models': models, 'attack': told}

  text = attacks.table(
    {
      'clean': [summary(0.8, None, None, None)],
      'bad': [summary(0.8, 0.5, 0.25, 1.0), summary(0.8, 0.6, 0.75, 1.0)],
      'all': [summary(0.8, 0.7, None, 0.9)],
    }
  )
  lines = [line.strip('| ').split(' | ') for line in text.splitlines()]
  assert lines[2] == ['clean', *['80.0'] * 3, *['-'] * 3]
  assert lines[3] == ['bad', *['55.0'] * 3, *['50.0'] * 3]
  assert lines[4] == ['all', *['70.0'] * 3, *['90.0'] * 3]
