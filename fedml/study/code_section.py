"""``[code]``: a study's own code, pinned by SHA-256; and the form of names that refer to it.

[code]
files = ["nets/my_net.py"]              # reading the study turns each file into its module's name and SHA-256
packages = ["my_pkg==1.2.0"]            # and each installed distribution into its version and a SHA-256 over its files

[model]
image = { net = "my_net:MyNet", width = 32 }

The bytes are not part of the study: a site reads the same files, approves them, and runs these bytes only (docs/own-code.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, WithJsonSchema, model_serializer, model_validator
from pydantic_core import PydanticKnownError

from fedml.study.section import OWN, Option, Section
from fedml.study.series_section import gather_channels
from fedml.study.task_traits import either

MODULE = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"
DISTRIBUTION = "fedml-cohorts"  # of this software
_OPTIONS = "options"
Given = Option | tuple[Option, ...]


def is_own(name: str) -> bool:
    """Whether ``name`` refers to own code, as ``module:name``."""
    return ":" in name


def module_of(name: str) -> str:
    """The module in ``module:name``."""
    return name.partition(":")[0]


def _own(name: str) -> str:
    if not re.fullmatch(OWN, name):
        raise ValueError(f'"{name}" names no own code; write "module:name", such as "my_net:MyNet" of a file my_net.py in [code] files')
    return name


OwnName = Annotated[str, AfterValidator(_own)]


def known_or_own(known: Collection[str]) -> Callable[[str], str]:
    """Validates the name of one of ``known``, or of own code."""

    def check(name: str) -> str:
        if name not in known and not is_own(name):
            raise PydanticKnownError("literal_error", {"expected": either(list(known)).replace('"', "'")})
        return name if name in known else _own(name)

    return check


def names_schema(known: Sequence[str]) -> WithJsonSchema:
    """The schema of such a name."""
    return WithJsonSchema({"anyOf": [{"enum": [*known], "type": "string"}, {"type": "string", "pattern": OWN}]})


class CodeFile(Section):
    """One file: the name by which the study refers to it, and the SHA-256 of its bytes."""

    module: Annotated[str, Field(pattern=MODULE)] = Field(description="name of the file without .py")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="SHA-256 of the file's bytes, hexadecimal")


class CodePackage(Section):
    """One installed distribution whose modules the study refers to by their dotted names."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(description="name of the distribution, as pip has it")
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.!+_-]{1,40}$")] = Field(description="its exact version")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="SHA-256 over its files, hexadecimal")
    modules: Annotated[tuple[Annotated[str, Field(pattern=MODULE)], ...], Field(min_length=1, max_length=50)] = Field(
        description="names under which it is imported"
    )


class Code(Section):
    """``[code]``: the modules of the study's own code."""

    modules: Annotated[tuple[CodeFile, ...], Field(max_length=50)] = Field(
        default=(), description='each file\'s name and SHA-256; files = ["my_net.py"] fills it'
    )
    packages: Annotated[tuple[CodePackage, ...], Field(max_length=20)] = Field(
        default=(), description="installed distributions, each with its version and a SHA-256 over its files"
    )

    @model_serializer(mode="wrap")
    def _without_no_packages(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if not self.packages:
            values.pop("packages", None)
        return values

    @model_validator(mode="after")
    def _once(self) -> Self:
        if not (self.modules or self.packages):
            raise ValueError('write files = ["my_net.py"] or packages = ["my_pkg==1.2.0"]')
        names = [file.module for file in self.modules]
        if len(set(names)) < len(names):
            raise ValueError("two files have the same name; rename one of them")
        names += [module for package in self.packages for module in package.modules]
        if len(set(names)) < len(names):
            raise ValueError("two of files and packages are imported by the same name; rename a file, or take a package away")
        return self

    def digest_of(self, module: str) -> str:
        """The SHA-256 of a module's file, or over the files of the package that a dotted name is in; "" if there is no such module."""
        packages = (package.sha256 for package in self.packages if module.partition(".")[0] in package.modules)
        return next((file.sha256 for file in self.modules if file.module == module), "") or next(packages, "")

    def names(self, place: str = "") -> str:
        """The files and packages, for a sentence: ``my_net.py, my_pkg 1.2.0``. ``place``: written before each file."""
        return ", ".join([*(f"{place}{file.module}.py" for file in self.modules), *(f"{p.name} {p.version}" for p in self.packages)])


def gather_options(plan: Any) -> Any:
    """A study's plan with the options of own code, which a file has as further keys, under ``options``, and with named channels
    (``fedml.study.series_section.gather_channels``). Not in place.

    Strict validation takes JSON; a validator before it would make it take Python's types, so the plan is changed before.
    """
    plan = _changed(
        gather_channels(plan), "model", lambda model: {part: _with_options(section, "net", ("pooling",)) for part, section in model.items()}
    )
    own = ("sha256",)
    return _changed(
        plan, "cohort", lambda cohort: _changed(
            cohort, "image", lambda image: {
                key: [_with_options(item, "name", own) for item in value] if key == "transforms" and isinstance(value, list) else value
                for key, value in image.items()
            },
        ),
    )  # fmt: skip


def _changed(plan: Any, key: str, change: Callable[[Mapping[str, Any]], Any]) -> Any:
    if isinstance(plan, Mapping) and isinstance(plan.get(key), Mapping):
        return {**plan, key: change(plan[key])}
    return plan


def _with_options(given: Any, key: str, kept: Collection[str]) -> Any:
    """``given`` with all keys but ``key`` and ``kept`` under ``options``, if ``key`` names own code or a transform, and it has none."""
    if not isinstance(given, Mapping) or _OPTIONS in given or not (is_own(str(given.get(key, ""))) or key == "name"):
        return given
    stay = {key, *kept}
    return {**{k: v for k, v in given.items() if k in stay}, _OPTIONS: {k: v for k, v in given.items() if k not in stay}}


class OwnOptions(Section):
    """Base of a network's section: where ``net`` is own code, the keys besides ``net`` and ``pooling`` are its options."""

    options: dict[str, Given] | None = Field(default=None, description="net of own code: its arguments, which are written as further keys")

    @model_serializer(mode="wrap")
    def _without_unused_options(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.options is None:
            values.pop("options", None)
        return values

    @model_validator(mode="after")
    def _of_own_code(self) -> Self:
        net: str = vars(self)["net"]
        if (self.options is not None) != is_own(net):
            raise ValueError(f'options are for own code, such as net = "my_net:MyNet"; net is "{net}"')
        return self
