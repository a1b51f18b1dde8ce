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
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matminer.featurizers.base import BaseFeaturizer, MultipleFeaturizer, StackedFeaturizer
from pymatgen.core import IStructure
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.featurizers.check_case import (
    COLUMN,
    Case,
    FeaturizerCheckError,
    Interrupting,
    NumberOfSites,
    numbers,
    raised,
    require,
    serial,
)
from crysxpp_mm.parallel import attempt_each

FORK_PATIENCE = 120
"""Seconds that a forked child has to featurize one structure."""

SWITCHES = ("ignore_errors", "return_errors", "multiindex", "inplace", "pbar")
"""Options of ``featurize_dataframe`` that are on or off."""


# The basic checks: what matminer asks of a featurizer.


def labels(case: Case) -> None:
    """feature_labels gives distinct names, in a fresh list each time, one for each feature."""
    names = case.featurizer.feature_labels()
    require(isinstance(names, list), f"feature_labels gives a {type(names).__name__}, not a list")
    require(names, "feature_labels is empty")
    require(all(isinstance(name, str) for name in names), "a label is no string")
    require(len(set(names)) == len(names), "a label occurs twice")
    before = list(names)
    names.append("appended")
    require(
        case.featurizer.feature_labels() == before,
        "feature_labels gives the same list again; matminer appends to it",
    )
    require(
        case.expected.shape[1] == len(before),
        f"{len(before)} labels for {case.expected.shape[1]} features",
    )


def citations(case: Case) -> None:
    """Citations are a list of strings and implementors a list that is not empty."""
    references = case.featurizer.citations()
    require(isinstance(references, list), "citations gives no list")
    require(all(isinstance(entry, str) for entry in references), "a citation is no string")
    people = case.featurizer.implementors()
    require(isinstance(people, list) and people, "implementors gives no list, or an empty one")


def arguments(case: Case) -> None:
    """The constructor stores its arguments untouched, so that get_params and clone work."""
    parameters = case.featurizer.get_params(deep=False)
    for name, value in parameters.items():
        require(getattr(case.featurizer, name) is value, f"the argument {name!r} is not stored")
    copy = clone(case.featurizer)
    require(type(copy) is type(case.featurizer), "clone gives another class")
    require(set(copy.get_params(deep=False)) == set(parameters), "clone has other arguments")
    case.compare(
        [list(copy.featurize(case.structures[0]))], case.expected[:1], "the row of a clone"
    )


def repeated(case: Case) -> None:
    """Featurizing again gives the same numbers and leaves its input alone."""
    structure = case.structures[0]
    before = structure.copy()
    case.compare(
        [list(case.featurizer.featurize(structure))], case.expected[:1], "featurize, run again,"
    )
    require(structure == before, "featurize changes the structure")
    require(case.featurizer.fit(case.structures) is case.featurizer, "fit does not return self")


def order(case: Case) -> None:
    """Rows come in the order of the entries and do not depend on their neighbours."""
    many = case.featurizer.featurize_many
    case.compare(many(case.structures, pbar=False), case.expected, "featurize_many")
    case.compare(
        many(case.structures[::-1], pbar=False),
        case.expected[::-1],
        "featurize_many of the reverse order",
    )
    case.compare(many(case.structures[:1], pbar=False), case.expected[:1], "a list of one")


def entries(case: Case) -> None:
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
        require(isinstance(rows, list), f"featurize_many gives no list for {name}")
        case.compare(rows, case.expected, f"featurize_many of {name}")
    for name, empty in {"list": [], "array": np.empty((0, 1), dtype=object)}.items():
        rows = case.featurizer.featurize_many(empty, pbar=False)
        require(isinstance(rows, list) and not rows, f"an empty {name} does not give []")


def refusals(case: Case) -> None:
    """featurize_many refuses what is not list-like, and return_errors without ignore_errors."""
    many = case.featurizer.featurize_many
    require(raised(lambda: many(7, pbar=False)), "featurize_many(7) raises nothing")
    error = raised(lambda: many(case.structures, return_errors=True, pbar=False))
    require(
        isinstance(error, ValueError), "return_errors without ignore_errors raises no ValueError"
    )


