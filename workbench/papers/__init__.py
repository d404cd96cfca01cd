"""The papers: one folder a family, one file a paper.

The package can be called, so that ``from workbench import papers; papers("pruning")`` lists the catalogue whether or not a paper was imported before
(importing one puts this package, instead of `api.papers`, under that name).
"""

import sys
from types import ModuleType


class _Catalogue(ModuleType):
    def __call__(self, family: str | None = None):
        from ..api import papers

        return papers(family)


sys.modules[__name__].__class__ = _Catalogue
