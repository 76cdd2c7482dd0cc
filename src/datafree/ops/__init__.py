"""Functions of tensors: losses, augmentation, boxes, non-maximum suppression, network modes."""
