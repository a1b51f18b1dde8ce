"""Old home of ``write_release``, which is in ``crysxpp_mm.release`` now."""

from crysxpp_mm.deprecation import moved_names

__getattr__ = moved_names(__name__, {"write_release": "crysxpp_mm.release"})
