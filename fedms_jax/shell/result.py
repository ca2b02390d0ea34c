"""What a run from Python gives: scores, records, models."""

from __future__ import annotations

import contextlib
import html
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import columns, tree
from fedms_jax.core.types import Batch, Roles, Tree
from fedms_jax.persistence import peft
from fedms_jax.report import printed
from fedms_jax.shell.config import Config
from fedms_jax.shell.finished import Finished

PARTS = 'parts.safetensors'
_AT_ONCE = 256  # rows that are predicted together


class Result:
  """What came of a run.

  config: of the run. summary: as in summary.json. scores: of each model, such
  as 'own_mean' and 'pooled'. records: a dict for each round, as in
  metrics.jsonl. clients: a dict for each evaluated client, with its id
  ('client'), its rows and its scores by model. state: the simulation's last,
  with all parameters.
  """

  def __init__(self, finished: Finished, kept: contextlib.ExitStack | None):
    self.config: Config = finished.config
    self.summary = finished.summary
    self.records = finished.recorder.records
    self.state = finished.state
    self._finished = finished
    self._kept = kept  # closes what holds the clients' states

  @property
  def scores(self) -> dict[str, dict[str, Any]]:
    return self.summary['models']

  @property
  def clients(self) -> list[dict[str, Any]]:
    found = {k: np.asarray(v).tolist() for k, v in self._columns().items()}
    return [
      dict(zip(found, row, strict=True))
      for row in zip(*found.values(), strict=True)
    ]

  def _columns(self) -> dict[str, Any]:
    """The columns of the evaluated clients, with the ids of the data."""
    found = dict(self._finished.columns)
    names = self._finished.simulation.federation.names
    if names:
      found['client'] = [names[i] for i in found['client']]
    return found

  def frame(self, what: str = 'records') -> Any:
    """The 'records' or the 'clients' as a pandas DataFrame."""
    try:
      import pandas  # lazy: an extra
    except ImportError as e:
      raise ValueError(
        f'a DataFrame needs the package pandas ({e}). Install it, or use '
        '`records` and `clients`.'
      ) from e
    if what not in ('records', 'clients'):
      raise ValueError(f'`what`={what!r}; allowed: records, clients.')
    return pandas.DataFrame(getattr(self, what))

  @property
  def models(self) -> tuple[str, ...]:
    """The names of the models that `predict` knows, the served one first."""
    served = self._stage().algorithm.served
    return (served, *(name for name in self.scores if name != served))

  def predict(
    self, inputs: Any, client: Any = None, model: str = ''
  ) -> np.ndarray:
    """Logits [n, ...] of a model for inputs [n, ...], as the table has them.

    Args:
      inputs: rows, as those that were trained on.
      client: id of the client whose model it is; None: as a newcomer has it.
      model: one of `models`; '': the served one.
    """
    rows = np.asarray(inputs)
    wanted = self._finished.simulation.federation.table.columns['inputs']
    if rows.ndim != wanted.ndim or rows.shape[1:] != wanted.shape[1:]:
      raise ValueError(
        f'`inputs` has the shape {rows.shape}; allowed: [n, '
        f'{", ".join(map(str, wanted.shape[1:]))}], rows as those trained on.'
      )
    name = model or self.models[0]
    if name not in self.scores:
      raise ValueError(
        f'`model`={name!r} is none; there are: {", ".join(self.models)}.'
      )
    roles = self._roles(client)
    found = []
    for start in range(0, len(rows), _AT_ONCE):
      some = rows[start : start + _AT_ONCE].astype(wanted.dtype)
      # Filled up, so that one program predicts all.
      filled = np.resize(some, (_AT_ONCE, *some.shape[1:]))
      batch = {'inputs': jnp.asarray(filled), 'mask': jnp.ones(_AT_ONCE, bool)}
      out = self._predict(roles, batch)[name]
      found.append(np.asarray(out)[: len(some)])
    if not found:
      raise ValueError('`inputs` has no rows.')
    return np.concatenate(found)

  def _predict(self, roles: Roles, batch: Batch) -> dict[str, Any]:
    if not hasattr(self, '_program'):
      algorithm = self._stage().algorithm
      plan = self._finished.simulation.plan(self.state)

      @jax.jit
      def program(roles, batch):
        shared = roles._replace(personal=None)
        whole = columns.complete(algorithm, shared, batch, plan)
        found = algorithm.predict(roles, whole, plan).logits
        return {k: jnp.asarray(v) for k, v in found.items()}

      self._program = program
    return self._program(roles, batch)

  def parameters(self, client: Any = None) -> Tree:
    """What has become of the model: of a network of one's own its parameters,
    in its own tree; of others the parts of `Algorithm.models`.

    client: the id whose model it is; None: the global one, or of methods that
    have none, the one that a newcomer begins with.
    """
    parts = self._parts(client)
    form = self._finished.world.model.network
    if form is not None and 'network' in parts:
      return form.whole(tree.flat(parts['network']))
    return parts

  def _parts(self, client: Any) -> Tree:
    found = self._stage().algorithm.models(self._roles(client))
    wanted = ('global', 'local') if client is None else ('local', 'global')
    for name in wanted:
      if name in found:
        return found[name]
    raise ValueError(
      f'{self._stage().algorithm.name} exports no model; `state` has all of '
      'its parameters.'
    )

  def export(self, folder: Any, client: Any = None) -> pathlib.Path:
    """Writes `parts.safetensors`, all arrays of a model by their paths; gives
    its path. (A loaded checkpoint's run with a workdir is exported for PEFT and
    transformers by `fedms export`.)

    client: as of `parameters`.
    """
    found = tree.flat(self._parts(client))
    leaves = {name.replace('/', '.'): x for name, x in found.items()}
    path = pathlib.Path(folder) / PARTS
    path.parent.mkdir(parents=True, exist_ok=True)
    peft.write_tensors(path, {k: np.asarray(v) for k, v in leaves.items()})
    return path

  def report(self, path: Any = '') -> pathlib.Path:
    """Writes the HTML page of a run with a workdir; gives its path.

    path: of the file; '': report.html in the workdir.
    """
    if not self.config.workdir:
      raise ValueError(
        'a page is made of the files of a run, and this one has written none. '
        'Give it a `workdir`.'
      )
    from fedms_jax.report import page
    from fedms_jax.shell.commands import report

    root = pathlib.Path(self.config.workdir)
    path = pathlib.Path(path or root / 'report.html')
    page.write(path, report.text(root))
    return path

  def close(self) -> None:
    """Lets the clients' states go; scores and records stay."""
    if self._kept is not None:
      self._kept.close()

  def __str__(self) -> str:
    return printed.text(self.summary)

  def _repr_html_(self) -> str:
    return f'<pre>{html.escape(str(self))}</pre>'

  def _stage(self):
    return self._finished.simulation.stages[self.state.stage]

  def _roles(self, client: Any) -> Roles:
    """All roles, with the personal state of a client."""
    roles = self.state.roles
    if client is None or not jax.tree.leaves(roles.personal):
      if client is not None:
        self._number(client)
      return roles
    number = np.array([self._number(client)])
    with contextlib.ExitStack() as stack:
      states = self._states(stack).gather(number)
    return roles._replace(personal=jax.tree.map(lambda x: x[0], states))

  def _states(self, stack: contextlib.ExitStack):
    """The store of the clients' states: in memory, or in the workdir."""
    simulation = self._finished.simulation
    if self._kept is not None:
      return simulation.store(self.state)
    from fedms_jax.persistence.snapshot import Snapshot

    snapshot = Snapshot(self.config.workdir)
    stack.callback(snapshot.close)
    snapshot.read(simulation.initial, simulation.stages)
    stage = self._stage()
    return snapshot.store(stage.folder, self.state.roles.personal)

  def _number(self, client: Any) -> int:
    """The number of a client, by its id."""
    federation = self._finished.simulation.federation
    names: Sequence[str] = federation.names
    if names and str(client) in names:
      return names.index(str(client))
    count = federation.train.num_clients
    if (
      not names and isinstance(client, int | np.integer) and 0 <= client < count
    ):
      return int(client)
    shown = ', '.join(names[:5]) + ', ...' if names else f'0 to {count - 1}'
    raise ValueError(
      f'`client`={client!r} is none of the run; allowed: {shown}.'
    )
