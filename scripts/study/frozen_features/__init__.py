"""Stage one: heads on features of a pretrained network, in seconds each, for every loss."""
