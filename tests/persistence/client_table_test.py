"""The table of all evaluated clients."""

import numpy as np
import pandas
import pytest

from fedms_jax.persistence import client_table

COLUMNS = {
  'client': np.array([3, 7, 9]),
  'train_rows': [10, 20, 30],
  'test_rows': [1, 2, 3],
  'mixture': [0.5, None, 0.25],
  'f1/mixture': np.array([0.125, np.nan, 1.0]),
}


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_a_table_says_what_it_was_given(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(client_table, '_PIECE', 2)
  path = client_table.write(tmp_path, COLUMNS, kind)
  assert [p.name for p in tmp_path.iterdir()] == [f'per_client.{kind}']
  found = getattr(pandas, f'read_{kind}')(path)
  assert list(found) == list(COLUMNS)
  for name, values in COLUMNS.items():
    wanted = pandas.Series(values, dtype=found[name].dtype)
    pandas.testing.assert_series_equal(found[name], wanted, check_names=False)
  assert found['client'].dtype == np.int64


def test_a_large_population_is_parquet(tmp_path, monkeypatch):
  assert client_table.kind('auto', client_table.MANY) == 'parquet'
  assert client_table.kind('csv', client_table.MANY) == 'csv'
  client_table.write(tmp_path, COLUMNS)
  monkeypatch.setattr(client_table, 'MANY', 3)
  client_table.write(tmp_path, COLUMNS)
  # The older table of other clients does not stay beside it.
  assert [p.name for p in tmp_path.iterdir()] == ['per_client.parquet']


def test_a_table_is_whole_or_as_it_was(tmp_path):
  client_table.write(tmp_path, COLUMNS)
  before = (tmp_path / 'per_client.csv').read_bytes()
  with pytest.raises(ValueError, match='argument 2 is shorter'):
    client_table.write(tmp_path, COLUMNS | {'train_rows': [1]})
  assert (tmp_path / 'per_client.csv').read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 1
