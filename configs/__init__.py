"""The experiments that `--config NAME` finds: one small file each, a function `get_config`."""
