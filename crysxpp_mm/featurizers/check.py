"""A check that a featurizer of structures keeps the contract of matminer's ``BaseFeaturizer``.

Matminer has none of its own. The basic checks hold for matminer's featurizers too; the strict
ones are what this package promises beyond them.
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matminer.featurizers.base import BaseFeaturizer, MultipleFeaturizer, StackedFeaturizer
from numpy.typing import NDArray
from pymatgen.core import IStructure, Structure
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from crysxpp_mm.errors import CrysXPPError, SettingsError

COLUMN = "structure"
FORK_PATIENCE = 120
"""Seconds that a forked child has to featurize one structure."""


class FeaturizerCheckError(CrysXPPError, AssertionError, ValueError):
    """A featurizer breaks a rule; the message begins with the name of the check."""


@dataclass(frozen=True)
class _Case:
    """What the checks work with."""

    featurizer: Any
    structures: list[IStructure]
    bad_input: Any
    tolerance: float
    max_pickle_bytes: int | None
    expected: NDArray[np.float64]  # (n_structures, n_columns), from featurize, one by one

    @property
    def name(self) -> str:
        return type(self.featurizer).__name__

    def frame(self, *, bad: bool = False) -> pd.DataFrame:
        """A table with an index that is not 0..n-1; its second row is bad if asked for."""
        rows: list[Any] = list(self.structures)
        if bad:
            rows.insert(1, self.bad_input)
        frame = pd.DataFrame({"number": np.arange(len(rows))}, index=self.index(len(rows)))
        frame[COLUMN] = pd.Series(rows, index=frame.index, dtype=object)
        return frame

    def index(self, length: int) -> pd.Index:
        return pd.Index([f"row {7 * (length - i)}" for i in range(length)], name="key")

    def rows(self, *, bad: bool = False) -> NDArray[np.float64]:
        """What the features of ``frame`` have to be."""
        return np.insert(self.expected, 1, np.nan, axis=0) if bad else self.expected

    def compare(self, actual: Any, expected: NDArray[np.float64], what: str) -> None:
        numbers = _numbers(actual, what)
        _require(
            numbers.shape == expected.shape,
            f"{what} has shape {numbers.shape}, expected {expected.shape}",
        )
        scale = float(np.nanmax(np.abs(expected), initial=0.0))
        equal = np.isclose(
            numbers, expected, rtol=self.tolerance, atol=self.tolerance * scale, equal_nan=True
        )
        if not equal.all():
            place = tuple(int(i) for i in np.argwhere(~equal)[0])
            raise FeaturizerCheckError(
                f"{what} differs in {int((~equal).sum())} of {equal.size} numbers, first at "
                f"{place}: {numbers[place]!r}, expected {expected[place]!r}"
            )


class _NumberOfSites(BaseFeaturizer):  # type: ignore[misc]
    """A partner for the featurizer in MultipleFeaturizer."""

    def featurize(self, structure: IStructure) -> list[float]:
        return [float(len(structure))]

    def feature_labels(self) -> list[str]:
        return ["check_featurizer: number of sites"]

    def citations(self) -> list[str]:
        return []

    def implementors(self) -> list[str]:
        return ["crysxpp_mm developers"]


class _Interrupting(Structure):
    """A structure at which the user presses Ctrl-C."""

    @property  # type: ignore[misc] # the base class lets it be set as well
    def sites(self) -> Any:
        raise KeyboardInterrupt

    def __len__(self) -> int:
        raise KeyboardInterrupt


def _require(condition: object, message: str) -> None:
    if not condition:
        raise FeaturizerCheckError(message)


def _numbers(values: Any, what: str) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FeaturizerCheckError(f"{what} is no table of numbers ({error})") from error


def _raised(call: Callable[[], Any]) -> Exception | None:
    """The exception that a call raises."""
    try:
        call()
    except Exception as error:  # whatever it is, it is looked at
        return error
    return None


def _serial(featurizer: Any) -> Any:
    """A copy that uses no pool, so that the one under test keeps its settings."""
    copy = pickle.loads(pickle.dumps(featurizer))
    copy.set_n_jobs(1)
    return copy


# The basic checks: what matminer asks of a featurizer.


def labels(case: _Case) -> None:
    """feature_labels gives distinct names, in a fresh list each time, one for each feature."""
    names = case.featurizer.feature_labels()
    _require(isinstance(names, list), f"feature_labels gives a {type(names).__name__}, not a list")
    _require(names, "feature_labels is empty")
    _require(all(isinstance(name, str) for name in names), "a label is no string")
    _require(len(set(names)) == len(names), "a label occurs twice")
    before = list(names)
    names.append("appended")
    _require(
        case.featurizer.feature_labels() == before,
        "feature_labels gives the same list again; matminer appends to it",
    )
    _require(
        case.expected.shape[1] == len(before),
        f"{len(before)} labels for {case.expected.shape[1]} features",
    )


def citations(case: _Case) -> None:
    """Citations are a list of strings and implementors a list that is not empty."""
    references = case.featurizer.citations()
    _require(isinstance(references, list), "citations gives no list")
    _require(all(isinstance(entry, str) for entry in references), "a citation is no string")
    people = case.featurizer.implementors()
    _require(isinstance(people, list) and people, "implementors gives no list, or an empty one")


def arguments(case: _Case) -> None:
    """The constructor stores its arguments untouched, so that get_params and clone work."""
    parameters = case.featurizer.get_params(deep=False)
    for name, value in parameters.items():
        _require(getattr(case.featurizer, name) is value, f"the argument {name!r} is not stored")
    copy = clone(case.featurizer)
    _require(type(copy) is type(case.featurizer), "clone gives another class")
    _require(set(copy.get_params(deep=False)) == set(parameters), "clone has other arguments")
    case.compare(
        [list(copy.featurize(case.structures[0]))], case.expected[:1], "the row of a clone"
    )


def repeated(case: _Case) -> None:
    """Featurizing again gives the same numbers and leaves its input alone."""
    structure = case.structures[0]
    before = structure.copy()
    case.compare(
        [list(case.featurizer.featurize(structure))], case.expected[:1], "featurize, run again,"
    )
    _require(structure == before, "featurize changes the structure")
    _require(case.featurizer.fit(case.structures) is case.featurizer, "fit does not return self")


def order(case: _Case) -> None:
    """Rows come in the order of the entries and do not depend on their neighbours."""
    many = case.featurizer.featurize_many
    case.compare(many(case.structures, pbar=False), case.expected, "featurize_many")
    case.compare(
        many(case.structures[::-1], pbar=False),
        case.expected[::-1],
        "featurize_many of the reverse order",
    )
    case.compare(many(case.structures[:1], pbar=False), case.expected[:1], "a list of one")


def entries(case: _Case) -> None:
    """featurize_many takes a list, a tuple, tuples of one, an array, a Series, a DataFrame."""
    frame = case.frame()
    forms: dict[str, Any] = {
        "a tuple": tuple(case.structures),
        "a list of tuples": [(structure,) for structure in case.structures],
        "an array of one column": frame[[COLUMN]].values,
        "a Series": frame[COLUMN],
        "a DataFrame": frame[[COLUMN]],
    }
    for name, form in forms.items():
        rows = case.featurizer.featurize_many(form, pbar=False)
        _require(isinstance(rows, list), f"featurize_many gives no list for {name}")
        case.compare(rows, case.expected, f"featurize_many of {name}")
    for name, empty in {"list": [], "array": np.empty((0, 1), dtype=object)}.items():
        rows = case.featurizer.featurize_many(empty, pbar=False)
        _require(isinstance(rows, list) and not rows, f"an empty {name} does not give []")


def refusals(case: _Case) -> None:
    """featurize_many refuses what is not list-like, and return_errors without ignore_errors."""
    many = case.featurizer.featurize_many
    _require(_raised(lambda: many(7, pbar=False)), "featurize_many(7) raises nothing")
    error = _raised(lambda: many(case.structures, return_errors=True, pbar=False))
    _require(
        isinstance(error, ValueError), "return_errors without ignore_errors raises no ValueError"
    )


def bad_rows(case: _Case) -> None:
    """A bad entry is an error of its own type, or a row of NaN with its text; others are whole."""
    inputs = list(case.frame(bad=True)[COLUMN])
    many = _serial(case.featurizer).featurize_many
    original = _raised(lambda: case.featurizer.featurize(case.bad_input))
    _require(original is not None, f"featurize takes the bad input {case.bad_input!r}")
    error = _raised(lambda: many(inputs, pbar=False))
    _require(error is not None, "featurize_many takes the bad input")
    _require(
        type(error) is type(original),
        f"featurize_many raises {type(error).__name__}, featurize {type(original).__name__}",
    )
    _require("ignore_errors" in str(error), "the error does not mention ignore_errors")
    _require(str(original) in str(error), "the error of featurize_many lacks that of featurize")
    case.compare(
        many(inputs, ignore_errors=True, pbar=False), case.rows(bad=True), "with ignore_errors"
    )
    rows = many(inputs, ignore_errors=True, return_errors=True, pbar=False)
    case.compare([row[:-1] for row in rows], case.rows(bad=True), "with return_errors")
    texts = [row[-1] for row in rows]
    _require(
        isinstance(texts[1], str) and type(original).__name__ in texts[1],
        "the bad row has no text of its error",
    )
    _require(
        all(isinstance(text, float) and np.isnan(text) for text in texts[:1] + texts[2:]),
        "a good row has a text where NaN belongs",
    )
    case.compare(
        many([case.bad_input], ignore_errors=True, pbar=False),
        np.full((1, case.expected.shape[1]), np.nan),
        "a bad entry alone",
    )


def dataframe(case: _Case) -> None:
    """featurize_dataframe does what each combination of its five switches says."""
    featurizer = _serial(case.featurizer)
    names = featurizer.feature_labels()
    switches = ("ignore_errors", "return_errors", "multiindex", "inplace", "pbar")
    for values in itertools.product([False, True], repeat=len(switches)):
        options: dict[str, Any] = dict(zip(switches, values, strict=True))
        what = "featurize_dataframe with " + (
            ", ".join(name for name, value in options.items() if value) or "no switch"
        )
        bad = options["ignore_errors"]
        frame = case.frame(bad=bad)
        before = frame.copy()
        if options["pbar"]:
            options["pbar"] = {"file": io.StringIO()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # matminer's, on multiindex with inplace
            if options["return_errors"] and not options["ignore_errors"]:
                error = _raised(partial(featurizer.featurize_dataframe, frame, COLUMN, **options))
                _require(isinstance(error, ValueError), f"{what} raises no ValueError")
                continue
            result = featurizer.featurize_dataframe(frame, COLUMN, **options)
        _require(
            (result is None) == options["inplace"],
            f"{what} returns {'a table' if options['inplace'] else 'None'}",
        )
        table = frame if options["inplace"] else result
        _require(table.index.equals(before.index), f"{what} changes the index")
        wanted: list[Any] = list(names) + [f"{case.name} Exceptions"] * options["return_errors"]
        old: list[Any] = list(before.columns)
        if options["multiindex"]:
            wanted = [(case.name, name) for name in wanted]
            old = [("Input Data", name) for name in old]
        _require(list(table.columns) == old + wanted, f"{what} gives other columns")
        if not options["inplace"]:
            _require(len(frame.columns) == len(old), f"{what} adds columns to the caller's table")
        _require(list(table[old[0]]) == list(before["number"]), f"{what} changes the input")
        features = table[wanted[: len(names)]]
        case.compare(features.to_numpy(), case.rows(bad=bad), what)
        if options["return_errors"]:
            texts = list(table[wanted[-1]])
            _require(
                [isinstance(text, str) for text in texts] == [i == 1 for i in range(len(texts))],
                f"{what} gives the texts of errors in the wrong rows",
            )


def second_call(case: _Case) -> None:
    """A second featurize_dataframe on the same table is refused, naming a column that exists."""
    featurizer = _serial(case.featurizer)
    table = featurizer.featurize_dataframe(case.frame(), COLUMN, pbar=False)
    error = _raised(lambda: featurizer.featurize_dataframe(table, COLUMN, pbar=False))
    _require(
        isinstance(error, ValueError) and "exists" in str(error),
        "a second call on the same table is not refused",
    )


def progress_bar(case: _Case) -> None:
    """pbar=False is silent; a dictionary of tqdm's arguments gives a bar named after the class."""
    text = io.StringIO()
    _serial(case.featurizer).featurize_many(case.structures, pbar={"file": text})
    _require(case.name in text.getvalue(), "the progress bar does not show the class")
    count = f"{len(case.structures)}/{len(case.structures)}"
    _require(count in text.getvalue(), f"the progress bar does not end at {count}")
    silent, standard = io.StringIO(), sys.stderr
    sys.stderr = silent
    try:
        _serial(case.featurizer).featurize_many(case.structures, pbar=False)
    finally:
        sys.stderr = standard
    _require(case.name not in silent.getvalue(), "pbar=False shows a bar")


