"""Laws of the encoder, of CrysAE and of its files."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_structures, needs_dgl
from monty.json import MontyDecoder, MontyEncoder, jsanitize
from monty.serialization import dumpfn, loadfn
from pymatgen.core import Lattice, Structure
from torch import nn

from crysxpp_mm import compiled, serialization
from crysxpp_mm.errors import GraphError, ModelFileError, SettingsError, UnknownModelError
from crysxpp_mm.graph.batch import ATOM_FEATURES, make_batch
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.layers import kernels
from crysxpp_mm.layers.fused import FusedNeighborSum, compiled_kernels, is_fused
from crysxpp_mm.layers.gated_sum import Bonds
from crysxpp_mm.layers.indexing import add_rows_, take_rows
from crysxpp_mm.losses import LossWeights, atom_feature_loss, reconstruction_loss
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.decoder import CrysAEDecoder, pair_index
from crysxpp_mm.models.encoder import CrystalGraphEncoder
from crysxpp_mm.models.pooling import pool
from crysxpp_mm.models.released import read_released_tensors

converter = CrystalGraphConverter()


def batch(structures, backend="torch", dtype=torch.float32):
    """A batched graph of ``dtype``."""
    graph = make_batch(converter.convert_many(structures), backend=backend)
    for data in (graph.ndata, graph.edata):
        for name in list(data):
            data[name] = data[name].to(dtype)
    return graph


def run(compute, encoder, graph):
    """Outputs side by side and all gradients of a wavy function of them."""
    encoder.zero_grad()
    outputs = torch.cat(compute(graph), dim=1)
    slope = torch.linspace(-1, 1, outputs.shape[1], dtype=outputs.dtype)
    (outputs.sin() * slope).sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()])
    return outputs.detach(), gradients


@pytest.fixture
def not_compiled(monkeypatch):
    """The convolution in tensor operations, as on other devices."""
    monkeypatch.setattr("crysxpp_mm.layers.convolution.is_fused", lambda rows: False)


@pytest.mark.parametrize("backend", [pytest.param("dgl", marks=needs_dgl), "torch"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "compiled"),
    [(torch.float64, 1e-10, False), (torch.float32, 1e-6, False), (torch.float32, 1e-6, True)],
)
def test_fast_path_equals_the_reference(
    structures, backend, training, dtype, tolerance, compiled, request
):
    assert is_fused(torch.zeros(1, dtype=dtype)) == (dtype == torch.float32)
    if not compiled:
        request.getfixturevalue("not_compiled")
    encoder = CrysAE.random(seed=1).encoder.to(dtype)
    encoder.train()
    with torch.no_grad():
        encoder(batch(structures, dtype=dtype))  # statistics that are not the initial ones
    encoder.train(training)
    graph = batch(structures, backend, dtype)
    outputs, gradients = run(encoder.forward, encoder, graph)
    expected, expected_gradients = run(encoder.reference, encoder, graph)
    assert ((outputs - expected).norm() / expected.norm()).item() < tolerance
    difference = (gradients - expected_gradients).norm() / expected_gradients.norm()
    assert difference.item() < 100 * tolerance


def test_gradients_are_those_of_finite_differences(nacl, silicon):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CrystalGraphEncoder(hidden_dim=3, n_convs=1, n_gaussians=5).double().train()
    graph = batch([nacl, silicon], dtype=torch.float64)
    convolution = encoder.convolutions[0]

    def loss(weight):
        convolution.linear.weight.data.copy_(weight)
        return (encoder(graph)[-1] ** 2).sum()

    start = convolution.linear.weight.detach().clone()
    encoder.zero_grad()
    loss(start).backward()
    direction = torch.randn(
        start.shape, dtype=start.dtype, generator=torch.Generator().manual_seed(0)
    )
    step = 1e-5
    numeric = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    analytic = (convolution.linear.weight.grad * direction).sum()
    assert numeric.item() == pytest.approx(analytic.item(), rel=1e-6)


def test_compiled_gates_are_exact_to_single_precision():
    values = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 1e-30])])
    count = len(values)
    ones, zeros = torch.ones(2), torch.zeros(2)
    index = torch.arange(count)
    bonds = Bonds(index, index, torch.zeros(count, dtype=torch.long), torch.ones(count))

    def gated(gate, core):
        rows = torch.stack([gate, core], dim=1)
        given = (rows, torch.zeros_like(rows), torch.zeros(1, 2), ones, zeros, zeros, ones)
        return FusedNeighborSum.apply(*given, bonds, 0.0, False)[:, 0].double().numpy()

    x = values.double().numpy()
    softplus = np.logaddexp(0, x)
    found = gated(torch.full_like(values, 50.0), values)
    assert found == pytest.approx(softplus, rel=1e-6, abs=1e-35)
    sigmoid = np.exp(-np.logaddexp(0, -x))
    found = gated(values, torch.full_like(values, 1.0)) / np.logaddexp(0, 1.0)
    assert found == pytest.approx(sigmoid, rel=1e-6, abs=1e-35)
    assert np.isnan(gated(values.nan_to_num(0) * torch.nan, values)).all()
    assert np.isnan(gated(values, values * torch.nan)).all()


def test_without_numba_there_is_a_warning_and_the_same_numbers(monkeypatch, crysae, structures):
    expected = torch.cat(crysae.node_embeddings(batch(structures)), dim=1)
    compiled_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "crysxpp_mm.layers.kernels", None)
    monkeypatch.delattr("crysxpp_mm.layers.kernels")
    try:
        with pytest.warns(UserWarning, match="numba cannot be used"):
            found = torch.cat(crysae.node_embeddings(batch(structures)), dim=1)
        assert not is_fused(torch.zeros(1))
    finally:
        compiled_kernels.cache_clear()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_compiled_loops_are_not_kept_in_the_package():
    package = Path(kernels.__file__).parents[1]
    for loop in (kernels.squares, kernels.forward, kernels.backward):
        assert not Path(loop.stats.cache_path).is_relative_to(package)


def test_loops_compile_where_no_folder_can_keep_them(monkeypatch):
    def njit(*, cache=False, **options):
        def compiled(function):
            if cache:
                raise RuntimeError("no locator available")
            return function

        return compiled

    monkeypatch.setattr(compiled.numba, "njit", njit)
    assert compiled.compiled(len) is len


def test_chunks_do_not_matter(monkeypatch, crysae, structures, not_compiled):
    graph = batch(structures)
    expected = torch.cat(crysae.node_embeddings(graph), dim=1)
    monkeypatch.setattr("crysxpp_mm.layers.gated_sum.CHUNK", 7)
    assert torch.allclose(torch.cat(crysae.node_embeddings(graph), dim=1), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
@pytest.mark.parametrize("unordered", [set(), {"cpu"}])
def test_rows_by_index(monkeypatch, shape, unordered):
    monkeypatch.setattr("crysxpp_mm.layers.indexing.UNORDERED", unordered)
    index = torch.tensor([4, 0, 4, 2, 4, 0])
    rows = torch.randn(shape, requires_grad=True)
    taken = take_rows(rows, index)
    assert torch.equal(taken, torch.stack([rows[place] for place in index.tolist()]))
    total = torch.ones(shape)
    assert add_rows_(total, index, taken) is total
    for place, row in enumerate(total):
        assert row.detach() == pytest.approx(1 + int((index == place).sum()) * rows[place].detach())
    (total**2).sum().backward()
    counts = torch.bincount(index, minlength=5).reshape(-1, *[1] * (len(shape) - 1))
    assert rows.grad == pytest.approx(2 * counts * (1 + counts * rows.detach()))


@pytest.mark.parametrize("layers", ["tensors", "loops"])
def test_sums_in_order_are_the_same_sums(monkeypatch, crysae, structures, layers, request):
    if layers == "tensors":
        request.getfixturevalue("not_compiled")

    def loss_and_gradients():
        crysae.train().zero_grad()
        graph, pairs = batch(structures), pair_index(converter.convert_many(structures))
        rebuilt = crysae(graph, pairs)
        loss = sum(part.square().mean() for part in rebuilt)
        loss = loss + pool(graph, crysae.encoder(graph)).sum()
        loss.backward()
        return [loss.detach(), *(weight.grad for weight in crysae.parameters())]

    expected = loss_and_gradients()
    monkeypatch.setattr("crysxpp_mm.layers.indexing.UNORDERED", {"cpu"})
    for found, wanted in zip(loss_and_gradients(), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_element_channel_tells_lanthanum_from_cerium():
    pair = [Structure(Lattice.cubic(3), [symbol], [[0, 0, 0]]) for symbol in ("La", "Ce")]
    graphs = converter.convert_many(pair)
    plain = CrysAE.random(seed=0)
    first, second = plain.node_embeddings(graphs)[-1]
    assert torch.equal(first, second)
    channel = CrysAE.random(seed=0, element_channel=True)
    nn.init.normal_(channel.encoder.element_embedding.weight)
    first, second = channel.node_embeddings(graphs)[-1]
    assert not torch.allclose(first, second)
    with pytest.raises(GraphError, match="element_fractions"):
        channel.node_embeddings(batch(pair))


def test_training_mode_is_no_mode_to_embed_in(crysae, nacl):
    with pytest.raises(SettingsError, match="eval"):
        crysae.train().node_embeddings(batch([nacl]))


def test_decoder_computes_the_equations(structures):
    graphs = converter.convert_many(structures)
    pairs = pair_index(graphs)
    decoder = CrysAEDecoder(hidden_dim=5, pair_dim=3).double()
    atoms = torch.randn(int(graphs.atom_offsets[-1]), 5, dtype=torch.float64)
    rebuilt = decoder(atoms, pairs)
    starts = np.r_[0, np.cumsum(graphs.degrees)]
    bonded = multiplicity = 0
    row_of_group = {}
    row = 0
    for group in pairs.groups:
        for members in group.tolist():
            for u in members:
                for v in members:
                    row_of_group[u, v] = row
                    z_u, z_v = atoms[u], atoms[v]
                    logit = z_u @ decoder.existence_weight @ z_v + decoder.existence_bias  # Eq. 5
                    assert rebuilt.existence[row].item() == pytest.approx(logit.item())
                    row += 1
    assert row == len(pairs.bonded)
    crystal = np.repeat(np.arange(len(graphs)), graphs.n_atoms)
    for u in range(len(atoms)):
        first = graphs.atom_offsets[crystal[u]]
        seen: dict[int, int] = {}
        for bond in range(starts[u], starts[u + 1]):
            v = int(first + graphs.neighbors[bond])
            rank = min(seen.get(v, 0), 5)
            seen[v] = seen.get(v, 0) + 1
            pair = torch.einsum("fhj,h,j->f", decoder.pair_weight, atoms[u], atoms[v])
            pair = pair + decoder.pair_bias  # Eq. 2
            length = decoder.bond_lengths(pair)[rank].clamp(min=0)  # Eq. 3
            assert rebuilt.bond_lengths[bond].item() == pytest.approx(length.item())
            assert pairs.ranks[bond] == rank
        for v, count in seen.items():
            where = pairs.bonded_pairs.tolist().index(row_of_group[u, v])
            pair = torch.einsum("fhj,h,j->f", decoder.pair_weight, atoms[u], atoms[v])
            logits = decoder.multiplicity(pair + decoder.pair_bias)  # Eq. 6
            assert rebuilt.multiplicity[where].tolist() == pytest.approx(logits.tolist())
            assert pairs.multiplicities[where] == min(count, 6) - 1
            bonded, multiplicity = bonded + 1, multiplicity + count
    assert bonded == int(pairs.bonded.sum())
    assert multiplicity == int(graphs.bond_offsets[-1])


def test_losses_are_named_weighted_and_switchable(crysae, structures):
    graphs = converter.convert_many(structures)
    graph, pairs = batch(structures), pair_index(graphs)
    losses = reconstruction_loss(
        crysae(graph, pairs), pairs, graph.ndata[ATOM_FEATURES], graph.edata["distance"]
    )
    terms = {name: value.item() for name, value in losses._asdict().items()}
    assert all(value > 0 for value in terms.values())
    only_local = losses.total(LossWeights.local_only()).item()
    only_global = losses.total(LossWeights.global_only()).item()
    assert only_local == pytest.approx(terms["atom_features"] + terms["bond_lengths"])
    assert only_global == pytest.approx(terms["existence"] + terms["multiplicity"])
    doubled = losses.total(LossWeights(existence=2.0)).item()
    assert doubled == pytest.approx(sum(terms.values()) + terms["existence"], rel=1e-5)


def test_atom_feature_loss_is_zero_for_certainty_and_skips_blanks():
    features = torch.zeros(2, 92)
    features[0, 3] = 1  # group 3, all else unknown; the second atom is unknown altogether
    assert atom_feature_loss(1000 * features, features).item() == pytest.approx(0)
    assert atom_feature_loss(0 * features, features).item() == pytest.approx(np.log(19), rel=1e-5)
    assert atom_feature_loss(features[1:], features[1:]).item() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"existence": -1.0},
        {"atom_features": 0, "bond_lengths": 0, "existence": 0, "multiplicity": 0},
    ],
)
def test_senseless_loss_weights_are_refused(settings):
    with pytest.raises(SettingsError, match="weight"):
        LossWeights(**settings)


@pytest.mark.parametrize(
    "settings", [{"hidden_dim": 0}, {"n_convs": 0}, {"n_gaussians": 1}, {"pair_dim": 0}]
)
def test_senseless_sizes_are_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        CrysAE(**settings)


def test_moments_are_those_of_numpy(crysae, structures):
    graphs = converter.convert_many(structures)
    graph = crysae.make_graph(graphs)
    layers = crysae.node_embeddings(graph)
    columns = pool(graph, layers[1:2]).numpy()
    for index in range(len(graphs)):
        atoms = layers[1][graphs.atom_offsets[index] : graphs.atom_offsets[index + 1]].numpy()
        expected = np.r_[atoms.mean(0), atoms.std(0), atoms.max(0)]
        assert columns[index] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    with pytest.raises(SettingsError, match="unknown moment 'median'"):
        pool(graph, layers, ["median"])


def test_random_models_differ_by_seed_only():
    first, again, other = (CrysAE.random(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.encoder.embedding.weight, again.encoder.embedding.weight)
    assert not torch.equal(first.encoder.embedding.weight, other.encoder.embedding.weight)


def test_calibration_sets_the_statistics(crysae, structures):
    graphs = converter.convert_many(structures)
    crysae.calibrated(graphs)
    norm = crysae.encoder.convolutions[0].bond_norm
    assert norm.momentum == 0.1
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    assert not crysae.training


def equal(first: CrysAE, second: CrysAE) -> bool:
    """Whether two models embed alike to the bit."""
    graphs = converter.convert_many(make_structures())
    pairs = zip(first.node_embeddings(graphs), second.node_embeddings(graphs), strict=True)
    return all(torch.equal(mine, other) for mine, other in pairs)


def test_model_round_trips_as_data(tmp_path, crysae, nacl):
    crysae.metadata = {"seed": 0, "numbers": [1, 2]}
    assert equal(CrysAE.from_dict(crysae.as_dict()), crysae)
    assert equal(json.loads(json.dumps(crysae, cls=MontyEncoder), cls=MontyDecoder), crysae)
    for name in ("both.json", "both.json.gz", "both.yaml"):
        dumpfn({"model": crysae, "structure": nacl}, tmp_path / name)
        both = loadfn(tmp_path / name)
        if name.endswith("yaml"):
            both = MontyDecoder().process_decoded(both)
        assert equal(both["model"], crysae)
        assert both["structure"] == nacl
        assert both["model"].metadata == crysae.metadata
    assert jsanitize(crysae.as_dict(), strict=True)
    crysae.save(tmp_path / "model.json.gz")
    assert equal(CrysAE.load(tmp_path / "model.json.gz"), crysae)
    assert equal(load_model(tmp_path / "model.json.gz"), crysae)
    assert [path.name for path in tmp_path.glob("*.pkl")] == []
    first = (tmp_path / "model.json.gz").read_bytes()
    crysae.save(tmp_path / "model.json.gz")
    assert (tmp_path / "model.json.gz").read_bytes() == first


def test_settings_travel_with_the_weights(tmp_path):
    rule = CrystalGraphConverter(cutoff=6.0, max_neighbors=8)
    model = CrysAE.random(seed=3, converter=rule, hidden_dim=8, n_convs=2, element_channel=True)
    model.save(tmp_path / "model.json")
    again = CrysAE.load(tmp_path / "model.json")
    assert again.converter == rule
    assert again.settings == model.settings
    with pytest.raises(AttributeError):
        again.converter = CrystalGraphConverter()


def changed(model: CrysAE, change) -> dict:
    """The model's document after ``change``."""
    document = json.loads(json.dumps(model.as_dict()))
    change(document)
    return document


