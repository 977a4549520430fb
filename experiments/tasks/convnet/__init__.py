"""EfficientNet-Lite0, pretrained on ImageNet: what it sees while frozen, and its last block when that is tuned."""