def pickled(case: _Case) -> None:
    """A pickle round trip keeps the numbers."""
    copy = pickle.loads(pickle.dumps(case.featurizer))
    case.compare(
        [list(copy.featurize(case.structures[0]))], case.expected[:1], "the row after pickling"
    )


def multiple(case: _Case) -> None:
    """MultipleFeaturizer takes it, over entries and over featurizers, with a pool and without."""
    sites = np.array([[len(structure)] for structure in case.structures], dtype=np.float64)
    for over_entries, n_jobs in ((True, 1), (True, 2), (False, 1)):
        both = MultipleFeaturizer(
            [_serial(case.featurizer), _NumberOfSites()], iterate_over_entries=over_entries
        )
        both.set_n_jobs(n_jobs)
        what = f"MultipleFeaturizer(iterate_over_entries={over_entries}) with n_jobs={n_jobs}"
        table = both.featurize_dataframe(case.frame(), COLUMN, pbar=False)
        case.compare(
            table[both.feature_labels()].to_numpy(), np.hstack([case.expected, sites]), what
        )
        rows = both.featurize_many(
            [case.structures[0], case.bad_input], ignore_errors=True, pbar=False
        )
        case.compare(
            [row[: case.expected.shape[1]] for row in rows],
            np.vstack([case.expected[:1], np.full_like(case.expected[:1], np.nan)]),
            f"{what}, with a bad entry,",
        )
    _require(
        both.citations() is not None and both.implementors(), "MultipleFeaturizer has no names"
    )