def retensored(document: dict, change) -> None:
    """Apply ``change`` to the tensors and renew the checksum."""
    weights = document["weights"]
    tensors = safetensors.torch.load(base64.b64decode(weights["data"]))
    change(tensors)
    data = safetensors.torch.save(tensors)
    weights["data"] = base64.b64encode(data).decode()
    weights["sha256"] = hashlib.sha256(data).hexdigest()


NORM = "encoder.convolutions.0.atom_norm.weight"
DAMAGE = {
    "unknown keys: surprise": lambda d: d.update(surprise=1),
    "lacks converter": lambda d: d.pop("converter"),
    "format version 2": lambda d: d.update(format_version=2),
    "makes no sense .*depth": lambda d: d["settings"].update(depth=3),
    "makes no sense .*hidden_dim must": lambda d: d["settings"].update(hidden_dim=0),
    "makes no sense .*cutoff must": lambda d: d["converter"].update(cutoff=-1.0),
    "sha256": lambda d: d["weights"].update(sha256="0" * 64),
    "format 'pickle'": lambda d: d["weights"].update(format="pickle"),
    "weights have unknown keys: code": lambda d: d["weights"].update(code="x"),
    "no base64 text": lambda d: d["weights"].update(data="*"),
    "lack encoder.convolutions.0.atom_norm": lambda d: retensored(d, lambda t: t.pop(NORM)),
    "tensors that the model has not: extra": lambda d: retensored(
        d, lambda t: t.update(extra=torch.ones(1))
    ),
    "atom_norm.weight is torch.float32": lambda d: retensored(
        d, lambda t: t.update({NORM: torch.ones(3)})
    ),
    "holds NaN": lambda d: retensored(d, lambda t: t[NORM].fill_(float("nan"))),
    "holds negative variances": lambda d: retensored(
        d, lambda t: t[NORM.replace("weight", "running_var")].fill_(-1.0)
    ),
    "not those of 10000000 layers": lambda d: d["settings"].update(n_convs=10_000_000),
    "the model needs torch.float32 .*1000000": lambda d: d["settings"].update(hidden_dim=1_000_000),
    "makes no sense .*TypeError": lambda d: d.update(settings=None),
    "makes no sense .*AttributeError": lambda d: d.update(converter=5),
    "is not a model of this package": lambda d: d.update({"@class": ["CrysAE"]}),
    "no safetensors document": lambda d: d["weights"].update(
        data=base64.b64encode(b"junk").decode(), sha256=hashlib.sha256(b"junk").hexdigest()
    ),
}


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_BYTES", 10_000)
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b" " * 100_000))
    with pytest.raises(ModelFileError, match="is refused: it has more than 10,000"):
        load_model(path)
    path.write_bytes(b"[" * 9_999)
    with pytest.raises(ModelFileError, match="is no model file, or it is damaged"):
        load_model(path)


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_document_is_refused_by_name(tmp_path, crysae, message):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(changed(crysae, DAMAGE[message])))
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(path)
    assert "model.json" in str(caught.value)