def bad_rows(case: Case) -> None:
    """A bad entry is an error of its own type, or a row of NaN with its text; others are whole."""
    inputs = list(case.frame(bad=True)[COLUMN])
    many = serial(case.featurizer).featurize_many
    original = raised(lambda: case.featurizer.featurize(case.bad_input))
    require(original is not None, f"featurize takes the bad input {case.bad_input!r}")
    error = raised(lambda: many(inputs, pbar=False))
    require(error is not None, "featurize_many takes the bad input")
    require(
        type(error) is type(original),
        f"featurize_many raises {type(error).__name__}, featurize {type(original).__name__}",
    )
    require("ignore_errors" in str(error), "the error does not mention ignore_errors")
    require(str(original) in str(error), "the error of featurize_many lacks that of featurize")
    case.compare(
        many(inputs, ignore_errors=True, pbar=False), case.rows(bad=True), "with ignore_errors"
    )
    rows = many(inputs, ignore_errors=True, return_errors=True, pbar=False)
    case.compare([row[:-1] for row in rows], case.rows(bad=True), "with return_errors")
    texts = [row[-1] for row in rows]
    require(
        isinstance(texts[1], str) and type(original).__name__ in texts[1],
        "the bad row has no text of its error",
    )
    require(
        all(isinstance(text, float) and np.isnan(text) for text in texts[:1] + texts[2:]),
        "a good row has a text where NaN belongs",
    )
    case.compare(
        many([case.bad_input], ignore_errors=True, pbar=False),
        np.full((1, case.expected.shape[1]), np.nan),
        "a bad entry alone",
    )


