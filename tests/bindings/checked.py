"""Simulated TensorRT objects behind the real surface: what the bindings refuse is refused here.

A simulated class has the name of a real one and as much of it as a test needs, in public names;
what is only the simulation's has a leading underscore, which code under test cannot reach.

    trt = checked_module(surface, [Runtime, ICudaEngine])   # for sys.modules["tensorrt"]
    engine = checked(ICudaEngine(...), surface, "ICudaEngine")
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from tests.bindings.signatures import fits
from tests.bindings.surface import Surface


def checked(thing: Any, surface: Surface, class_name: str) -> Any:
    """Wraps a simulated object so that only what its real class has can be read, set and called.

    As in the bindings, a name the class lacks and a read-only property raise AttributeError. An
    AssertionError tells of a call that no overload takes, of a value that a property does not
    take, and of a simulation that returns another type than the real method; NotImplementedError
    of a real name that the simulation lacks.
    """
    proxy = object.__new__(_proxy_class(surface, class_name))
    object.__setattr__(proxy, "_thing", thing)
    return proxy


def simulated(proxy: Any) -> Any:
    """The simulated object behind a proxy, with what it recorded; other things as they are."""
    return object.__getattribute__(proxy, "_thing") if isinstance(proxy, _Proxy) else proxy


def checked_module(surface: Surface, classes: Iterable[type] = ()) -> ModuleType:
    """What to put in the place of `tensorrt` or `tensorrt_rtx`.

    Enums and constants are those of the surface. Classes that are not simulated can be derived
    from, as ILogger and IProgressMonitor are: a method the real class lacks or calls with another
    number of arguments is an AssertionError when the subclass is made.
    """
    given = {cls.__name__: cls for cls in classes}
    strangers = set(given) - set(surface.members)
    assert not strangers, f"{surface} has no {', '.join(sorted(strangers))}"
    return _Module(surface, given)


class _Module(ModuleType):
    def __init__(self, surface: Surface, classes: Mapping[str, type]) -> None:
        super().__init__(surface.backend.replace("-", "_"))
        self.__version__ = surface.version
        self._surface, self._classes = surface, classes

    def __getattr__(self, name: str) -> Any:
        surface: Surface = self.__dict__["_surface"]
        if name not in surface.members:
            raise AttributeError(f"module {self.__name__!r} of {surface} has no {name!r}")
        if name in self._classes:
            value: Any = _constructor(surface, self._classes[name])
        elif surface.members[name].kind == "class":
            value = Dims if name == "Dims" else _base(surface, name)
        else:
            value = _constant(surface, name)
        setattr(self, name, value)  # the next time it is the same object
        return value


class _Proxy:
    """Behind it is `_thing`, a simulated object of the class this class is named like."""

    _surface: Surface

    def __getattr__(self, name: str) -> Any:
        surface, cls, thing = self._surface, type(self).__name__, simulated(self)
        member = surface.members.get(f"{cls}.{name}")
        if member is None or (member.kind == "property" and not member.readable):
            raise AttributeError(f"{cls} of {surface} has no {name!r} to read")
        if not hasattr(thing, name):
            raise NotImplementedError(f"the simulated {cls} lacks {name!r}")
        value = getattr(thing, name)
        if member.kind == "property":
            return _returned(surface, f"{cls}.{name}", member.readable, value)
        return _Call(surface, cls, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        surface, cls, thing = self._surface, type(self).__name__, simulated(self)
        member = surface.members.get(f"{cls}.{name}")
        if member is None or not member.writable:
            raise AttributeError(f"{cls} of {surface} has no {name!r} to write")
        is_none = value is None and member.writable in surface.classes
        assert is_none or fits(member.writable, value, surface.classes), (
            f"{cls}.{name} of {surface} takes {member.writable}, not {value!r}"
        )
        if not hasattr(thing, name):
            raise NotImplementedError(f"the simulated {cls} lacks {name!r}")
        setattr(thing, name, simulated(value))

    def __bytes__(self) -> bytes:
        assert type(self).__name__ == "IHostMemory", f"{type(self).__name__} is no buffer"
        return bytes(simulated(self))


class _Call:
    """A function of the simulation, called only as the real one can be."""

    def __init__(self, surface: Surface, cls: str, name: str, function: Callable[..., Any]) -> None:
        self._surface, self._class, self._name, self._function = surface, cls, name, function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        overload = self._surface.check_call(self._class, self._name, arguments, keywords)
        value = self._function(
            *map(simulated, arguments), **{key: simulated(v) for key, v in keywords.items()}
        )
        declared = overload.returns if overload else "object"
        return _returned(self._surface, f"{self._class}.{self._name}", declared, value)


class Dims:
    """A shape as the bindings return it: no tuple, and it compares with nothing but those."""

    __slots__ = ("_sizes",)

    def __init__(self, sizes: Iterable[int]) -> None:
        self._sizes = tuple(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        return self._sizes[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list):
            raise TypeError("Dims.__eq__ takes a list or a tuple")
        return self._sizes == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._sizes)


def _returned(surface: Surface, source: str, declared: str, value: Any) -> Any:
    """What the code under test gets: Dims for shapes, proxies for simulated objects."""
    if value is None and declared in surface.classes:
        return None
    if declared == "Dims":
        return Dims(value)
    if declared in ("List[Dims]", "list[Dims]"):
        return [Dims(sizes) for sizes in value]
    own = surface.members.get(type(value).__name__)
    if own is not None and own.kind == "class" and not isinstance(value, _Proxy | _Base):
        value = checked(value, surface, type(value).__name__)
    assert fits(declared, value, surface.classes), (
        f"the simulated {source} returns {value!r}, the real one {declared}"
    )
    return value


@functools.cache
def _proxy_class(surface: Surface, name: str) -> type[_Proxy]:
    """A class named like the real one, below those it derives from there."""
    assert surface.has(name), f"{surface} has no class {name}"
    bases = surface.members[name].bases
    parent = _proxy_class(surface, bases[0]) if bases else _Proxy
    return type(name, (parent,), {"_surface": surface} | _nested(surface, name))


def _constructor(surface: Surface, simulation: type) -> type[_Proxy]:
    """The real class as the module has it: called, it makes a simulated object."""
    name = simulation.__name__

    def __init__(self: _Proxy, *arguments: Any, **keywords: Any) -> None:
        make = _Call(surface, name, "__init__", lambda *a, **k: _keep(self, simulation(*a, **k)))
        make(*arguments, **keywords)

    return type(name, (_proxy_class(surface, name),), {"__init__": __init__})


def _keep(proxy: _Proxy, thing: Any) -> None:
    object.__setattr__(proxy, "_thing", thing)


class _BindingType(type):
    """Refuses, as pybind11 does, an object whose subclass did not call `__init__` of its base."""

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        made = super().__call__(*arguments, **keywords)
        if "_made" not in vars(made):
            raise TypeError(f"{cls._real}.__init__() must be called when overriding __init__")
        return made


class _Base(metaclass=_BindingType):
    """A real class that is not simulated: to be derived from, or made and handed on."""

    _surface: Surface
    _real: str

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._surface.check_call(self._real, "__init__", arguments, keywords)
        self._made = True

    def __init_subclass__(cls) -> None:
        overrides = {} if "_real" in vars(cls) else vars(cls)
        for name, function in overrides.items():
            if inspect.isfunction(function) and not name.startswith("_"):
                _check_override(cls._surface, cls._real, name, function)

    def __getattr__(self, name: str) -> Any:
        if self._surface.has(f"{self._real}.{name}"):
            raise NotImplementedError(f"{self._real}.{name} is virtual here, and not overridden")
        raise AttributeError(f"{self._real} of {self._surface} has no {name!r}")


def _check_override(surface: Surface, real: str, name: str, function: Callable[..., Any]) -> None:
    """TensorRT calls by position; a helper of the subclass starts with an underscore."""
    assert surface.has(f"{real}.{name}"), f"{real} of {surface} never calls a method {name!r}"
    for overload in surface.overloads(real, name):
        try:
            inspect.signature(function).bind(None, *overload.bindable.parameters)
        except TypeError as error:
            raise AssertionError(f"{surface} calls {overload.text}: {error}") from None


@functools.cache
def _base(surface: Surface, name: str) -> type[_Base]:
    bases = surface.members[name].bases
    parent = _base(surface, bases[0]) if bases else _Base
    body = {"_surface": surface, "_real": name} | _nested(surface, name)
    return _BindingType(name, (parent,), body)


def _nested(surface: Surface, name: str) -> dict[str, Any]:
    """Enums and constants in a class, such as `ILogger.Severity` and `ILogger.ERROR`."""
    inside = (path for path in surface.members if path.rpartition(".")[0] == name)
    kept = [path for path in inside if surface.members[path].kind in ("enum", "constant")]
    return {path.rpartition(".")[2]: _constant(surface, path) for path in kept}


def _constant(surface: Surface, path: str) -> Any:
    member = surface.members[path]
    if member.kind == "enum":
        return surface.enum(path)
    if member.kind == "function":
        raise NotImplementedError(f"the simulated module lacks {path}")
    return surface.enum(member.enum)[member.name] if member.enum else member.value
