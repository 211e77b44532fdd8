"""A network from scratch on all of CIFAR-10."""
