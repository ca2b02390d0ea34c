"""What the catalog declares can be built, and nothing else can."""

from fedms_jax.shell import catalog, methods


def test_the_catalog_and_the_builders_have_the_same_methods():
  assert list(catalog.METHODS) == list(methods.STAGES)