def stacked(case: _Case) -> None:
    """StackedFeaturizer predicts from the features."""
    targets = np.arange(len(case.structures), dtype=np.float64)
    features = np.nan_to_num(case.expected)
    model = Ridge().fit(features, targets)
    if not np.isfinite(case.expected).all():
        return  # the model would refuse the features
    both = StackedFeaturizer(_serial(case.featurizer), model, name="check")
    both.set_n_jobs(1)
    predicted = [
        float(np.ravel(row[0])[0]) for row in both.featurize_many(case.structures, pbar=False)
    ]
    _require(
        np.allclose(predicted, model.predict(features), rtol=1e-4, atol=1e-4),
        "StackedFeaturizer predicts other numbers than its model",
    )


def pipeline(case: _Case) -> None:
    """A scikit-learn pipeline can begin with it: transform gives the rows, NaN for bad ones."""
    featurizer = _serial(case.featurizer)
    inputs = list(case.frame(bad=True)[COLUMN])
    case.compare(featurizer.transform(inputs), case.rows(bad=True), "transform")
    case.compare(featurizer.fit_transform(case.structures), case.expected, "fit_transform")
    if not np.isfinite(case.expected).all():
        return  # the model would refuse the features
    model = make_pipeline(clone(featurizer), StandardScaler(), Ridge())
    targets = np.arange(len(case.structures), dtype=np.float64)
    predicted = model.fit(case.structures, targets).predict(case.structures)
    _require(predicted.shape == targets.shape, "a pipeline gives another number of predictions")


