"""Decoding: sampling filters, generation and beam search."""

from jaxft.decoding.beam_search import Beams, beam_search
from jaxft.decoding.conditional import stepwise_encoder_decoder
from jaxft.decoding.generate import Generated, generate
from jaxft.decoding.ngram_veto import ngram_veto, with_ngram_veto
from jaxft.decoding.sampling import min_p, sample, top_k, top_p
from jaxft.decoding.stepwise import Stepwise, stepwise_decoder
from jaxft.decoding.stop_strings import StopStrings, before_stop, stop_strings, token_pieces
from jaxft.decoding.tree_search import Fragment, SearchTree, tree_search
