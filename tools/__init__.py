"""The command-line tools. An installed copy has them as ``d2x.tools``: ``python -m d2x.tools.train_net --help``."""
