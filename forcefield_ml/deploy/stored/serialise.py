"""Read OpenMM's XML without running code that it may carry.

`openmm.XmlSerializer.deserialize` unpickles the function of every PythonForce it meets, also inside a CustomCVForce,
and also where a State or an Integrator was expected: whoever wrote the file runs code of his choice. `read_xml` looks
first. See docs/serialisation.md.
"""

from __future__ import annotations

import pickle
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

import openmm

from forcefield_ml.deploy.stored import pickles
from forcefield_ml.deploy.stored.locate import locate
from forcefield_ml.errors import SerialisationError

OWN = {
    ("forcefield_ml.deploy.force.openmm_force", "ModelCallable"),
    ("forcefield_ml.deploy.system.mm", "SubtractMM"),
    ("forcefield_ml.deploy.system.mm", "AddToSolute"),
}
"""Module and name of what a PythonForce of ours calls; nothing else is unpickled."""

MAX_DEPTH = 100
"""Levels of XML elements within each other; OpenMM writes some ten."""

PYTHON_FORCE = "PythonForce"
TORCH_FORCE = "TorchForce"

ALTERNATIVE = (
    "Get the MM system's own XML instead and add the model to it (model.add_to_system), or, if you trust whoever "
    "wrote this file as you would trust a program of theirs, read it with openmm.XmlSerializer.deserialize"
)


def read_system(source: Path | str, models: Iterable[Path | str] = ()) -> openmm.System:
    """Read a System from XML; no code in it is run, and its models are found and verified.

    Parameters
    ----------
    source
        XML as text, or the path of a file.
    models
        Folders or files where models are looked for that are not at the path they were stored with. The folder of
        the XML file and those in the environment variable FORCEFIELD_ML_MODELS are looked at, too.

    Returns
    -------
    openmm.System
        As `openmm.XmlSerializer` would make it; a model found elsewhere is remembered by its new path.

    Raises
    ------
    SerialisationError
        If the XML is damaged, no System, or holds a PythonForce of others or a TorchForce.
    ModelFileError
        If a model is missing or has changed.
    """
    found = read_xml(source, models)
    if not isinstance(found, openmm.System):
        raise SerialisationError(
            f"{_name(source)} holds a {type(found).__name__}, not a System; forcefield_ml.read_xml reads it"
        )
    return found


def read_xml(source: Path | str, models: Iterable[Path | str] = ()) -> Any:
    """Read what `openmm.XmlSerializer.serialize` wrote: a System, Force, Integrator, State or tabulated function.

    Parameters and errors as of `read_system`.
    """
    text, folder = _text_of(source)
    name = _name(source)
    root = parse(text, name)
    places = [*models, *([folder] if folder else [])]
    for element in root.iter():
        if element.get("type") == PYTHON_FORCE:
            callable_ = _callable_of(element, name)
            if hasattr(callable_, "sha256"):
                found = str(locate(callable_.path, callable_.sha256, places))
                callable_.path = callable_.path if _same(callable_.path, found) else found
            # What OpenMM unpickles is what is pickled here, not what the file holds.
            element.set("function", pickle.dumps(callable_).hex())
    canonical = ElementTree.tostring(root, encoding="unicode")
    try:
        return openmm.XmlSerializer.deserialize(canonical)
    except Exception as error:  # OpenMM raises Exception and OpenMMException alike
        raise SerialisationError(f"OpenMM {openmm.__version__} cannot read {name}: {error}") from None


def check_xml(source: Path | str) -> list[str]:
    """Look an XML file over as `read_xml` does, without making anything of it; models are not looked for.

    Returns
    -------
    list of str
        What it holds: the type of its root and of everything inside that has one.

    Raises
    ------
    SerialisationError
        As `read_system`.
    """
    text, _ = _text_of(source)
    root = parse(text, _name(source))
    for element in root.iter():
        if element.get("type") == PYTHON_FORCE:
            _callable_of(element, _name(source))
    return [kind for element in root.iter() if (kind := element.get("type", "")) and not kind.isdecimal()]


