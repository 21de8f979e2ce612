import json
import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from cellfluxrl import CompoundEncoder
from cellfluxrl.data.building.bbbc021_index import read_index
from cellfluxrl.data.compounds import CONTROL, known_compounds, morgan_counts
from cellfluxrl.models.compound_encoder import NO_DOSE, encoder_for

# Not in alphabetical order, as tables of one's own are.
OWN = {
    "zeta": {"smiles": "CCO", "moa": "Solvents"},
    "alpha": {"smiles": "c1ccccc1", "moa": ""},
    "Mid": {"smiles": "CC(=O)O", "moa": "Acids"},
}


@pytest.fixture(scope="module")
def encoder():
    return CompoundEncoder()


def test_the_compounds_of_bbbc021_are_known(encoder):
    assert sorted(encoder.names) == sorted(known_compounds().index)
    assert encoder.encode(encoder.names).shape == (35, 1024)


def test_rows_follow_the_names_that_were_asked_for(encoder):
    both = encoder.encode(["taxol", "nocodazole", "taxol"])
    assert torch.equal(both[0], both[2])
    assert torch.equal(both[1:2], encoder.encode(["nocodazole"]))
    assert not torch.equal(both[0], both[1])


def test_a_name_and_its_smiles_have_one_encoding(encoder):
    smiles = known_compounds().loc["taxol", "smiles"]
    assert torch.equal(encoder.encode(["taxol"]), encoder.encode(smiles=[smiles]))


def test_counts_are_integers_that_do_not_depend_on_how_the_smiles_is_written():
    counts = morgan_counts("OCC")
    assert (counts == counts.round()).all()
    assert counts.sum() > 0
    assert (counts == morgan_counts("CCO")).all()


def test_mechanisms_are_known(encoder):
    assert encoder.moa("taxol") == "Microtubule stabilizers"
    assert encoder.moa("DMSO") == "DMSO"


@pytest.mark.parametrize("ask", [lambda e: e.encode(["taxol", "taxoll"]), lambda e: e.moa("taxoll")])
def test_an_unknown_compound_is_refused_with_the_nearest(encoder, ask):
    with pytest.raises(ValueError, match=r"unknown compound 'taxoll'; did you mean 'taxol'\? 35 known"):
        ask(encoder)


@pytest.mark.parametrize("smiles", ["C1CC", "not a molecule", "", " "])
def test_an_unreadable_smiles_is_named(encoder, smiles, capfd):
    with pytest.raises(ValueError, match=f"RDKit cannot read the SMILES '{smiles}'"):
        encoder.encode(smiles=["CCO", smiles])
    assert capfd.readouterr().err == ""


# What is wrong, and at which character of the SMILES (from 1).
MISTAKES = {
    "CC(": ("syntax error", 3),
    "CC)C": ("extra close parentheses", 3),
    "c1ccccc1C(=O": ("extra open parentheses", 10),
    "C[Xx]C": ("syntax error", 3),
    "  CC)": ("extra close parentheses", 3),
    "OC1CC": ("unclosed ring", 3),
    "C1CC1C%12CC": ("unclosed ring", 7),
    "C1CC2C": ("unclosed ring", 2),
    "[13CH3]C1C": ("unclosed ring", 9),
    "C1CC%(123)C1": ("unclosed ring", 5),
    "CC(C)(C)(C)C": ("Explicit valence for atom # 1 C, 5, is greater than permitted", 2),
    "ClC[13CH2]N(C)(C)C": ("Explicit valence for atom # 3 N, 4, is greater than permitted", 11),
    "CCc1cccc1": ("Can't kekulize mol", 3),
    "CCO ethanol": ("a SMILES has no ' '", 4),
    "C\N{LATIN SMALL LETTER E WITH ACUTE}C": ("a SMILES has no '\N{LATIN SMALL LETTER E WITH ACUTE}'", 2),
    "CC\0C": ("a SMILES has no", 3),
    "C" * 300 + "(": ("syntax error", 301),
}


@pytest.mark.parametrize("smiles", MISTAKES)
def test_a_mistake_in_a_smiles_is_pointed_at(smiles, capfd):
    reason, position = MISTAKES[smiles]
    with pytest.raises(ValueError, match="RDKit cannot read the SMILES") as error:
        morgan_counts(smiles)
    first, excerpt, caret = str(error.value).split("\n")
    assert f"character {position}: {reason}" in first
    assert repr(smiles) in first
    pointed_at = smiles.strip()[position - 1]
    assert excerpt[caret.index("^")] == (pointed_at if pointed_at.isascii() and pointed_at.isprintable() else "?")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("smiles", ["C11", "C1C1"])
