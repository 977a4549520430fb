"""Other wordings and mixtures of training examples, with the labels that they keep or share."""