def parse(text: str, name: str = "the XML") -> ElementTree.Element:
    """Parse OpenMM's XML; refuse what could be read in two ways, and every type of object that could run code.

    Parameters
    ----------
    text
        XML.
    name
        For messages.

    Returns
    -------
    Element
        The root. Of a PythonForce its pickle is not looked at yet.

    Raises
    ------
    SerialisationError
        As `read_system`.
    """
    parser = ElementTree.XMLParser(target=_Builder(name))
    try:
        parser.feed(text)
        root = parser.close()
    except ElementTree.ParseError as error:
        raise SerialisationError(f"{name} is no XML or damaged ({error}); get or write it again") from None
    level, depth = [root], 0
    while level:
        level, depth = [child for element in level for child in element], depth + 1
        if depth > MAX_DEPTH:
            raise SerialisationError(f"{name} has more than {MAX_DEPTH} elements within each other; OpenMM writes ten")
    for element in root.iter():
        kind = element.get("type", "")
        if "{" in element.tag or any("{" in key for key in element.keys()):
            raise SerialisationError(f"{name} uses XML namespaces, which OpenMM does not write")
        if not kind or kind.isdecimal():  # CustomManyParticleForce numbers the types of its particles
            continue
        if kind == TORCH_FORCE:
            raise SerialisationError(
                f"{name} holds a TorchForce, which cannot be read back: it carries a program instead of a path, and "
                "openmmtorch 1.5 crashes the process that reads it with this OpenMM. Make the System again: read the "
                "MM system's own XML and add the model (model.add_to_system), with backend='pythonforce' if you "
                "mean to store it"
            )
        if not isinstance(getattr(openmm, kind, None), type):
            raise SerialisationError(
                f"{name} holds a {kind!r}, which is no class of OpenMM {openmm.__version__} but of a plugin that "
                f"nobody has looked at here. {ALTERNATIVE}"
            )
        if "function" in element.attrib and kind != PYTHON_FORCE:
            raise SerialisationError(f"{name} holds a {kind} with a function, which OpenMM does not write")
    return root


def unpickle(data: bytes) -> Any:
    """Return the callable in a pickle, if it is one of ours with plain values.

    Parameters
    ----------
    data
        As in a PythonForce.

    Raises
    ------
    RefusedPickle
        If it is something else; nothing of it was run.
    """
    result = pickles.load(data, _find)
    kind = type(result)
    if (kind.__module__, kind.__qualname__) not in OWN:
        raise pickles.RefusedPickle(f"a {kind.__name__} instead of the callable of a force")
    allowed = {field.name for field in fields(kind) if not field.name.startswith("_")}
    needed = {field.name for field in fields(kind) if field.name in allowed and not hasattr(kind, field.name)}
    if not all(type(key) is str for key in vars(result)):
        raise pickles.RefusedPickle(f"a {kind.__name__} with a value that has no name")
    state = {key: value for key, value in vars(result).items() if not key.startswith("_")}
    if not needed <= state.keys() <= allowed:
        raise pickles.RefusedPickle(
            f"a {kind.__name__} with the values {', '.join(state)}; expected {', '.join(allowed)}"
        )
    if not pickles.is_plain(state):
        raise pickles.RefusedPickle(f"a {kind.__name__} with values that are not plain")
    hints = get_type_hints(kind)
    for key, value in state.items():
        expected = get_origin(hints[key]) or hints[key]
        if type(value) is not expected:
            raise pickles.RefusedPickle(
                f"a {kind.__name__} whose {key} is of type {type(value).__name__}, not {expected.__name__}"
            )
    if any(value is not None for key, value in vars(result).items() if key.startswith("_")):
        raise pickles.RefusedPickle(f"a {kind.__name__} with values of its own use")
    return result


def _find(module: str, name: str) -> Any:
    if (module, name) not in OWN:
        raise pickles.RefusedPickle(f"names {module}.{name}")
    from importlib import import_module

    return getattr(import_module(module), name)


def _callable_of(element: ElementTree.Element, name: str) -> Any:
    """Return the callable of a PythonForce, and that of no other."""
    label = element.get("name") or PYTHON_FORCE
    try:
        result = unpickle(bytes.fromhex(element.get("function", "")))
    except (pickles.RefusedPickle, ValueError) as error:
        _refuse(name, label, error)
    inner = getattr(result, "system_xml", None)
    if inner is not None:
        # The MM system that a force of ours evaluates on its own; it needs no Python.
        kinds = [part.get("type") for part in parse(inner, f"the MM system inside {label!r} of {name}").iter()]
        if PYTHON_FORCE in kinds:
            _refuse(name, label, ValueError("the MM system inside it holds another PythonForce"))
    return result


def _refuse(name: str, label: str, error: Exception) -> NoReturn:
    raise SerialisationError(
        f"{name} holds a PythonForce {label!r} that is not one of forcefield-ml's with plain values ({error}); it was "
        f"not run. {ALTERNATIVE}"
    ) from None


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree, and refuses a document type: it could define entities that grow without bound."""

    def __init__(self, name: str):
        super().__init__()
        self._source = name

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse."""
        raise SerialisationError(f"{self._source} has a document type, which OpenMM does not write")


def _text_of(source: Path | str) -> tuple[str, Path | None]:
    """Return the text, and the folder it came from."""
    if isinstance(source, str) and source.lstrip().startswith("<"):
        return source, None
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8"), path.resolve().parent
    except FileNotFoundError:
        raise SerialisationError(f"there is no file {path}; give a file, or XML as text") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SerialisationError(f"cannot read {path}: {error}") from None


def _name(source: Path | str) -> str:
    return "the XML" if isinstance(source, str) and source.lstrip().startswith("<") else str(source)


def _same(recorded: str, found: str) -> bool:
    """Tell whether a model was found where it was recorded."""
    from forcefield_ml.deploy.stored.locate import record

    return recorded in (found, record(Path(found)))
