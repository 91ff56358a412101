"""Small command-line tools, each `python -m molgen_pretrain.tools.NAME`."""