def dataframe(case: Case) -> None:
    """featurize_dataframe does what each combination of its five switches says."""
    featurizer = serial(case.featurizer)
    for on in itertools.chain.from_iterable(
        itertools.combinations(SWITCHES, count) for count in range(len(SWITCHES) + 1)
    ):
        what = f"featurize_dataframe with {', '.join(on) or 'no switch'}"
        frame = case.frame(bad="ignore_errors" in on)
        options: dict[str, Any] = {name: name in on for name in SWITCHES}
        if options["pbar"]:
            options["pbar"] = {"file": io.StringIO()}
        call = partial(featurizer.featurize_dataframe, frame, COLUMN, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # matminer's, on multiindex with inplace
            if "return_errors" in on and "ignore_errors" not in on:
                require(isinstance(raised(call), ValueError), f"{what} raises no ValueError")
                continue
            result = call()
        inplace = "inplace" in on
        require((result is None) == inplace, f"{what} returns {'a table' if inplace else 'None'}")
        case.compare_table(frame if inplace else result, on, what)
        require(inplace or len(frame.columns) == 2, f"{what} adds columns to the caller's table")


def second_call(case: Case) -> None:
    """A second featurize_dataframe on the same table is refused, naming a column that exists."""
    featurizer = serial(case.featurizer)
    table = featurizer.featurize_dataframe(case.frame(), COLUMN, pbar=False)
    error = raised(lambda: featurizer.featurize_dataframe(table, COLUMN, pbar=False))
    require(
        isinstance(error, ValueError) and "exists" in str(error),
        "a second call on the same table is not refused",
    )


def progress_bar(case: Case) -> None:
    """pbar=False is silent; a dictionary of tqdm's arguments gives a bar named after the class."""
    text = io.StringIO()
    serial(case.featurizer).featurize_many(case.structures, pbar={"file": text})
    require(case.name in text.getvalue(), "the progress bar does not show the class")
    count = f"{len(case.structures)}/{len(case.structures)}"
    require(count in text.getvalue(), f"the progress bar does not end at {count}")
    silent, standard = io.StringIO(), sys.stderr
    sys.stderr = silent
    try:
        serial(case.featurizer).featurize_many(case.structures, pbar=False)
    finally:
        sys.stderr = standard
    require(case.name not in silent.getvalue(), "pbar=False shows a bar")


def pickled(case: Case) -> None:
    """A pickle round trip keeps the numbers."""
    copy = pickle.loads(pickle.dumps(case.featurizer))
    case.compare(
        [list(copy.featurize(case.structures[0]))], case.expected[:1], "the row after pickling"
    )


def multiple(case: Case) -> None:
    """MultipleFeaturizer takes it, over entries and over featurizers, with a pool and without."""
    sites = np.array([[len(structure)] for structure in case.structures], dtype=np.float64)
    for over_entries, n_jobs in ((True, 1), (True, 2), (False, 1)):
        both = MultipleFeaturizer(
            [serial(case.featurizer), NumberOfSites()], iterate_over_entries=over_entries
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
    require(both.citations() is not None and both.implementors(), "MultipleFeaturizer has no names")


def stacked(case: Case) -> None:
    """StackedFeaturizer predicts from the features."""
    targets = np.arange(len(case.structures), dtype=np.float64)
    features = np.nan_to_num(case.expected)
    model = Ridge().fit(features, targets)
    if not np.isfinite(case.expected).all():
        return  # the model would refuse the features
    both = StackedFeaturizer(serial(case.featurizer), model, name="check")
    both.set_n_jobs(1)
    predicted = [
        float(np.ravel(row[0])[0]) for row in both.featurize_many(case.structures, pbar=False)
    ]
    require(
        np.allclose(predicted, model.predict(features), rtol=1e-4, atol=1e-4),
        "StackedFeaturizer predicts other numbers than its model",
    )


def pipeline(case: Case) -> None:
    """A scikit-learn pipeline can begin with it: transform gives the rows, NaN for bad ones."""
    featurizer = serial(case.featurizer)
    inputs = list(case.frame(bad=True)[COLUMN])
    case.compare(featurizer.transform(inputs), case.rows(bad=True), "transform")
    case.compare(featurizer.fit_transform(case.structures), case.expected, "fit_transform")
    if not np.isfinite(case.expected).all():
        return  # the model would refuse the features
    model = make_pipeline(clone(featurizer), StandardScaler(), Ridge())
    targets = np.arange(len(case.structures), dtype=np.float64)
    predicted = model.fit(case.structures, targets).predict(case.structures)
    require(predicted.shape == targets.shape, "a pipeline gives another number of predictions")


def prechecks(case: Case) -> None:
    """The precheck passes what can be featurized."""
    for position, structure in enumerate(case.structures):
        require(case.featurizer.precheck(structure), f"precheck fails structure {position}")
    share = case.featurizer.precheck_dataframe(case.frame(), COLUMN)
    require(share == 1, f"precheck_dataframe gives {share} for structures that pass")


# The strict checks: what this package promises beyond matminer's contract.


def strings(case: Case) -> None:
    """Citations are BibTeX and implementors are strings, which MultipleFeaturizer needs."""
    require(
        all(entry.lstrip().startswith("@") for entry in case.featurizer.citations()),
        "a citation is no BibTeX",
    )
    require(
        all(isinstance(person, str) for person in case.featurizer.implementors()),
        "an implementor is no string",
    )
    row = case.featurizer.featurize(case.structures[0])
    require(
        isinstance(row, list) and all(type(value) is float for value in row),
        "featurize does not give a list of Python floats",
    )


def caller_columns(case: Case) -> None:
    """multiindex=True without inplace leaves the columns of the caller's table alone."""
    frame = case.frame()
    before = list(frame.columns)
    serial(case.featurizer).featurize_dataframe(frame, COLUMN, multiindex=True, pbar=False)
    require(list(frame.columns) == before, "the columns of the caller's table are renamed")


def strict_prechecks(case: Case) -> None:
    """The precheck finds what cannot be featurized, and that of a table keeps its index."""
    require(case.featurizer.precheck(case.bad_input) is False, "precheck passes the bad input")
    frame = case.frame(bad=True)
    passed = [position != 1 for position in range(len(frame))]
    for inplace in (False, True):
        before = list(frame.columns)
        table = case.featurizer.precheck_dataframe(
            frame, COLUMN, return_frac=False, inplace=inplace
        )
        require(table.index.equals(case.frame(bad=True).index), "precheck_dataframe: other index")
        require(
            list(table[f"{case.name} precheck pass"]) == passed, "precheck_dataframe: wrong rows"
        )
        require((list(frame.columns) == before) != inplace, "precheck_dataframe: wrong table")


def dictionaries(case: Case) -> None:
    """Dictionaries from Structure.as_dict do as well as structures."""
    rows = case.featurizer.featurize_many([s.as_dict() for s in case.structures], pbar=False)
    case.compare(rows, case.expected, "featurize_many of dictionaries")


def scikit_learn(case: Case) -> None:
    """It is a fitted transformer, and set_output gives tables with names and index."""
    require(get_tags(case.featurizer).transformer_tags is not None, "its tags: no transformer")
    check_is_fitted(case.featurizer)
    names = case.featurizer.get_feature_names_out()
    require(list(names) == case.featurizer.feature_labels(), "get_feature_names_out: other names")
    copy = clone(case.featurizer).set_output(transform="pandas")
    frame = case.frame(bad=True)
    for form in (frame[COLUMN], frame[[COLUMN]]):
        table = copy.transform(form)
        require(isinstance(table, pd.DataFrame), "set_output(transform='pandas'): no table")
        require(table.index.equals(frame.index), "set_output(transform='pandas'): other index")
        require(list(table.columns) == list(names), "set_output(transform='pandas'): other names")
        case.compare(table.to_numpy(), case.rows(bad=True), "set_output(transform='pandas')")


def small_pickle(case: Case) -> None:
    """After work the pickle is still small: the network is left out."""
    size = len(pickle.dumps(case.featurizer))
    limit = case.max_pickle_bytes
    require(limit is None or size < limit, f"the pickle has {size} bytes, the limit is {limit}")


def interrupt(case: Case) -> None:
    """Ctrl-C ends a run, with ignore_errors too."""
    structure = case.structures[0]
    stop = object.__new__(Interrupting)
    stop.__dict__.update(structure.__dict__)
    for featurizer in (
        serial(case.featurizer),
        MultipleFeaturizer([serial(case.featurizer)]),
    ):
        featurizer.set_n_jobs(1)
        try:
            featurizer.featurize_many([structure, stop], ignore_errors=True, pbar=False)
        except KeyboardInterrupt:
            continue
        raise FeaturizerCheckError(f"{type(featurizer).__name__} swallows Ctrl-C")


def threads(case: Case) -> None:
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
        require(after == wanted, f"{wanted} torch threads before, {after} afterwards")


def forked_child(case: Case) -> None:
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
        require(answered, f"the child gives no answer within {FORK_PATIENCE} seconds")
        answer = receiver.recv()
    except EOFError as error:
        raise FeaturizerCheckError("the child ends without an answer") from error
    finally:
        child.kill()
        child.join()
        receiver.close()
    require(not isinstance(answer, str), f"the child fails: {answer}")
    case.compare([answer], case.expected[:1], "the row of a forked child")


def _featurize_in_child(case: Case, sender: Any) -> None:
    rows, errors = attempt_each(case.featurizer.featurize, case.structures[:1])
    sender.send(f"{type(errors[0]).__name__}: {errors[0]}" if errors else list(rows[0]))


BASIC_CHECKS: tuple[Callable[[Case], None], ...] = (
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
STRICT_CHECKS: tuple[Callable[[Case], None], ...] = (
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
    expected, errors = attempt_each(lambda s: list(featurizer.featurize(s)), structures)
    for error in errors.values():
        raise FeaturizerCheckError(f"featurize: {type(error).__name__}: {error}") from error
    case = Case(
        featurizer=featurizer,
        structures=list(structures),
        bad_input=bad_input,
        tolerance=tolerance,
        max_pickle_bytes=max_pickle_bytes,
        expected=numbers(list(expected.values()), "featurize: the rows of all structures"),
    )
    rows = []
    for check in BASIC_CHECKS + (STRICT_CHECKS if strict else ()):
        start = time.perf_counter()
        if failure := raised(partial(check, case)):
            broken = isinstance(failure, FeaturizerCheckError)
            reason = "" if broken else f"{type(failure).__name__}: "
            raise FeaturizerCheckError(f"{check.__name__}: {reason}{failure}.") from failure
        rows.append(
            {
                "check": check.__name__,
                "promise": (check.__doc__ or "").strip(),
                "seconds": time.perf_counter() - start,
            }
        )
    return pd.DataFrame(rows)
