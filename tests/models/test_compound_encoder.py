import pytest
import torch

from cellfluxrl import CompoundEncoder
from cellfluxrl.data.compounds import known_compounds
from cellfluxrl.models.compound_encoder import encoder_for, morgan_counts

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


def test_the_compounds_of_a_data_set_are_added_to_those_of_bbbc021():
    encoder = encoder_for([("zeta", "CCO", "Solvents"), ("taxol", known_compounds().loc["taxol", "smiles"], "other")])
    assert len(encoder.names) == 36
    assert encoder.moa("zeta") == "Solvents"
    assert encoder.moa("taxol") == "other"
    assert encoder.moa("nocodazole") == "Microtubule destabilizers"


def test_an_own_compound_with_a_bad_smiles_is_refused():
    with pytest.raises(ValueError, match="RDKit cannot read the SMILES 'C1CC'"):
        CompoundEncoder(compounds={"broken": {"smiles": "C1CC", "moa": ""}})
