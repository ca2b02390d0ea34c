"""Writes the versions that pip chooses for the interpreter that runs this.

    python3.12 constraints/resolve.py

makes py312.txt beside it: what `pip install '.[launch,privacy]'` would install
today. Nothing is installed.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
EXTRAS = 'launch,privacy'


def canonical(name: str) -> str:
  """The name of a distribution as indexes write it (PEP 503)."""
  return re.sub(r'[-_.]+', '-', name).lower()


def text(report: dict, python: str) -> str:
  """The constraints file of a report of pip, all of it but the package."""
  found = sorted(
    f'{canonical(each["metadata"]["name"])}=={each["metadata"]["version"]}'
    for each in report['install']
    if not each.get('requested')
  )
  head = [
    f'# Python {python}, Linux: what pip chose for .[{EXTRAS}].',
    f"# pip install -c constraints/py{python.replace('.', '')}.txt '.'",
  ]
  return '\n'.join([*head, *found]) + '\n'


def main() -> None:
  """Asks pip, and writes the file."""
  python = f'{sys.version_info.major}.{sys.version_info.minor}'
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / 'report.json'
    words = [sys.executable, '-m', 'pip', 'install', '--quiet', '--dry-run']
    words += ['--ignore-installed', '--report', str(out)]
    subprocess.run([*words, f'{HERE.parent}[{EXTRAS}]'], check=True)
    report = json.loads(out.read_text(encoding='utf-8'))
  path = HERE / f'py{python.replace(".", "")}.txt'
  path.write_text(text(report, python), encoding='utf-8')
  print(path)


if __name__ == '__main__':
  main()
