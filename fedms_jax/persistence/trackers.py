"""Weights & Biases, and MLflow.

Both go by their own environment variables: WANDB_MODE (`offline` writes to the
workdir alone), WANDB_PROJECT, WANDB_ENTITY; MLFLOW_TRACKING_URI (none: a file
in the workdir) and MLFLOW_EXPERIMENT_NAME. A run that is resumed goes on as the
same run there, whose number is kept in the workdir.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import secrets
import time
from typing import Any

from fedms_jax.persistence import files, loggers
from fedms_jax.persistence.loggers import Setting, Values

PROJECT = 'fedms_jax'
_MOST = 100  # parameters, or 1,000 metrics, in one message to MLflow


def _kept(path: pathlib.Path) -> str:
  """What a file holds, '' if it is not there."""
  return path.read_text(encoding='utf-8').strip() if path.exists() else ''


class Wandb:
  """Values of rounds over `step`, settings as config, scores as summary."""

  def __init__(self, setting: Setting):
    """Begins or goes on with the run.

    Raises:
      ValueError: nobody is logged in, or there is no such project.
    """
    wandb: Any = importlib.import_module('wandb')  # not always installed
    folder = setting.root / 'wandb'
    folder.mkdir(parents=True, exist_ok=True)
    number = _kept(folder / 'id') or secrets.token_hex(4)
    files.write_atomic(folder / 'id', number)
    how: dict[str, Any] = {}
    if os.environ.get('WANDB_MODE') != 'offline':
      how['resume'] = 'allow'
    try:
      self._run = wandb.init(
        project=os.environ.get('WANDB_PROJECT', PROJECT),
        dir=str(setting.root),
        id=number,
        name=setting.root.name,
        config=dict(setting.settings),
        # What is printed stays ours.
        settings=wandb.Settings(console='off', quiet=True),
        **how,
      )
    except wandb.errors.Error as e:
      text = ' '.join(str(e).split())
      raise ValueError(
        f'wandb cannot begin: {text} Log in by `wandb login`, or set WANDB_MODE'
        '=offline.'
      ) from e
    self._run.define_metric('*', step_metric='step')

  def begin(self, first: int | None) -> None:
    """Steps that an earlier start has told of come again, as they were."""

  def write(self, stage: str, step: int, values: Values) -> None:
    self._run.log({**loggers.numbers(values), 'step': step, 'stage': stage})

  def finish(self, step: int, summary: Values) -> None:
    self._run.summary.update(loggers.scores(summary) | {'rounds': step})

  def close(self) -> None:
    self._run.finish()


class Mlflow:
  """Values of rounds by step, settings as parameters, scores as metrics, the
  stage of the newest round as a tag."""

  def __init__(self, setting: Setting):
    """Begins or goes on with the run.

    Raises:
      ValueError: there is no such store.
    """
    mlflow: Any = importlib.import_module('mlflow')  # see above
    self._make: Any = importlib.import_module('mlflow.entities')
    folder = setting.root / 'mlflow'
    folder.mkdir(parents=True, exist_ok=True)
    where = os.environ.get('MLFLOW_TRACKING_URI')
    if not where:
      where = (folder / 'runs').absolute().as_uri()
      # A folder of files is what needs no database; MLflow asks to be told so.
      os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
    try:
      self._client = mlflow.MlflowClient(tracking_uri=where)
      self._number = self._begun(setting, folder / 'id')
    except mlflow.MlflowException as e:
      text = ' '.join(str(e).split())
      raise ValueError(
        f'MLflow cannot begin at {where}: {text} Set MLFLOW_TRACKING_URI.'
      ) from e
    self._stage, self._finished = '', False
    self._error = mlflow.MlflowException

  def _begun(self, setting: Setting, kept: pathlib.Path) -> str:
    """The number of the run, made if it is new."""
    if number := _kept(kept):
      self._client.update_run(number, status='RUNNING')  # it had ended
      return number
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    found = self._client.get_experiment_by_name(name)
    there = found and found.experiment_id
    experiment = there or self._client.create_experiment(name)
    run = self._client.create_run(experiment, run_name=setting.root.name)
    number = run.info.run_id
    files.write_atomic(kept, number)
    told = [
      self._make.Param(name, str(value))
      for name, value in setting.settings.items()
    ]
    for start in range(0, len(told), _MOST):
      self._client.log_batch(number, params=told[start : start + _MOST])
    return number

  def begin(self, first: int | None) -> None:
    """As in `Wandb`."""

  def write(self, stage: str, step: int, values: Values) -> None:
    self._log(step, loggers.numbers(values))
    if stage != self._stage:
      self._call('set_tag', 'stage', stage)
      self._stage = stage

  def _log(self, step: int, values: dict[str, float]) -> None:
    now = int(1000 * time.time())
    made = [self._make.Metric(k, v, now, step) for k, v in values.items()]
    self._call('log_batch', metrics=made)

  def _call(self, name: str, *args, **kwargs) -> None:
    """Calls the client; a server that is gone ends the run in a line."""
    try:
      getattr(self._client, name)(self._number, *args, **kwargs)
    except self._error as e:
      text = ' '.join(str(e).split())
      raise OSError(
        f'MLflow: {text} Go on with `resume` when it is there.'
      ) from e

  def finish(self, step: int, summary: Values) -> None:
    self._log(step, loggers.scores(summary))
    self._finished = True

  def close(self) -> None:
    how = 'FINISHED' if self._finished else 'KILLED'
    self._call('set_terminated', how)
