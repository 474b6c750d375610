"""Copies of a configuration with other values."""


def changed(config, changes):
    """A frozen copy of a configuration with other values: {'TRAIN.EPOCHS': 3}."""
    copy = config.clone()
    copy.defrost()
    for key, value in changes.items():
        *sections, name = key.split(".")
        node = copy
        for section in sections:
            node = node[section]
        node[name] = value
    copy.freeze()
    return copy
