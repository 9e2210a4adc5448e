"""The pipeline's one configuration file, typed and strict: unknown keys are errors that name the closest key."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from data_pipeline.engine import Limits
from data_pipeline.entries.curate import Criteria
from data_pipeline.errors import ConfigError
from data_pipeline.labels.label import Reference
from data_pipeline.labels.potential import Potential
from data_pipeline.refinement.config import RefinementConfig
from data_pipeline.schema import FORCES, TASKS
from data_pipeline.settings import Execution, Section
from data_pipeline.sources.clusters import IDENTITIES, clusters_url
from data_pipeline.sources.ids import normalise_id, read_ids
from data_pipeline.sources.rcsb import DOWNLOAD_URL, SEARCH_URL
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, expand_force_field, locate_force_field
from data_pipeline.systems.sample import CUTOFF

ForceFieldFiles = Annotated[
    list[str], BeforeValidator(lambda names: expand_force_field(names) if isinstance(names, str | list) else names)
]
"""Files of a force field; a name of `systems.FORCE_FIELDS` becomes its files."""

_WEB = "^https?://"


class SourceConfig(Section):
    """Where entries come from."""

    kind: Literal["mirror", "rcsb", "peptides"] = Field(
        default="mirror", description="A folder of files, the archive itself, or short peptides that are built."
    )
    path: str = Field(
        description="The mirror's folder, or the one that keeps what is fetched or built, relative to this file."
    )
    search_url: str = Field(default=SEARCH_URL, pattern=_WEB, description="Rcsb: the search service.")
    download_url: str = Field(default=DOWNLOAD_URL, pattern=_WEB, description="Rcsb: the folder of ID.cif.gz.")
    requests_per_second: float = Field(default=4.0, gt=0, le=20, description="Rcsb: all connections together.")
    contact: str = Field(
        default="", pattern=r"^[\x20-\x7e]*$", description="Rcsb: your mail address or page, told to the server."
    )
    max_age: float | None = Field(
        default=None, ge=0, description="Rcsb: days that a search's answer is kept; null for ever, 0 asks anew."
    )
    max_entries: int | None = Field(default=None, ge=1, description="Rcsb: only so many of what the search finds.")
    length: int = Field(default=3, ge=2, le=50, description="Peptides: residues of each.")
    rounds: int = Field(
        default=10, ge=1, le=20, description="Peptides: 20 each, every residue once at every place; neighbours differ."
    )

    @model_validator(mode="after")
    def _of_this_kind(self) -> SourceConfig:
        defaults = type(self).model_fields
        changed = [name for name, value in self if name not in ("kind", "path") and value != defaults[name].default]
        for kind in ("rcsb", "peptides"):
            strange = [name for name in changed if kind != self.kind and name in self._options_of(kind)]
            if strange:
                raise ValueError(f"{', '.join(strange)} without kind: {kind}; kind {self.kind} has no use for it")
        return self

    @classmethod
    def _options_of(cls, kind: str) -> list[str]:
        own = ["length", "rounds"]
        others = [name for name in cls.model_fields if name not in ("kind", "path", *own)]
        return {"mirror": [], "rcsb": others, "peptides": own}[kind]

    def options(self, criteria: Criteria) -> dict[str, Any]:
        """Return the keyword arguments of `sources.open_source` besides kind and path."""
        asked = {"criteria": criteria} if self.kind == "rcsb" else {}
        return {**asked, **self.model_dump(include=set(self._options_of(self.kind)))}


class SelectConfig(Section):
    """Which entries are used; the limits default to the paper's criteria, null lifts one."""

    n_chains: int | None = Field(default=1, description="Polymer chains of any kind.")
    max_residues: int | None = Field(default=200, description="Fewer residues than this.")
    min_residues: int | None = Field(default=None, description="At least so many residues.")
    method: str | None = Field(default="X-RAY DIFFRACTION", description="The only experimental method.")
    max_resolution: float | None = Field(default=2.5, description="Å; strictly better than this.")
    max_models: int | None = Field(default=1, description="Models in the file.")
    max_internal_missing: int | None = Field(
        default=None, ge=0, description="Residues without coordinates inside the chain, all gaps together."
    )
    max_gap: int | None = Field(default=None, ge=0, description="Residues of the longest gap inside the chain.")
    min_observed: float | None = Field(
        default=None, ge=0, le=1, description="Share of the residues with coordinates, ends included."
    )
    modified: Literal["repair", "reject"] = Field(
        default="repair", description="Residues besides the twenty; repaired only where their parent is known."
    )
    ligands: Literal["keep", "reject"] | list[str] = Field(
        default="keep", description="What preparation removes; a list names those that an entry may have."
    )
    disulfides: Literal["any", "required", "none"] = Field(default="any", description="As the header declares them.")
    altlocs: Literal["keep", "reject"] = Field(default="keep", description="Alternative locations in the chain.")
    insertion_codes: Literal["keep", "reject"] = Field(default="keep", description="In the chain's numbering.")
    ids: list[str] | None = Field(default=None, description="Only these entries.")
    ids_file: str | None = Field(
        default=None, description="Only these and `ids`: a text file of ids, # before remarks, relative to this file."
    )
    limit: int | None = Field(default=None, ge=1, description="Only so many, spread over splits and clusters.")
    prefer: Literal["random", "smallest"] = Field(
        default="random", description="Which a limit or an even draw takes first."
    )
    one_per_cluster: bool = Field(default=False, description="Only the best resolved entry of each sequence cluster.")

    def wanted(self) -> list[str] | None:
        """Return the ids asked for, sorted, or None where every entry of the source is asked for."""
        if self.ids is None and self.ids_file is None:
            return None
        listed = read_ids(self.ids_file) if self.ids_file is not None else []
        return sorted({*listed, *map(normalise_id, self.ids or ())})

    def criteria(self) -> Criteria:
        """Return the limits as `curate.judge` takes them."""
        values = {field.name: getattr(self, field.name) for field in fields(Criteria)}
        if not isinstance(self.ligands, str):
            values["ligands"] = tuple(name.upper() for name in self.ligands)
        return Criteria(**values)


