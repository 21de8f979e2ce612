"""What a pipeline's index points to: files beside the components when saved, the installed modules when loaded."""

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.hub.remote_code import COMPONENTS, PIPELINES, with_modules, with_shims

OURS = st.sampled_from([[module, name] for name, module in COMPONENTS.items()])
OTHERS = st.sampled_from([["diffusers", "DDIMScheduler"], ["my_package.nets", "MyUNet"], [None, None]])
NAMES = st.sampled_from(["unet", "scheduler", "encoder", "rewards", "second_unet"])
INDEXES = st.builds(
    lambda pipeline, components: {"_class_name": pipeline, "_diffusers_version": "0.42.1", **components},
    st.sampled_from(sorted(PIPELINES)),
    st.dictionaries(NAMES, OURS | OTHERS),
)


@settings(max_examples=60, deadline=None)
@given(INDEXES)
def test_what_is_saved_is_read_again(index):
    saved, texts = with_shims(index)
    assert with_modules(saved) == index
    assert with_shims(saved) == (saved, texts), "saved twice is another index"
    for name, value in saved.items():
        if isinstance(value, list) and value != index[name]:
            folder = "" if name == "_class_name" else f"{name}/"
            assert f"{folder}{value[0]}.py" in texts


@settings(max_examples=30, deadline=None)
@given(INDEXES)
def test_the_files_import_the_classes_from_the_package(index):
    saved, texts = with_shims(index)
    for name, text in texts.items():
        values: dict = {}
        exec(text, values)
        own = saved[name.partition("/")[0] if "/" in name else "_class_name"][1]
        assert values[own].__module__.startswith("cellfluxrl.")


@pytest.mark.parametrize(("name", "module"), [*COMPONENTS.items(), *PIPELINES.items()])
def test_every_class_is_defined_where_it_is_said_to_be(name, module):
    assert getattr(importlib.import_module(module), name).__module__ == module


def test_a_file_that_is_not_ours_is_left_for_diffusers_to_refuse():
    index = {"_class_name": ["pipeline", "Other"], "unet": ["my_unet", "CellFluxUNet2DModel"]}
    assert with_modules(index) == index
