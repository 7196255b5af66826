"""How the embedded backbone ``inctrl-tiny`` came to be: ``python -m anomalib_inctrl.pretraining`` does it again."""