def prechecks(case: _Case) -> None:
    """The precheck passes what can be featurized."""
    for position, structure in enumerate(case.structures):
        _require(case.featurizer.precheck(structure), f"precheck fails structure {position}")
    share = case.featurizer.precheck_dataframe(case.frame(), COLUMN)
    _require(share == 1, f"precheck_dataframe gives {share} for structures that pass")


# The strict checks: what this package promises beyond matminer's contract.


def strings(case: _Case) -> None:
    """Citations are BibTeX and implementors are strings, which MultipleFeaturizer needs."""
    _require(
        all(entry.lstrip().startswith("@") for entry in case.featurizer.citations()),
        "a citation is no BibTeX",
    )
    _require(
        all(isinstance(person, str) for person in case.featurizer.implementors()),
        "an implementor is no string",
    )
    row = case.featurizer.featurize(case.structures[0])
    _require(
        isinstance(row, list) and all(type(value) is float for value in row),
        "featurize does not give a list of Python floats",
    )


def caller_columns(case: _Case) -> None:
    """multiindex=True without inplace leaves the columns of the caller's table alone."""
    frame = case.frame()
    before = list(frame.columns)
    _serial(case.featurizer).featurize_dataframe(frame, COLUMN, multiindex=True, pbar=False)
    _require(list(frame.columns) == before, "the columns of the caller's table are renamed")