def test_flipped_byte_anywhere_is_refused(tmp_path, crysae):
    path = tmp_path / "model.json.gz"
    crysae.save(path)
    content = bytearray(path.read_bytes())
    for position in np.linspace(10, len(content) - 1, 15).astype(int):
        damaged = content.copy()
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"model\.json\.gz"):
            load_model(path)


def test_foreign_files_are_refused(tmp_path, crysae):
    path = tmp_path / "x.json"
    for content, message in (
        ("[]", "holds no model"),
        ("{", "damaged"),
        ('{"@class": "Structure"}', "not a model of this package"),
    ):
        path.write_text(content)
        with pytest.raises(ModelFileError, match=message):
            load_model(path)
    with pytest.raises(ModelFileError, match="expected a CrysAE"):
        CrysAE.load(path)
    with pytest.raises(ModelFileError, match="no such file"):
        CrysAE.load(tmp_path / "absent.json")
    with pytest.raises(UnknownModelError, match="no model file"):
        load_model(tmp_path / "absent.json")
    crysae.save(tmp_path / "y.json")
    document = changed(crysae, lambda d: d.update(surprise=1))
    (tmp_path / "y.json").write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match=r"y\.json: the model has unknown keys"):
        CrysAE.load(tmp_path / "y.json")


def test_interrupted_save_leaves_the_old_file(tmp_path, crysae, monkeypatch):
    path = tmp_path / "model.json.gz"
    crysae.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("crysxpp_mm.serialization.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        crysae.save(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["model.json.gz"]


def released_tensors() -> dict[str, torch.Tensor]:
    """Tensors named and shaped as in the authors' checkpoint."""
    model = CrysAE.random(seed=5)
    names = {"linear": "fc_full", "bond_norm": "bn1", "atom_norm": "bn2"}
    tensors = {}
    for name, value in model.encoder.state_dict().items():
        if name.startswith("convolutions."):
            _, layer, part, entry = name.split(".")
            name = f"convs.{layer}.{names[part]}.{entry}"
        tensors[name] = value
    return {**tensors, "fc1.weight": torch.ones(6, 6)}


def test_released_tensors_become_an_encoder(tmp_path):
    path = tmp_path / "released.npz"
    np.savez(path, **{name: value.numpy() for name, value in released_tensors().items()})
    assert equal(CrysAE.from_released(path), CrysAE.random(seed=5))


def test_released_pickle_is_read_without_running_it(tmp_path):
    import sys
    import types

    theirs = types.ModuleType("authors_model")

    class ConvLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc_full = nn.Linear(169, 128)
            self.bn1 = nn.BatchNorm1d(128)
            self.bn2 = nn.BatchNorm1d(64)
            self.sigmoid = nn.Sigmoid()

    class CrystalAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Linear(92, 64, bias=False)
            self.convs = nn.ModuleList(ConvLayer() for _ in range(3))
            self.fc_adj = nn.Bilinear(64, 64, 6)

    for kind in (ConvLayer, CrystalAE):
        kind.__module__, kind.__qualname__ = "authors_model", kind.__name__
        setattr(theirs, kind.__name__, kind)
    sys.modules["authors_model"] = theirs
    try:
        module = CrystalAE()
        tensors = {k: v for k, v in released_tensors().items() if k != "fc1.weight"}
        module.load_state_dict(tensors, strict=False)
        torch.save(module, tmp_path / "model_pretrain.pth")
        torch.save(module.state_dict(), tmp_path / "state.pth")
    finally:
        del sys.modules["authors_model"]
    for name in ("model_pretrain.pth", "state.pth"):
        assert equal(CrysAE.from_released(tmp_path / name), CrysAE.random(seed=5))


class Trap:
    """Unpickled without care, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_hostile_checkpoints_are_refused(tmp_path):
    trace = tmp_path / "trace"
    torch.save(Trap(trace), tmp_path / "trap.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Trap(trace)))
    np.savez(tmp_path / "trap.npz", **{"embedding.weight": np.array([Trap(trace)], dtype=object)})
    np.savez(tmp_path / "other.npz", something=np.ones(3))
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    for name, message in (
        ("trap.pth", "refused"),
        ("old.pth", "cannot be read"),
        ("trap.npz", "no npz of plain arrays"),
        ("other.npz", "no released CrysXPP autoencoder"),
        ("tensor.pth", "holds a Tensor"),
        ("absent.pth", "no such file"),
    ):
        with pytest.raises(ModelFileError, match=message):
            read_released_tensors(tmp_path / name)
    assert not trace.exists()
    tensors = released_tensors()
    tensors["embedding.weight"] = torch.ones(32, 92)
    np.savez(tmp_path / "odd.npz", **{name: value.numpy() for name, value in tensors.items()})
    with pytest.raises(ModelFileError, match="do not fit"):
        CrysAE.from_released(tmp_path / "odd.npz")


ODD_TENSORS = {
    "the shape": [
        ("embedding.weight", lambda t: t[0, 0]),
        ("convs.0.fc_full.weight", lambda t: t[0]),
        ("convs.1.bn1.weight", lambda t: t[:, None]),
        ("convs.1.bn1.weight", lambda t: t[:0]),
        ("embedding.weight", lambda t: t[:1, :1].expand(10**6, 92)),
    ],
    "no finite numbers": [
        ("convs.0.bn1.weight", lambda t: t * float("nan")),
        ("embedding.weight", lambda t: t / 0),
        ("embedding.weight", lambda t: t.to(torch.int64)),
        ("embedding.weight", lambda t: t.to(torch.complex64)),
    ],
    "negative variances": [("convs.2.bn2.running_var", lambda t: t - 2)],
    "of an unknown kind": [("embedding.weight", lambda t: t.to_sparse())],
    "do not fit": [
        ("convs.0.bn1.weight", lambda t: t[:5]),
        ("embedding.weight", lambda t: t[:1].expand(100_000, 92)),
    ],
}


@pytest.mark.parametrize("message", ODD_TENSORS)
def test_odd_tensors_of_a_checkpoint_are_named(tmp_path, message):
    for name, change in ODD_TENSORS[message]:
        tensors = released_tensors()
        tensors[name] = change(tensors[name])
        torch.save(tensors, tmp_path / "odd.pth")
        with pytest.raises(ModelFileError, match=rf"odd\.pth.*{message}"):
            CrysAE.from_released(tmp_path / "odd.pth")


def test_strides_of_zero_are_read(tmp_path):
    tensors = released_tensors()
    tensors["convs.0.bn1.weight"] = torch.ones(1).expand(128)
    torch.save(tensors, tmp_path / "odd.pth")
    assert CrysAE.from_released(tmp_path / "odd.pth")


def test_odd_checkpoints_are_refused(tmp_path, monkeypatch):
    torch.save({**released_tensors(), "convs.0.bn3.weight": torch.ones(2)}, tmp_path / "more.pth")
    with pytest.raises(ModelFileError, match=r"the tensor 'convs\.0\.bn3\.weight' is unknown"):
        CrysAE.from_released(tmp_path / "more.pth")
    arrays = {name: value.numpy() for name, value in released_tensors().items()}
    np.savez(tmp_path / "text.npz", **{**arrays, "embedding.weight": np.array(["a", "b"])})
    with pytest.raises(ModelFileError, match="no npz of plain arrays"):
        CrysAE.from_released(tmp_path / "text.npz")
    loop = nn.Sequential()
    loop._modules["itself"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    with pytest.raises(ModelFileError, match="a module that makes no sense"):
        CrysAE.from_released(tmp_path / "loop.pth")
    np.savez_compressed(tmp_path / "bomb.npz", **arrays, zeros=np.zeros(10**6))
    monkeypatch.setattr("crysxpp_mm.models.released.MAX_BYTES", 5_000_000)
    with pytest.raises(ModelFileError, match="is refused: it has more than 5,000,000 bytes"):
        CrysAE.from_released(tmp_path / "bomb.npz")


def test_html_names_what_a_model_is():
    page = load_model("crysae-mp-v1")._repr_html_()
    for text in ("CrysAE", "34,900", "12 neighbors within 8 Angstrom", "hidden_dim 64"):
        assert text in page
    page = CrysAE.random(hidden_dim=4)._repr_html_()
    assert "untrained" in page
    assert "learned from" not in page