class SplitConfig(Section):
    """Whole sequence clusters go to one split each: fractions (adding up to 1) or whole numbers of entries."""

    identity: float = Field(default=0.2, gt=0, le=1, description="Sequences at least so similar share a cluster.")
    method: Literal["auto", "blastp", "mmseqs", "python", "rcsb"] = Field(
        default="auto",
        description="Who compares sequences; rcsb takes RCSB's clusters, at 0.3 if no identity is given.",
    )
    cluster_file: str | None = Field(
        default=None, description="Rcsb: path, relative to this file, or address of the clusters; RCSB's own if null."
    )
    train: float = Field(default=0.7, ge=0)
    validation: float = Field(default=0.15, ge=0)
    test: float = Field(default=0.15, ge=0)
    draw: Literal["random", "even"] = Field(
        default="random", description="Numbers of entries: drawn from all of a split's, or evenly over its clusters."
    )

    @model_validator(mode="before")
    @classmethod
    def _rcsb_has_no_clusters_at_20(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "rcsb":
            return {"identity": IDENTITIES[0], **values}
        return values

    @model_validator(mode="after")
    def _clusters_that_exist(self) -> SplitConfig:
        if self.method == "rcsb" and self.identity not in IDENTITIES:
            raise ValueError(
                f"RCSB has no clusters at identity {self.identity:g}; allowed with method rcsb: "
                f"{', '.join(f'{identity:g}' for identity in IDENTITIES)}"
            )
        if self.method != "rcsb" and self.cluster_file is not None:
            raise ValueError(f"cluster_file is for method rcsb, the method is {self.method}")
        return self

    @property
    def clusters(self) -> str:
        """Path or address of the file of clusters that method rcsb takes."""
        return self.cluster_file if self.cluster_file is not None else clusters_url(self.identity)

    @model_validator(mode="after")
    def _fractions_or_counts(self) -> SplitConfig:
        sizes = (self.train, self.validation, self.test)
        if self.counts is None and abs(sum(sizes) - 1) > 1e-6:
            raise ValueError(
                f"train, validation and test are {sizes}; give fractions that add up to 1 or whole numbers of entries"
            )
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """Sizes by split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def counts(self) -> dict[str, int] | None:
        """Numbers of entries by split, or None where the sizes are fractions."""
        sizes = self.fractions
        whole = all(float(size).is_integer() for size in sizes.values()) and sum(sizes.values()) > 1
        return {name: int(size) for name, size in sizes.items()} if whole else None


class PrepareConfig(Section):
    """Repair, protonation and solvent."""

    ph: float = Field(default=7.0, ge=0, le=14, description="Decides the protonation states.")
    termini: Literal["charged", "capped", "capped_if_cut"] = Field(
        default="charged", description="NH3+ and COO-; or ACE and NME, everywhere or where the deposited chain goes on."
    )
    padding: float = Field(default=1.0, gt=0, description="nm between the protein and each of its copies.")
    ionic_strength: float = Field(default=0.0, ge=0, le=5, description="mol/l besides the ions that neutralise.")
    box_shape: Literal["brick", "cube", "dodecahedron", "octahedron"] = Field(
        default="brick", description="Brick: around the protein as it lies, for picoseconds; others: room to turn."
    )
    max_atoms: int = Field(default=100_000, ge=1, description="A larger system is refused before it is built.")
    keep_water: bool = Field(default=False, description="Keep the crystal's water.")
    max_gap: int = Field(default=10, ge=0, description="Longest run of missing residues that is rebuilt.")
    add_missing_ends: bool = Field(default=False, description="Build residues missing at the ends of the chain too.")

    @field_validator("termini", mode="before")
    @classmethod
    def _no_neutral_ends(cls, value: Any) -> Any:
        if value == "neutral":
            raise ValueError("AMBER has no templates of neutral ends; take 'capped' for ends without charge")
        return value


Protocol = Literal["thermal", "minimized"]


class SampleConfig(Section):
    """How frames are made; with both protocols named, one run makes both data sets from the same proteins."""

    protocol: Protocol | list[Protocol] = Field(default="thermal", description="One, or a list of both.")
    force_field: ForceFieldFiles | None = Field(
        default=None, description="What moves the atoms; the label's where none is named."
    )
    cutoff: float = Field(default=CUTOFF, gt=0, description="nm, direct space, while atoms move.")
    relax_tolerance: float = Field(default=30.0, gt=0, description="kJ/mol/nm, of the minimisation that comes first.")
    n_frames: int = Field(default=4, ge=1, description="Thermal: snapshots of each entry at each temperature.")
    temperature: float | list[float] = Field(default=300.0, description="Thermal: K; several one after the other.")
    equilibration: float = Field(default=2.0, gt=0, description="Thermal: ps before the first snapshot.")
    interval: float = Field(default=1.0, gt=0, description="Thermal: ps between snapshots.")
    timestep: float = Field(default=0.004, gt=0, le=0.004, description="Thermal: ps, between snapshots.")
    friction: float = Field(default=5.0, gt=0, description="Thermal: 1/ps, between snapshots.")
    flexible_time: float = Field(
        default=0.2, gt=0, description="Thermal: ps with every bond flexible before each snapshot."
    )
    flexible_friction: float = Field(default=50.0, gt=0, description="Thermal: 1/ps, while every bond is flexible.")
    damping_time: float = Field(default=0.4, gt=0, description="Minimized: ps of damped motion, constrained.")
    damping_friction: float = Field(default=5.0, gt=0, description="Minimized: 1/ps.")

    @model_validator(mode="after")
    def _protocols_and_temperatures(self) -> SampleConfig:
        if not self.protocols or len(set(self.protocols)) != len(self.protocols):
            raise ValueError(f"protocol is {self.protocol}; name thermal, minimized or a list of both")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperature is {self.temperature}; give one or several above 0 K")
        return self

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols, in order."""
        return tuple(self.protocol) if isinstance(self.protocol, list) else (self.protocol,)

    def of(self, protocol: str) -> dict[str, Any]:
        """Return the keyword arguments of a protocol's function in `sample`, besides what moves the atoms."""
        if protocol == "minimized":
            return {"damping_time": self.damping_time, "damping_friction": self.damping_friction}
        return {
            "temperatures": list(self.temperatures),
            "n_frames": self.n_frames,
            "equilibration": self.equilibration,
            "interval": self.interval,
            "timestep": self.timestep,
            "friction": self.friction,
            "flexible_time": self.flexible_time,
            "flexible_friction": self.flexible_friction,
        }

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The thermostat's temperatures in K, in order."""
        return tuple(self.temperature) if isinstance(self.temperature, list) else (self.temperature,)


class PotentialConfig(Section):
    """A potential of openmm-ml (extra ``mlpotential``)."""

    name: str = Field(min_length=1, description="Built into openmm-ml, or registered by a package.")
    options: dict[str, Any] = Field(default={}, description="Keyword arguments of openmmml.MLPotential.")
    system_options: dict[str, Any] = Field(default={}, description="Keyword arguments of its createSystem.")


class LabelConfig(Section):
    """The reference, and which parts of its forces are kept."""

    force_field: ForceFieldFiles = Field(
        default=list(DEFAULT_FORCE_FIELD), min_length=1, description="Name, or names and paths of files for OpenMM."
    )
    potential: PotentialConfig | None = Field(default=None, description="The reference in place of the force field.")
    ewald_tolerance: float = Field(default=1e-5, gt=0, lt=0.01)
    cutoff: float = Field(default=0.9, gt=0, description="nm, direct space.")
    parts: list[Literal["groups", "reciprocal", "solute", "minus_mm"]] = Field(
        default=[], description="Stored besides the total forces."
    )
    reciprocal_alpha: float = Field(default=4.5, gt=0, le=20, description="1/nm, of the part reciprocal.")
    mm_force_field: ForceFieldFiles = Field(
        default=list(DEFAULT_FORCE_FIELD), min_length=1, description="What the part minus_mm subtracts."
    )
    displaced_copies: int = Field(
        default=0, ge=0, description="Copies of each frame with atoms displaced at random, for training."
    )
    displacement: float = Field(default=0.008, gt=0, le=0.05, description="nm; largest standard deviation of these.")
    displace: Literal["even", "uneven"] = Field(
        default="even", description="All atoms of a copy alike, or a fifth of them far and the others little."
    )
    displaced_atoms: Literal["solute", "all"] = Field(
        default="solute", description="Which atoms of a copy; all, for models of all atoms."
    )
    displaced_molecules: float = Field(
        default=0.0,
        ge=0,
        le=0.1,
        description="nm; largest standard deviation by which a fifth of a copy's solvent molecules is moved whole.",
    )
    max_force: float = Field(
        default=1e5, gt=0, description="kJ/mol/nm; an entry with a larger force is refused, a displaced copy dropped."
    )

    @property
    def reference(self) -> Reference:
        """What gives the labels."""
        potential = None if self.potential is None else Potential(**self.potential.values())
        return Reference(self.force_field, potential, self.mm_force_field, self.cutoff, self.ewald_tolerance)


class PipelineConfig(Execution):
    """Everything that decides what comes out, and how the work is done, which does not (`settings.EXECUTION`).

    The same configuration, seed and platform give the same content, bit for bit, whatever the number of workers.
    """

    task: ClassVar[str] = FORCES
    seed: int = Field(default=0, ge=0)
    source: SourceConfig
    select: SelectConfig = SelectConfig()
    split: SplitConfig = SplitConfig()
    prepare: PrepareConfig = PrepareConfig()
    sample: SampleConfig = SampleConfig()
    label: LabelConfig = LabelConfig()
    platform: str = Field(default="CPU", description="OpenMM's platform.")
    device: list[str] = Field(
        default=[], description="Index of the GPU, or several: worker i computes on the i-th, counted round."
    )

    @field_validator("device", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> list[str]:
        several = value if isinstance(value, list | tuple) else [] if value is None else [value]
        indices = [str(index).strip() for index in several]
        if not all(index.isdecimal() for index in indices):
            raise ValueError("a device is a whole number such as 0, or a list of them such as [0, 1]")
        return indices

    def limits(self) -> Limits:
        """Return what one task may use, as `engine` takes it."""
        return replace(super().limits(), platform=self.platform, devices=tuple(self.device))

    @property
    def sampling_force_field(self) -> list[str]:
        """What moves atoms while frames are made."""
        return self.label.force_field if self.sample.force_field is None else self.sample.force_field


CONFIGS: dict[str, type[PipelineConfig] | type[RefinementConfig]] = dict(
    zip(TASKS, (PipelineConfig, RefinementConfig), strict=True)
)
"""Task -> its configuration."""


def load_config(path: str | Path) -> PipelineConfig | RefinementConfig:
    """Read a configuration; paths in it that are relative are resolved against its folder.

    Parameters
    ----------
    path
        A YAML file; its key ``task`` says which configuration it is, forces where there is none.

    Raises
    ------
    ConfigError
        Naming the file, the key, what is allowed and the closest known key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not keys such as name, source, sample")
    task = raw.get("task", FORCES)
    if not isinstance(task, str) or task not in CONFIGS:
        raise ConfigError(f"{path}: no task {task!r}.{_closest(str(task), TASKS)} Allowed: {', '.join(TASKS)}.")
    if task == FORCES:
        raw = {key: value for key, value in raw.items() if key != "task"}
    try:
        config = CONFIGS[task].model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            f"{path}: " + "; ".join(_explain(problem, CONFIGS[task]) for problem in error.errors())
        ) from error
    folder = path.resolve().parent
    source = config.source.model_copy(update={"path": _resolved(config.source.path, folder)})
    config = config.model_copy(update={"source": source})
    return config if isinstance(config, RefinementConfig) else _located(config, path)


def _located(config: PipelineConfig, path: Path) -> PipelineConfig:
    """Return a configuration with the paths of its other sections resolved against its file's folder."""
    folder = path.resolve().parent
    select, split = config.select, config.split
    if select.ids_file is not None:
        select = select.model_copy(update={"ids_file": _resolved(select.ids_file, folder)})
    if split.cluster_file is not None and not re.match(_WEB, split.cluster_file):
        split = split.model_copy(update={"cluster_file": _resolved(split.cluster_file, folder)})
    located: dict[str, Any] = {"sample": config.sample, "label": config.label}
    for name, key in (("label", "force_field"), ("label", "mm_force_field"), ("sample", "force_field")):
        files = getattr(located[name], key)
        try:
            found = None if files is None else locate_force_field(files, folder)
        except ConfigError as error:
            raise ConfigError(f"{path}: {name}.{key}: {error}") from None
        located[name] = located[name].model_copy(update={key: found})
    return config.model_copy(update={"select": select, "split": split, **located})


def _resolved(given: str, folder: Path) -> str:
    return str((folder / Path(given).expanduser()).resolve())


def dump_config(config: Execution) -> str:
    """Return the resolved configuration as YAML that `load_config` reads."""
    return yaml.safe_dump(config.values(), sort_keys=False, allow_unicode=True)


def stage_key(stage: str, settings: dict[str, Any], *inputs: str) -> str:
    """Return what decides whether a finished output may be reused: a hash of stage, settings and input hashes."""
    text = json.dumps([stage, settings, *inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def entry_seed(seed: int, entry: str) -> int:
    """Return an entry's own seed, which does not depend on which other entries there are."""
    return int.from_bytes(hashlib.sha256(f"{seed} {entry}".encode()).digest()[:4], "big") >> 1


def _explain(problem: Any, config: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location) or "the file"
    if problem["type"] != "extra_forbidden":
        value = f", got {problem['input']!r}" if not isinstance(problem["input"], dict) else ""
        allowed = re.findall(r"'([^']*)'", problem["msg"]) if problem["type"] == "literal_error" else []
        return f"{where}: {problem['msg']}{value}{_closest(str(problem['input']), allowed)}"
    section = config
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        section = next(one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields"))
    allowed = sorted(section.model_fields)
    return f"{where}: no such key.{_closest(location[-1], allowed)} Allowed: {', '.join(allowed)}."


def _closest(given: str, allowed: Sequence[str]) -> str:
    matches = difflib.get_close_matches(given, allowed, n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