def strict_prechecks(case: _Case) -> None:
    """The precheck finds what cannot be featurized, and that of a table keeps its index."""
    _require(case.featurizer.precheck(case.bad_input) is False, "precheck passes the bad input")
    frame = case.frame(bad=True)
    passed = [position != 1 for position in range(len(frame))]
    for inplace in (False, True):
        before = list(frame.columns)
        table = case.featurizer.precheck_dataframe(
            frame, COLUMN, return_frac=False, inplace=inplace
        )
        _require(table.index.equals(case.frame(bad=True).index), "precheck_dataframe: other index")
        _require(
            list(table[f"{case.name} precheck pass"]) == passed, "precheck_dataframe: wrong rows"
        )
        _require((list(frame.columns) == before) != inplace, "precheck_dataframe: wrong table")


def dictionaries(case: _Case) -> None:
    """Dictionaries from Structure.as_dict do as well as structures."""
    rows = case.featurizer.featurize_many([s.as_dict() for s in case.structures], pbar=False)
    case.compare(rows, case.expected, "featurize_many of dictionaries")


def scikit_learn(case: _Case) -> None:
    """It is a fitted transformer, and set_output gives tables with names and index."""
    _require(get_tags(case.featurizer).transformer_tags is not None, "its tags: no transformer")
    check_is_fitted(case.featurizer)
    names = case.featurizer.get_feature_names_out()
    _require(list(names) == case.featurizer.feature_labels(), "get_feature_names_out: other names")
    copy = clone(case.featurizer).set_output(transform="pandas")
    frame = case.frame(bad=True)
    for form in (frame[COLUMN], frame[[COLUMN]]):
        table = copy.transform(form)
        _require(isinstance(table, pd.DataFrame), "set_output(transform='pandas'): no table")
        _require(table.index.equals(frame.index), "set_output(transform='pandas'): other index")
        _require(list(table.columns) == list(names), "set_output(transform='pandas'): other names")
        case.compare(table.to_numpy(), case.rows(bad=True), "set_output(transform='pandas')")


def small_pickle(case: _Case) -> None:
    """After work the pickle is still small: the network is left out."""
    size = len(pickle.dumps(case.featurizer))
    limit = case.max_pickle_bytes
    _require(limit is None or size < limit, f"the pickle has {size} bytes, the limit is {limit}")


def interrupt(case: _Case) -> None:
    """Ctrl-C ends a run, with ignore_errors too."""
    structure = case.structures[0]
    stop = object.__new__(_Interrupting)
    stop.__dict__.update(structure.__dict__)
    for featurizer in (
        _serial(case.featurizer),
        MultipleFeaturizer([_serial(case.featurizer)]),
    ):
        featurizer.set_n_jobs(1)
        try:
            featurizer.featurize_many([structure, stop], ignore_errors=True, pbar=False)
        except KeyboardInterrupt:
            continue
        raise FeaturizerCheckError(f"{type(featurizer).__name__} swallows Ctrl-C")


