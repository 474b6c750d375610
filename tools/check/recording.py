"""A configuration that notes which of its keys are asked for."""

from yacs.config import CfgNode


class Recording:
    """Reads like the CfgNode that it wraps; `read` collects the full names of the values asked for.

    Asking a section for all its items asks for each of them (models.build reads MODEL.SHORTCUT so); copying the whole
    tree from its root, as a checkpoint does, asks for none.
    """

    def __init__(self, node, read=None, prefix=""):
        self._node, self.read, self._prefix = node, set() if read is None else read, prefix

    def __getattr__(self, name):
        return self[name] if name in self._node else getattr(self._node, name)

    def __getitem__(self, name):
        value = self._node[name]
        if isinstance(value, CfgNode):
            return Recording(value, self.read, f"{self._prefix}{name}.")
        self.read.add(self._prefix + name)
        return value

    def __contains__(self, name):
        return name in self._node

    def __iter__(self):
        return iter(self._node)

    def __len__(self):
        return len(self._node)

    def get(self, name, default=None):
        """The value of `name`, or `default`."""
        return self[name] if name in self._node else default

    def items(self):
        """(name, value) pairs."""
        if self._prefix:
            values = (name for name, value in self._node.items() if not isinstance(value, CfgNode))
            self.read.update(self._prefix + name for name in values)
        return self._node.items()
