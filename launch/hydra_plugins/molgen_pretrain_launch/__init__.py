"""Where Hydra finds the launchers and sweepers. No logic: that is in molgen_pretrain.sweep and .launchers."""
