"""Errors of the package.

Every error derives from :class:`CrysXPPError` and from ``ValueError`` or ``TypeError``, and is
built from one message, because matminer rebuilds exceptions from their text.
"""


class CrysXPPError(Exception):
    """Base class of all errors that this package raises on purpose."""


class SettingsError(CrysXPPError, ValueError):
    """An option has a value that makes no sense; the message names the option."""


class NoSelectorError(SettingsError, AttributeError):
    """The model was fitted without a feature selector, so that it has no ``feature_weights_``.

    For tools that look an estimator over, such as scikit-learn's display, the attribute is absent.
    """


class StructureError(CrysXPPError, ValueError):
    """A structure cannot become a crystal graph; the message names the site and the remedy."""


class StructureTypeError(CrysXPPError, TypeError):
    """The input is not a pymatgen Structure (a molecule, a composition, None ...)."""


class UnknownElementError(StructureError):
    """A species has no node features: a dummy species or an element past 100."""


class GraphError(CrysXPPError, ValueError):
    """A graph that was handed in lacks a field, or was built by another rule."""


class GraphStoreError(CrysXPPError, ValueError):
    """A graph store is damaged, foreign or of a later format; the message names the file."""


class ModelFileError(CrysXPPError, ValueError):
    """A model file is damaged, foreign or of a later format; the message names the file."""


class UnknownModelError(CrysXPPError, ValueError):
    """There is no shipped model of that name and no file at that path."""


class NetworkOutputError(CrysXPPError, ValueError):
    """A network gave numbers that are not finite; the message names the structure."""


class DataError(CrysXPPError, ValueError):
    """A table, a folder or a file of structures cannot be read; the message names the row."""


class MissingDependencyError(CrysXPPError, ValueError):
    """An optional package is needed and absent; the message says what to install."""