def threads(case: _Case) -> None:
    """The number of torch threads is afterwards what it was before."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    before = torch.get_num_threads()
    for wanted in (2, 3):
        torch.set_num_threads(wanted)
        try:
            case.featurizer.featurize_many(case.structures, pbar=False)
            after = torch.get_num_threads()
        finally:
            torch.set_num_threads(before)
        _require(after == wanted, f"{wanted} torch threads before, {after} afterwards")


def forked_child(case: _Case) -> None:
    """A forked child of a process that has used torch gives the same numbers and ends."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return
    if torch := sys.modules.get("torch"):  # start torch's threads
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        torch.randn(400, 400) @ torch.randn(400, 400)
        torch.rand(10**6).exp().sum()
        torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_featurize_in_child, args=(case, sender))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork is what is checked
        child.start()
    sender.close()
    try:
        answered = receiver.poll(FORK_PATIENCE)
        _require(answered, f"the child gives no answer within {FORK_PATIENCE} seconds")
        answer = receiver.recv()
    except EOFError as error:
        raise FeaturizerCheckError("the child ends without an answer") from error
    finally:
        child.kill()
        child.join()
        receiver.close()
    _require(not isinstance(answer, str), f"the child fails: {answer}")
    case.compare([answer], case.expected[:1], "the row of a forked child")


def _featurize_in_child(case: _Case, sender: Any) -> None:
    try:
        sender.send(list(case.featurizer.featurize(case.structures[0])))
    except Exception as error:  # the parent is to hear of it, whatever it is
        sender.send(f"{type(error).__name__}: {error}")


BASIC_CHECKS: tuple[Callable[[_Case], None], ...] = (
    labels,
    citations,
    arguments,
    repeated,
    order,
    entries,
    refusals,
    bad_rows,
    dataframe,
    second_call,
    progress_bar,
    pickled,
    multiple,
    stacked,
    pipeline,
    prechecks,
)
STRICT_CHECKS: tuple[Callable[[_Case], None], ...] = (
    strings,
    caller_columns,
    strict_prechecks,
    dictionaries,
    scikit_learn,
    small_pickle,
    interrupt,
    threads,
    forked_child,
)


def check_featurizer(
    featurizer: BaseFeaturizer,
    structures: Sequence[IStructure],
    *,
    bad_input: object = None,
    strict: bool = False,
    tolerance: float = 1e-6,
    max_pickle_bytes: int | None = 100_000,
) -> pd.DataFrame:
    """Check that a featurizer of structures keeps its promises.

    The basic checks are matminer's contract, and matminer's own featurizers pass them. The
    featurizer is not changed, and its columns have to be numbers.

    Args:
        featurizer: An object, ready to use.
        structures: Two or more that it can featurize, the fewer and smaller the faster.
        bad_input: Something that it cannot featurize.
        strict: Check also what the featurizers of this package promise beyond matminer's
            contract: they take dictionaries, are transformers to scikit-learn, keep the index in
            ``precheck_dataframe``, stop at Ctrl-C, work in a forked child, have small pickles,
            leave the caller's columns and torch's threads as they were.
        tolerance: How far numbers that have to be equal may differ, relative to the largest.
        max_pickle_bytes: Limit of the strict check of the pickle; None for no limit.

    Returns:
        A row for each check passed: ``check``, ``promise``, ``seconds``.

    Raises:
        FeaturizerCheckError: a check fails; the message begins with its name.
        SettingsError: there are fewer than two structures.
    """
    if len(structures) < 2:
        raise SettingsError(f"structures must hold at least two, got {len(structures)}.")
    rows = []
    try:
        expected = [list(featurizer.featurize(structure)) for structure in structures]
    except Exception as error:  # whatever it is, it is the featurizer's
        raise FeaturizerCheckError(f"featurize: {type(error).__name__}: {error}") from error
    case = _Case(
        featurizer=featurizer,
        structures=list(structures),
        bad_input=bad_input,
        tolerance=tolerance,
        max_pickle_bytes=max_pickle_bytes,
        expected=_numbers(expected, "featurize: the rows of all structures"),
    )
    for check in BASIC_CHECKS + (STRICT_CHECKS if strict else ()):
        start = time.perf_counter()
        try:
            check(case)
        except Exception as error:  # whatever it is, it is the featurizer's
            reason = "" if isinstance(error, FeaturizerCheckError) else f"{type(error).__name__}: "
            raise FeaturizerCheckError(f"{check.__name__}: {reason}{error}.") from error
        rows.append(
            {
                "check": check.__name__,
                "promise": (check.__doc__ or "").strip(),
                "seconds": time.perf_counter() - start,
            }
        )
    return pd.DataFrame(rows)
