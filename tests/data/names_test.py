import pytest

from fedms_jax.data import names


def test_a_known_name_is_returned():
  assert names.pick('--flag', 'b', ('a', 'b'), 'letter') == 'b'


def test_an_unknown_name_is_refused_with_the_options_and_a_hint():
  with pytest.raises(ValueError) as error:
    names.pick('--partition.name', 'dirichlt', ('iid', 'dirichlet'), 'way')
  text = str(error.value)
  assert "--partition.name='dirichlt' is no way" in text
  assert 'iid, dirichlet' in text
  assert "Did you mean 'dirichlet'?" in text


def test_a_far_name_gets_no_hint():
  with pytest.raises(ValueError, match=r'There are: iid\.$'):
    names.pick('--partition.name', 'zzz', ('iid',), 'way')