def test_a_mistake_without_a_position_is_in_rdkit_s_words(smiles):
    with pytest.raises(ValueError, match=f"SMILES '{smiles}': .*ring closure 1"):
        morgan_counts(smiles)


@pytest.mark.parametrize("smiles", [None, float("nan"), 3, b"CC"])
def test_a_smiles_is_a_string(smiles):
    with pytest.raises(ValueError, match=r"RDKit cannot read the SMILES .*: a molecule is a string"):
        morgan_counts(smiles)


def test_without_rdkit_s_log_the_error_is_still_one(monkeypatch):
    monkeypatch.delattr(rdBase, "CaptureErrorLog", raising=False)
    with pytest.raises(ValueError, match=r"RDKit cannot read the SMILES 'CC\(': not a SMILES"):
        morgan_counts("CC(")


@given(st.text(alphabet="CNOclnBr[]()=#123%+-.@H/\\ \n\0é*", max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_string_is_a_molecule_or_an_error_that_quotes_it(smiles):
    with rdBase.BlockLogs():
        readable = Chem.MolFromSmiles(smiles) is not None
    if readable and smiles.strip() and not re.search(r"[\s\0é]", smiles.strip()):
        assert morgan_counts(smiles).sum() > 0
    else:
        with pytest.raises(ValueError, match=re.escape(f"RDKit cannot read the SMILES {smiles!r}: ")):
            morgan_counts(smiles)


def test_rdkit_s_logs_are_left_as_they_were(capfd):
    before = rdBase.LogStatus()
    with pytest.raises(ValueError, match="character 3"):
        morgan_counts("CC(")
    assert rdBase.LogStatus() == before
    Chem.MolFromSmiles("CC(")
    assert "SMILES Parse Error" in capfd.readouterr().err


def test_logs_that_go_to_python_are_left_there(caplog):
    rdBase.LogToPythonLogger()
    logger = logging.getLogger("rdkit")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [caplog.handler], False
    try:
        with pytest.raises(ValueError, match="character 3"):
            morgan_counts("CC(")
        assert caplog.records == []
        Chem.MolFromSmiles("CC(")
        assert "SMILES Parse Error" in caplog.text
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        rdBase.LogToCppStreams()


@pytest.mark.parametrize("arguments", [{}, {"compounds": ["taxol"], "smiles": ["CCO"]}])
def test_names_or_smiles_and_not_both(encoder, arguments):
    with pytest.raises(ValueError, match="either compound names or SMILES"):
        encoder.encode(**arguments)


@pytest.mark.parametrize("compounds", [None, OWN], ids=["BBBC021's", "own"])
def test_a_saved_encoder_encodes_every_compound_the_same(tmp_path, compounds):
    encoder = CompoundEncoder(compounds=compounds)
    encoder.save_pretrained(tmp_path)
    loaded = CompoundEncoder.from_pretrained(tmp_path)
    assert loaded.names == encoder.names
    for name in encoder.names:
        assert torch.equal(loaded.encode([name]), encoder.encode([name])), name
        assert loaded.moa(name) == encoder.moa(name)


def test_own_compounds_replace_the_table():
    encoder = CompoundEncoder(compounds=OWN)
    assert set(encoder.names) == set(OWN)
    for name, entry in OWN.items():
        assert torch.equal(encoder.encode([name]), encoder.encode(smiles=[entry["smiles"]]))
    assert encoder.moa("zeta") == "Solvents"
    assert encoder.moa("alpha") is None
    with pytest.raises(ValueError, match="unknown compound 'taxol'; 3 known: Mid, alpha, zeta"):
        encoder.encode(["taxol"])


def test_radius_and_length_are_kept(tmp_path):
    CompoundEncoder(compounds=OWN, radius=1, num_bits=64).save_pretrained(tmp_path)
    loaded = CompoundEncoder.from_pretrained(tmp_path)
    assert loaded.encode(smiles=["CCO"]).shape == (1, 64)
    assert torch.equal(loaded.encode(["zeta"]), loaded.encode(smiles=["CCO"]))


def test_a_dose_without_a_mechanism_does_not_hide_that_of_another_dose():
    rows = [("mine", "CCO", "Kinase inhibitors"), ("mine", "CCO", ""), ("taxol", "CCO", "")]
    encoder = encoder_for(rows)
    assert (encoder.moa("mine"), encoder.moa("taxol")) == ("Kinase inhibitors", "Microtubule stabilizers")


def test_a_compound_without_a_structure_is_named():
    with pytest.raises(ValueError, match="compound 'mine' has no SMILES"):
        encoder_for([("mine", "", "")])


def test_the_compounds_of_a_data_set_are_added_to_those_of_bbbc021():
    encoder = encoder_for([("zeta", "CCO", "Solvents"), ("taxol", known_compounds().loc["taxol", "smiles"], "other")])
    assert len(encoder.names) == 36
    assert encoder.moa("zeta") == "Solvents"
    assert encoder.moa("taxol") == "other"
    assert encoder.moa("nocodazole") == "Microtubule destabilizers"


def test_an_own_compound_with_a_bad_smiles_is_refused():
    with pytest.raises(ValueError, match="RDKit cannot read the SMILES 'C1CC': character 2"):
        CompoundEncoder(compounds={"broken": {"smiles": "C1CC", "moa": ""}})


# --- the dose ---


@pytest.fixture(scope="module")
def dose_encoder():
    return CompoundEncoder(log_dose=True)


def test_the_dose_is_one_more_column(encoder, dose_encoder):
    names = ["taxol", "DMSO", "emetine"]
    conditions = dose_encoder.encode(names, concentrations=[0.3, 0, 1000])
    assert conditions.shape == (3, dose_encoder.condition_dim) == (3, 1025)
    assert torch.equal(conditions[:, :-1], encoder.encode(names))
    np.testing.assert_allclose(conditions[:, -1], [np.log10(0.3), -6, 3], rtol=1e-6)
    assert encoder.condition_dim == 1024


def test_the_dose_goes_with_smiles_too(dose_encoder):
    smiles = known_compounds().loc["taxol", "smiles"]
    by_name = dose_encoder.encode(["taxol"], concentrations=np.array([0.3]))
    assert torch.equal(
        dose_encoder.encode(smiles=[smiles], concentrations=torch.tensor([0.3], dtype=torch.float64)), by_name
    )


@given(st.lists(st.floats(NO_DOSE, 1e6, exclude_min=True), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_the_dose_column_keeps_the_order_of_doses(dose_encoder, concentrations):
    column = dose_encoder.encode(["taxol"] * len(concentrations), concentrations=sorted(concentrations))[:, -1]
    assert (column.diff() >= 0).all()
    assert (column >= -6).all()


def test_a_cell_without_compound_has_the_lowest_dose(dose_encoder, bbbc021_dir):
    smallest = read_index(bbbc021_dir).query("not is_control")["concentration"].min()
    column = dose_encoder.encode(["taxol", "taxol", CONTROL], concentrations=[0, smallest, 10])[:, -1]
    assert column[0] == column[2] == -6
    assert column[1] > -6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1e-6, 1e-9])
def test_an_unusable_concentration_is_named(dose_encoder, value):
    with pytest.raises(ValueError, match=f"concentration {value} of 'taxol' .number 1. must be 0 or a finite number"):
        dose_encoder.encode(["DMSO", "taxol"], concentrations=[0, value])


def test_concentrations_and_log_dose_go_together(encoder, dose_encoder):
    with pytest.raises(ValueError, match="log_dose=True needs concentrations"):
        dose_encoder.encode(["taxol"])
    with pytest.raises(ValueError, match="log_dose=False takes no concentrations"):
        encoder.encode(["taxol"], concentrations=[1.0])
    with pytest.raises(ValueError, match=r"2 compounds need as many concentrations, got shape \(1,\)"):
        dose_encoder.encode(["taxol", "DMSO"], concentrations=[1.0])


def test_a_saved_encoder_keeps_its_dose_column(tmp_path):
    own = CompoundEncoder(compounds=OWN, num_bits=64, log_dose=True)
    own.save_pretrained(tmp_path)
    loaded = CompoundEncoder.from_pretrained(tmp_path)
    assert loaded.condition_dim == 65
    for name in OWN:
        assert torch.equal(loaded.encode([name], concentrations=[3]), own.encode([name], concentrations=[3]))


def test_an_encoder_saved_before_there_was_a_dose_is_read(tmp_path, encoder):
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["log_dose"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = CompoundEncoder.from_pretrained(tmp_path)
    assert loaded.condition_dim == 1024
    assert torch.equal(loaded.encode(encoder.names), encoder.encode(encoder.names))
