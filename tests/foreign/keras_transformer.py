"""Keras on JAX, as its text classification example is written: `stateless_call` of a list of variables."""

import os

import numpy as np

from tests.foreign.package import DIM, HEAD, HEADS, HIDDEN, LAYERS, TOKENS, VOCABULARY, Package

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported, which takes TensorFlow otherwise


def transformer():
  import keras
  from keras import layers

  ids = keras.Input((TOKENS.shape[1],), dtype="int32")
  x = layers.Embedding(VOCABULARY, DIM, name="tokens")(ids)
  for i in range(LAYERS):
    y = layers.LayerNormalization(name=f"norm_a_{i}")(x)
    x = x + layers.MultiHeadAttention(HEADS, HEAD, name=f"attention_{i}")(y, y, use_causal_mask=True)
    y = layers.LayerNormalization(name=f"norm_b_{i}")(x)
    y = layers.Dense(HIDDEN, activation="gelu", name=f"up_{i}")(y)
    x = x + layers.Dense(DIM, name=f"down_{i}")(y)
  model = keras.Model(ids, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)))
  params = {variable.path: variable.value for variable in model.trainable_variables}
  rest = [variable.value for variable in model.non_trainable_variables]
  apply = lambda params, ids: model.stateless_call([params[variable.path] for variable in model.trainable_variables],
                                                   rest, ids)[0]
  return Package(params, apply, np.asarray(TOKENS), out="attention/layers/*/attention_output/kernel",
                 down="down/layers/*/kernel", matrices=("{attention,up,down}/layers/**/kernel", "head/kernel"),
                 layers=("attention_*", "up_*", "down_*", "norm_a_*", "norm_b_*"))
