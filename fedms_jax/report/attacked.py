"""What is said to people of an attack on a run."""

from __future__ import annotations

from typing import Any

from fedms_jax.report import printed

COLUMNS = {
  'honest': 'honest clients',
  'malicious': 'malicious clients',
  'pooled': 'pooled test',
  'unseen': 'unseen clients',
}


def title(found: dict[str, Any]) -> str:
  """What the malicious clients did."""
  does = [found[k] for k in ('data', 'update') if found[k] != 'none']
  return (
    f'attack: {" and ".join(does).replace("_", " ")} by '
    f'{len(found["malicious"])} of {found["clients"]} clients (in %)'
  )


def rows(found: dict[str, Any]) -> list[list[str]]:
  """A table of models in %: the success of the attack, where it has one, and
  the scores of honest and malicious clients."""
  success = found.get('success', {})
  head = ['']
  if success:
    head += [f'success: {name}' for name in COLUMNS.values()]
  head += ['score: honest clients', 'score: malicious clients']
  body = []
  for name in printed.ordered(found['score']):
    cells = [printed.MODELS.get(name, name)]
    if success:
      told = success.get(name, {})
      cells += [printed.share(told.get(key)) for key in COLUMNS]
    told = found['score'][name]
    body.append(
      [*cells, *(printed.share(told[key]) for key in ('honest', 'malicious'))]
    )
  return [head, *body]


def text(result: dict[str, Any]) -> str:
  """The lines on what summary.json holds under `attack`; '' of a run without
  one."""
  found = result.get('attack')
  if found is None:
    return ''
  return '\n'.join(['', title(found), *printed.grid(rows(found)), ''])
