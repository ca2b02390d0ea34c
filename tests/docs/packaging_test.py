"""What goes with the package: versions, citations, the image."""

import configparser
import json
import pathlib
import re

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fedms_jax import __version__
from fedms_jax.shell import catalog
from tests.docs import pages_test

ROOT = pathlib.Path(__file__).parents[2]
CONSTRAINTS = sorted((ROOT / 'constraints').glob('py*.txt'))
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')


def pinned(path: pathlib.Path) -> dict[str, Version]:
  lines = path.read_text(encoding='utf-8').splitlines()
  pairs = [x.split('==') for x in lines if not x.startswith('#')]
  return {name: Version(version) for name, version in pairs}


def supported() -> set[str]:
  text = SETUP['metadata']['classifiers']
  return set(re.findall(r'Python :: (\d\.\d+)$', text, re.MULTILINE))


def test_each_python_that_is_supported_has_its_versions():
  found = {re.sub(r'py(\d)(\d+)', r'\1.\2', p.stem) for p in CONSTRAINTS}
  assert found == supported() == {'3.11', '3.12', '3.13'}


def test_all_that_is_required_is_pinned_to_what_is_allowed():
  extras = SETUP['options.extras_require']
  needed = [SETUP['options']['install_requires']]
  needed += [extras['launch'], extras['privacy']]
  wanted = [Requirement(x) for text in needed for x in text.split('\n') if x]
  assert len(wanted) > 15
  for path in CONSTRAINTS:
    versions = pinned(path)
    for each in wanted:
      assert each.specifier.contains(versions[canonicalize_name(each.name)])


def test_constraints_are_what_pip_reports_without_the_package_itself():
  resolve = pages_test.loaded(ROOT / 'constraints' / 'resolve.py')
  report = {
    'install': [
      {'metadata': {'name': 'fedms_jax', 'version': '9'}, 'requested': True},
      {'metadata': {'name': 'orbax_checkpoint', 'version': '2.0'}},
      {'metadata': {'name': 'Flax', 'version': '1.0'}},
    ]
  }
  lines = resolve.text(json.loads(json.dumps(report)), '3.12').splitlines()
  assert lines[2:] == ['flax==1.0', 'orbax-checkpoint==2.0']


def citation() -> dict:
  return yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))


def test_the_citation_has_the_version_and_the_license():
  found = citation()
  assert found['version'] == __version__
  assert found['license'] == SETUP['metadata']['license']
  places = [x.get('url') or x['doi'] for x in found['references']]
  assert len(set(places)) == len(places)
  assert all(x['title'] and x['authors'] for x in found['references'])


def test_the_paper_of_every_method_is_cited():
  text = json.dumps(citation()['references'])
  for name, method in catalog.METHODS.items():
    for place in re.findall(r'\b\d{4}\.\d{5}\b|10\.\d+/\S+', method.paper):
      assert place in text, (name, place)


def test_the_image_has_what_it_copies_and_a_python_that_is_supported():
  text = (ROOT / 'Dockerfile').read_text(encoding='utf-8')
  python = re.findall(r'^FROM python:([\d.]+)', text, re.MULTILINE)
  assert len(python) == 1 and python[0] in supported()
  assert f'-c constraints/py{python[0].replace(".", "")}.txt' in text
  for extra in re.findall(r'EXTRAS=(\S+)', text):
    assert set(extra.split(',')) <= set(SETUP['options.extras_require'])
  for preset in re.findall(r'--flagfile=([\w/]+\.flags)', text):
    assert (ROOT / preset).exists()
