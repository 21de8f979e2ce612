"""The app as a Hugging Face Space: copy this folder into the Space, and name the pipelines in its settings."""

import os

from cellfluxrl.app.layout import build_app, launch
from cellfluxrl.app.models import load_models

models = load_models(os.environ.get("CELLFLUXRL_PIPELINE"), os.environ.get("CELLFLUXRL_BASE"))
demo = build_app(models, os.environ.get("CELLFLUXRL_CONTROLS"), max_seconds=120)

if __name__ == "__main__":
    launch(demo, host="0.0.0.0", hosts=os.environ.get("CELLFLUXRL_ALLOWED_HOSTS", "").split())
