"""The web app of `cellfluxrl app`: `inputs` checks, `simulation` computes, `views` shows, `layout` is the page."""
