"""Loaded models give the numbers of the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import references

pytest.importorskip('torch', reason='parity needs torch')
pytest.importorskip('transformers', reason='parity needs transformers')

TOLERANCE = 1e-4


def close(ours, theirs, mask=None):
  """Largest absolute difference is under the tolerance, where mask holds."""
  theirs = theirs.detach().numpy()
  assert ours.shape == theirs.shape
  difference = np.abs(np.asarray(ours, np.float32) - theirs)
  if mask is not None:
    difference = difference[np.asarray(mask)]
  assert difference.max() < TOLERANCE, difference.max()


def compare(case: references.Case, inputs, reference_inputs, folder):
  """Hidden states of every block and logits."""
  import torch

  theirs = references.build(case)
  checkpoint = references.reopen(theirs, folder)
  model, params, head = references.load(case, checkpoint)
  with torch.no_grad():
    out = theirs(**reference_inputs, output_hidden_states=True)
  states, features, logits = references.walk(
    model.backbone, params, head, inputs
  )
  mask = model.backbone.mask(inputs)
  assert len(states) == len(out.hidden_states)
  for state, expected in zip(states[:-1], out.hidden_states, strict=False):
    close(state, expected, mask)
  if case.model.startswith(('GPT2', 'Llama')):
    # There, the last of the hidden states has gone through the final norm.
    if case.options.head == 'causal_lm':
      close(features, out.hidden_states[-1], mask)
  else:
    close(states[-1], out.hidden_states[-1], mask)
  close(logits, out.logits, mask if logits.ndim == 3 else None)


@pytest.mark.parametrize('name', references.CASES)
def test_every_block_and_the_logits_equal_the_reference(name, tmp_path):
  case = references.CASES[name]
  if case.inputs == 'images':
    inputs = references.images()
    usual = {
      'vit': ((0.5,) * 3, (0.5,) * 3),
      'deit': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
    given = {'pixel_values': references.pixels(inputs, *usual[name])}
  else:
    inputs = references.tokens()
    padding = 1 if case.kind == 'Roberta' else 0
    given = references.torch_tokens(inputs, padding)
  compare(case, inputs, given, tmp_path)
