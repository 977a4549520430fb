"""What an encoder-decoder learns from: a prompt that the encoder reads, and the answer that the decoder is to give."""
