"""165 model-compression papers as live methods: slide, race, learn from, check, and use on your own model.

    from workbench import papers, show, explore, compress, load, encode, decode

Names are loaded when first used, so that ``import workbench`` costs nothing and a codec loads no network.
"""

from importlib import import_module as _import

_HOMES = dict.fromkeys(("papers", "explore", "race", "board", "save_table", "not_raced", "ledger", "compress", "encode",
                        "decode"), "api")
_HOMES |= dict.fromkeys(("show", "browse", "grade", "draw"), "lessons")
_HOMES |= {"advise": "choose", "try_own": "own_input", "load": "contracts.model"}
__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    value = globals()[name] = getattr(_import(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__():
    return sorted([*globals(), *_HOMES])
