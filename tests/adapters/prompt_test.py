"""Soft prompts before the tokens of an input."""

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.adapters import lora, prompt
from fedms_jax.algorithms import adapted, soft_prompts
from fedms_jax.models import pretrained, tasks
from fedms_jax.models.family import Options
from tests import folders


def test_a_prompt_comes_first_and_exists():
  x = jnp.arange(12.0).reshape(2, 3, 2)
  mask = jnp.array([[True, True, False], [True, False, False]])
  longer, held = prompt.prepend(jnp.full((2, 2), 9.0), x, mask)
  assert (longer[:, :2] == 9).all()
  np.testing.assert_array_equal(longer[:, 2:], x)
  assert held.tolist() == [
    [True, True, True, True, False],
    [True, True, True, False, False],
  ]
  assert prompt.prepend(jnp.zeros((2, 2)), x, None)[1] is None


def test_words_as_a_prompt_of_llama_give_the_logits_of_the_whole_text():
  """Its tokens know their distances alone, so that what is in front may be
  tokens or vectors; texts of different lengths, with their own last token."""
  options = Options(classes=3)
  model = pretrained.model(folders.CONFIGS['llama'], options).backbone
  rng = np.random.default_rng(0)
  base = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(3 * folders.random(path, x, rng)),
    jax.eval_shape(model.init, jax.random.key(0)),
  )
  head = model.init_head(jax.random.key(1))
  setting = adapted.Setting(
    model, tasks.classification(), None, None, None, lora.Spec(1, 1.0, ())
  )
  form = soft_prompts.of_inputs(setting, 2)
  whole = np.array([[7, 8, 3, 4, 5], [7, 8, 6, 5, -1]], np.int32)
  rest = whole[:, 2:]
  batch = {'inputs': rest, 'prefix': model.embed(base, rest)}
  frozen = {'base': base, 'start': {'head': head}}
  parts = form.fresh(jax.random.key(0), frozen)
  assert parts['prompt'].shape == (2, base['stem']['word'].shape[1])
  parts['prompt'] = base['stem']['word'][np.array([7, 8])]
  found = jax.jit(form.logits)(frozen, parts, batch)

  def plain(tokens):
    return model.logits(base, head, pretrained.encode(model, base, tokens))

  np.testing.assert_allclose(found, jax.jit(plain)(whole), atol=1e-4)
  np.testing.assert_allclose(
    form.plain(frozen, batch), jax.jit(plain)(rest), atol=1e-4
  )
  assert np.abs(found - plain(rest)).max() > 1e-3
