"""Loading of a config from a yaml file and KEY VALUE pairs. No data set is looked at here."""

import ast
import difflib
import os
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode

from d2x.config.keys import flat_items, get_base_cfg, upgrade_saved
from d2x.config.plugins import load_plugins
from d2x.config.values import require_values


def load_cfg(config_file: str | None = None, opts: Iterable[str] = (), *, plugins: Sequence[str] = ()) -> CfgNode:
    """Read a config file over the defaults, then ``KEY VALUE ...`` pairs over that.

    Args:
        plugins: packages with further detectors, besides those that the installed ones and ``PLUGINS`` bring.

    Raises:
        FileNotFoundError: the file (or one of its ``_BASE_`` files) does not exist.
        ValueError: unknown key (names the nearest known one), a value of the wrong type, or broken yaml.
    """
    opts = list(opts)
    content = _read(config_file) if config_file else {}
    plugins = list(dict.fromkeys([*plugins, *_names(content.get("PLUGINS")), *_plugins_in_words(opts)]))
    load_plugins(plugins)
    cfg = get_base_cfg()
    known = {key for key, _ in flat_items(cfg)}
    if config_file:
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
            upgrade_saved(cfg, content)
        except KeyError as error:
            raise ValueError(f"{config_file}: {_unknown_key(cfg, error)}") from error
        except Exception as error:
            raise ValueError(f"{config_file}: not a config ({_in_words(error)})") from error
    flags = [word for word in opts[::2] if str(word).startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} must stand before the first KEY VALUE pair ({opts[0]})")
    if len(opts) % 2:
        raise ValueError(f"overrides must be KEY VALUE pairs, got an odd number of words: {' '.join(opts)}")
    try:
        cfg.merge_from_list(opts)
    except (KeyError, AssertionError) as error:
        raise ValueError(_unknown_key(cfg, error, opts[::2])) from error
    except Exception as error:  # python's parser, too, which reads the values
        raise ValueError(f"override {' '.join(map(str, opts))[:200]}: {_in_words(error)}") from error
    gone = sorted(known - {key for key, _ in flat_items(cfg)})
    if gone:  # a whole node was given as one value
        raise ValueError(f"overrides must name single keys, not a group of them: {gone[0]} would be lost")
    cfg.PLUGINS = plugins
    require_values(cfg, get_base_cfg())
    return cfg


def _read(config_file: str) -> dict:
    """What a file says, with its bases; ``PLUGINS`` in it names packages that declare keys the rest may use."""
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"config file not found: {config_file}")
    try:
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)  # else tags in the yaml could run code
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{config_file}: its _BASE_ was not found: {error.filename}") from error
    except Exception as error:  # yaml, yacs and detectron2 raise anything for a text that is no config
        raise ValueError(f"{config_file}: not a config ({_in_words(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{config_file}: not a config (it holds a {type(content).__name__}, not KEY: VALUE lines)")
    return content


def _plugins_in_words(opts: Sequence[str]) -> list[str]:
    for key, value in zip(opts[::2], opts[1::2]):
        if key == "PLUGINS":
            try:
                return _names(ast.literal_eval(value) if isinstance(value, str) else value)
            except (ValueError, SyntaxError):
                return [value]
    return []


def _names(value: object) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []


def _unknown_key(cfg: CfgNode, error: Exception, candidates: Iterable[str] = ()) -> str:
    text = str(error).strip("'\"")
    known = [key for key, _ in flat_items(cfg)]
    wanted = next((key for key in candidates if key not in known), text.split("Non-existent config key:")[-1].strip())
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    return f"unknown config key '{wanted}'" + (f"; did you mean {near[0]}?" if near else "")


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
